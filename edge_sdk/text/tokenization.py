"""Text to tokens with an exact boundary between what is given and what is to be learned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jinja2

from edge_sdk.errors import DataError


@dataclass(frozen=True, slots=True)
class Part:
    """A piece of a text.

    Attributes:
        text: Appended to the parts before it.
        is_learned: Whether the model shall learn to produce it.
    """

    text: str
    is_learned: bool


@dataclass(frozen=True, slots=True)
class Tokens:
    """A tokenized text.

    Attributes:
        ids: Token ids.
        is_learned: For each token, whether the model shall learn to produce it.
    """

    ids: list[int]
    is_learned: list[bool]


def start_ids(tokenizer: Any, is_chat: bool = False) -> list[int]:
    """Return the begin token if this tokenizer starts every text with one.

    Args:
        tokenizer: Of the base model.
        is_chat: The text comes from the chat template, which writes its own begin token.
    """
    if is_chat and tokenizer.chat_template is not None:
        return []
    ids = list(tokenizer("")["input_ids"])
    return ids[:1] if ids and ids[0] == tokenizer.bos_token_id else []


def tokenize(tokenizer: Any, parts: Sequence[Part], start: Sequence[int] = ()) -> Tokens:
    """Tokenize parts one after the other, so that no token reaches across a boundary.

    The text so far is tokenized as one where that only adds tokens, as generation would meet
    it; where a merge would reach back across the boundary, the new part is tokenized alone.

    Args:
        tokenizer: Of the base model.
        parts: In order.
        start: Ids to put before everything, see :func:`start_ids`.
    """
    text, ids, is_learned = "", list[int](), list[bool]()
    for part in parts:
        text += part.text
        joint = _ids(tokenizer, text)
        if joint[: len(ids)] != ids:
            joint = ids + _ids(tokenizer, part.text)
        is_learned += [part.is_learned] * (len(joint) - len(ids))
        ids = joint
    return Tokens([*start, *ids], [False] * len(start) + is_learned)


def fit(tokens: Tokens, max_length: int, kept: int = 0) -> Tokens:
    """Cut a tokenized text to ``max_length`` without losing what is to be learned last.

    The left goes first, up to one token before the last learned stretch (the model needs one
    to predict from), then the right.

    Args:
        tokens: The whole text.
        max_length: Tokens, at most.
        kept: Tokens at the start that stay, such as a begin token.
    """
    excess = len(tokens.ids) - max_length
    if excess <= 0:
        return tokens
    stretch = _last_learned_start(tokens.is_learned)
    cut = kept + max(0, min(excess, stretch - max(kept, 1)))
    ids = tokens.ids[:kept] + tokens.ids[cut:]
    is_learned = tokens.is_learned[:kept] + tokens.is_learned[cut:]
    return Tokens(ids[:max_length], is_learned[:max_length])


def chat_parts(tokenizer: Any, messages: Sequence[Mapping[str, str]]) -> list[Part]:
    """Split a conversation, as the model's chat template writes it, at the assistant's turns.

    Some templates rewrite earlier turns once later ones follow; a turn whose end cannot be
    found in the final text for that reason is given, not learned.

    Raises:
        DataError: The template refuses the messages, or their last turn cannot be found.
    """
    if tokenizer.chat_template is None:
        return _plain_chat_parts(tokenizer, messages)
    whole = _render(tokenizer, messages, is_prompt=False)
    parts, done = list[Part](), 0
    for i, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        before = _render(tokenizer, messages[:i], is_prompt=True)
        after = _render(tokenizer, messages[: i + 1], is_prompt=False)
        if not (whole.startswith(before) and whole.startswith(after) and done <= len(before)):
            continue
        parts.append(Part(whole[done : len(before)], is_learned=False))
        parts.append(Part(whole[len(before) : len(after)], is_learned=True))
        done = len(after)
    if not parts:
        raise DataError("the chat template hides where the assistant's turns begin and end")
    return [*parts, Part(whole[done:], is_learned=False)]


def chat_prompt(tokenizer: Any, prompt: str) -> str:
    """Return a user's message as the text after which the assistant answers.

    Raises:
        DataError: The chat template refuses it.
    """
    message = {"role": "user", "content": prompt}
    if tokenizer.chat_template is None:
        return f"{_line(message)}assistant:"
    return _render(tokenizer, [message], is_prompt=True)


def prompt_ids(tokenizer: Any, prompt: str, *, chat: bool) -> list[int]:
    """Return the tokens a model continues: those that stood before the answer in training.

    Raises:
        DataError: There are none, or the chat template refuses the prompt.
    """
    text = chat_prompt(tokenizer, prompt) if chat else prompt
    ids = list(tokenizer(text, add_special_tokens=False)["input_ids"])
    if not ids:
        raise DataError("the prompt has no token to continue from")
    return start_ids(tokenizer, is_chat=chat) + ids


def _plain_chat_parts(tokenizer: Any, messages: Sequence[Mapping[str, str]]) -> list[Part]:
    parts = list[Part]()
    for message in messages:
        if message["role"] == "assistant":
            parts.append(Part("assistant:", is_learned=False))
            answer = f" {message['content']}{tokenizer.eos_token or ''}\n"
            parts.append(Part(answer, is_learned=True))
        else:
            parts.append(Part(_line(message), is_learned=False))
    return parts


def _line(message: Mapping[str, str]) -> str:
    return f"{message['role']}: {message['content']}\n"


def _render(tokenizer: Any, messages: Sequence[Mapping[str, str]], *, is_prompt: bool) -> str:
    try:
        text = tokenizer.apply_chat_template(
            list(messages), tokenize=False, add_generation_prompt=is_prompt
        )
    except (jinja2.TemplateError, TypeError, ValueError) as error:
        raise DataError(f"the model's chat template refuses these messages: {error}") from error
    return str(text)


def _ids(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def _last_learned_start(is_learned: Sequence[bool]) -> int:
    """Return where the last stretch of learned tokens begins; 0 if there is none."""
    end = len(is_learned)
    while end > 0 and not is_learned[end - 1]:
        end -= 1
    start = end
    while start > 0 and is_learned[start - 1]:
        start -= 1
    return start
