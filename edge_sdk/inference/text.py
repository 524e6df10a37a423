"""A model's tokenizer without transformers: text to tokens, chats to text, tokens to text."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import jinja2.ext
import jinja2.sandbox
from tokenizers import Tokenizer

from edge_sdk.errors import ModelError

_UNFINISHED = "\N{REPLACEMENT CHARACTER}"  # what an incomplete UTF-8 sequence decodes to
_SPECIAL = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token")
_LONGEST = 1_000_000  # transformers writes 1e30 where there is no limit


class TextTokenizer:
    """The tokenizer in a model's folder.

    Where :mod:`edge_sdk.text.tokenization` asks for a tokenizer, this one serves as well as that of
    transformers.

    Args:
        folder: Hugging Face folder with ``tokenizer.json``.

    Attributes:
        chat_template: Jinja source, or None.
        eos_token: Text of the end token, or None.
        bos_token_id: Id of the begin token, or None.
        end_ids: Tokens that end a text.

    Raises:
        ModelError: There is no usable ``tokenizer.json``.
    """

    def __init__(self, folder: Path) -> None:
        path = folder / "tokenizer.json"
        try:
            self._tokenizer: Any = Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises nothing narrower
            raise ModelError(
                f"{path} cannot be read as a tokenizer: {error}; save it with "
                "`AutoTokenizer.from_pretrained(...).save_pretrained(...)`"
            ) from error
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        config = _read_object(folder / "tokenizer_config.json")
        self._special = {name: _text(config[name]) for name in _SPECIAL if config.get(name)}
        self.chat_template = _chat_template(folder, config)
        self.eos_token = self._special.get("eos_token")
        self.bos_token_id = self._id("bos_token")
        self.end_ids = self._end_ids(folder)
        longest = config.get("model_max_length") or _LONGEST
        self._longest = int(min(longest, _LONGEST))

    def __call__(self, text: str, add_special_tokens: bool = True) -> dict[str, list[int]]:
        """Return ``{"input_ids": ...}``, as transformers' tokenizers do."""
        encoding = self._tokenizer.encode(text, add_special_tokens=add_special_tokens)
        return {"input_ids": list(encoding.ids)}

    def beginning(self, text: str, limit: int) -> list[int]:
        """Return the tokens of a text, cut to ``limit`` and to the tokenizer's own limit.

        Tokens that end every text stay.
        """
        encoding = self._tokenizer.encode(text, add_special_tokens=False)
        added = self._tokenizer.num_special_tokens_to_add(False)
        encoding.truncate(max(1, min(limit, self._longest) - added))
        return list(self._tokenizer.post_process(encoding).ids)

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of tokens, without special ones."""
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=True))

    def apply_chat_template(
        self,
        messages: Sequence[Mapping[str, str]],
        *,
        tokenize: bool = False,
        add_generation_prompt: bool = False,
    ) -> str:
        """Return a conversation as the model's template writes it.

        Raises:
            TypeError: ``tokenize`` is true, which is not offered here.
            jinja2.TemplateError: The template refuses the messages.
        """
        if tokenize:
            raise TypeError("tokenize the text afterwards")
        template = _environment().from_string(self.chat_template or "")
        return template.render(
            messages=list(messages),
            add_generation_prompt=add_generation_prompt,
            tools=None,
            documents=None,
            **self._special,
        )

    def _id(self, name: str) -> int | None:
        token = self._special.get(name)
        found: int | None = None if token is None else self._tokenizer.token_to_id(token)
        return found

    def _end_ids(self, folder: Path) -> frozenset[int]:
        configured: list[Any] = [self._id("eos_token")]
        for name in ("generation_config.json", "config.json"):
            found = _read_object(folder / name).get("eos_token_id")
            if found is not None:
                configured += found if isinstance(found, list) else [found]
                break
        return frozenset(int(x) for x in configured if x is not None)


class Pieces:
    """Text out of tokens as they come, never a part of a character.

    Args:
        tokenizer: Of the model.
    """

    def __init__(self, tokenizer: TextTokenizer) -> None:
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        self._settled = 0  # tokens before this one are context only
        self._shown = 0  # tokens before this one are in the text so far

    def add(self, token: int) -> str:
        """Return the text that a token completes; empty while a character lacks bytes."""
        self._ids.append(token)
        piece = self._new_text()
        if not piece or piece.endswith(_UNFINISHED):
            return ""  # a token without text is no context: the space after it would be lost
        self._settled, self._shown = self._shown, len(self._ids)
        return piece

    def rest(self) -> str:
        """Return what is left at the end, incomplete or not."""
        return self._new_text()

    def _new_text(self) -> str:
        """Decode a few tokens with those before them: some tokenizers drop a leading space."""
        before = self._tokenizer.decode(self._ids[self._settled : self._shown])
        return self._tokenizer.decode(self._ids[self._settled :])[len(before) :]


def _read_object(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be read: {error}") from error
    return found if isinstance(found, dict) else {}


def _text(token: Any) -> str:
    return str(token["content"] if isinstance(token, dict) else token)


def _chat_template(folder: Path, config: Mapping[str, Any]) -> str | None:
    file = folder / "chat_template.jinja"
    if file.is_file():
        return file.read_text(encoding="utf-8")
    found = config.get("chat_template")
    if isinstance(found, list):  # several by name
        named = {x.get("name"): x.get("template") for x in found if isinstance(x, dict)}
        found = named.get("default")
    return None if found is None else str(found)


def _environment() -> jinja2.Environment:
    """Return an environment with what transformers offers to chat templates."""
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=[jinja2.ext.loopcontrols, _Generation],
    )
    environment.globals["raise_exception"] = _refuse
    environment.globals["strftime_now"] = _now
    environment.filters["tojson"] = _to_json
    return environment


class _Generation(jinja2.ext.Extension):
    """``{% generation %}`` marks the assistant's words for training; here it only shows them."""

    tags = {"generation"}  # noqa: RUF012 - as jinja2 declares it

    def parse(self, parser: Any) -> Any:
        """Return the marked part as it is."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.Scope(body, lineno=line)


def _refuse(message: str) -> Iterator[str]:
    raise jinja2.TemplateError(message)


def _now(form: str) -> str:
    import datetime

    return datetime.datetime.now().strftime(form)


def _to_json(value: Any, indent: int | None = None) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent)
