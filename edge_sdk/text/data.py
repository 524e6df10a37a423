"""Local text to training examples, without torch.

A file holds one JSON object per line, in one of these forms::

    {"messages": [{"role": "user", "content": "…"}, {"role": "assistant", "content": "…"}]}
    {"prompt": "…", "completion": "…"}
    {"text": "…"}
    {"text": "…", "label": "…"}

A causal LM learns the assistant's turns, the completion, the whole text, or the label as a
completion; a sequence classifier takes the last form alone. Other fields are ignored.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edge_sdk.errors import DataError
from edge_sdk.text.example import Example
from edge_sdk.text.tokenization import Part, Tokens, chat_parts, fit, start_ids, tokenize
from edge_sdk.wire.task import BaseModel


def load_examples(path: Path, tokenizer: Any, base: BaseModel, max_length: int) -> list[Example]:
    """Read every example of a JSONL file; blank lines are skipped.

    A text that is too long loses its beginning, so that the last thing to be learned stays.

    Args:
        path: UTF-8, one JSON object per line.
        tokenizer: Of the base model.
        base: Its task type and labels decide what is learned.
        max_length: Tokens per example, at most.

    Raises:
        DataError: Says the file, the line and what is wrong there.
    """
    examples = list[Example]()
    for number, line in enumerate(_read_lines(path), start=1):
        if not line.strip():
            continue
        try:
            examples.append(_example(_record(line), tokenizer, base, max_length))
        except DataError as error:
            raise DataError(f"{path}:{number}: {error}") from error
    if not examples:
        raise DataError(f"{path} holds no example: write one JSON object per line")
    return examples


def _read_lines(path: Path) -> list[str]:
    try:
        return path.read_bytes().decode("utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text: {error}") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error}") from error


def _record(line: str) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except ValueError as error:
        raise DataError(f"not a JSON object: {error}") from error
    if not isinstance(record, dict):
        raise DataError(f"not a JSON object but {type(record).__name__}")
    return record


def _example(
    record: Mapping[str, Any], tokenizer: Any, base: BaseModel, max_length: int
) -> Example:
    if base.task_type == "SEQ_CLS":
        return _classified(record, tokenizer, base.labels, max_length)
    is_chat = "messages" in record
    start = start_ids(tokenizer, is_chat)
    whole = tokenize(tokenizer, _parts(record, tokenizer), start)
    if not is_chat and tokenizer.eos_token_id is not None:
        whole = Tokens([*whole.ids, tokenizer.eos_token_id], [*whole.is_learned, True])
    begins = tokenizer.bos_token_id is not None and whole.ids[:1] == [tokenizer.bos_token_id]
    cut = fit(whole, max_length, kept=int(begins))
    if not any(cut.is_learned[1:]):
        raise DataError(
            f"no token to learn from within max_length={max_length}: the first token of a text "
            "is predicted from nothing, so it takes at least two"
        )
    return Example(cut.ids, cut.is_learned)


def _parts(record: Mapping[str, Any], tokenizer: Any) -> list[Part]:
    if "messages" in record:
        return chat_parts(tokenizer, _messages(record["messages"]))
    if "prompt" in record or "completion" in record:
        prompt, completion = _text(record, "prompt"), _text(record, "completion")
    elif "label" in record:
        prompt, completion = _text(record, "text"), f" {_label(record)}"
    elif "text" in record:
        return [Part(_text(record, "text"), is_learned=True)]
    else:
        raise DataError(
            f"fields {sorted(record)}: expected messages, prompt and completion, or text"
        )
    return [Part(prompt, is_learned=False), Part(completion, is_learned=True)]


def _messages(value: Any) -> list[dict[str, str]]:
    expected = "messages must be a list of objects with the texts role and content"
    if not isinstance(value, list) or not all(isinstance(turn, dict) for turn in value):
        raise DataError(f"{expected}, got {value!r:.80}")
    for turn in value:
        if not all(isinstance(turn.get(key), str) for key in ("role", "content")):
            raise DataError(f"{expected}, got {turn!r:.80}")
    if not any(turn["role"] == "assistant" for turn in value):
        raise DataError("messages hold no assistant turn, so there is nothing to learn")
    return value


def _classified(
    record: Mapping[str, Any], tokenizer: Any, labels: Sequence[str], max_length: int
) -> Example:
    text, label = _text(record, "text"), _label(record)
    if label in labels:
        index = labels.index(str(label))
    elif isinstance(label, int) and 0 <= label < len(labels):
        index = label
    else:
        raise DataError(
            f"label {label!r} is none of {', '.join(labels)}, nor an index below {len(labels)}"
        )
    ids = list(tokenizer(text, truncation=True, max_length=max_length)["input_ids"])
    if not ids:
        raise DataError("the text has no token to learn from")
    return Example(ids, [False] * len(ids), index)


def _text(record: Mapping[str, Any], field: str) -> str:
    value = record.get(field)
    if not isinstance(value, str):
        raise DataError(f"field {field!r} must be a text, got {value!r:.80}")
    return value


def _label(record: Mapping[str, Any]) -> str | int:
    value = record.get("label")
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        raise DataError(f"field 'label' must be a class name or its index, got {value!r:.80}")
    return value
