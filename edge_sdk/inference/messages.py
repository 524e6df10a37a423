"""The JSON lines between a host app and its inference process; light enough for any host."""

from __future__ import annotations

from typing import Literal

import msgspec


class Generate(msgspec.Struct, frozen=True, kw_only=True, tag_field="do", tag="generate"):
    """Asks for text; answered by :class:`Text` as it comes, then :class:`Done`.

    Attributes:
        id: Chosen by the host; comes back in every event about this request.
        prompt: What to continue; with ``chat``, what the user says.
        max_new_tokens: Upper limit.
        chat: Put the prompt into the model's chat template.
        temperature: 0 always takes the most probable token.
        top_p: Draw from the most probable tokens that together reach this probability.
        seed: Of the draws.
    """

    id: str
    prompt: str
    max_new_tokens: int = 128
    chat: bool = False
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None


class Classify(msgspec.Struct, frozen=True, kw_only=True, tag_field="do", tag="classify"):
    """Asks for the probability of each label; answered by :class:`Scores`.

    Attributes:
        id: Chosen by the host.
        text: To a classifier; to a language model the prompt before the choices.
        choices: For a language model: continuations, which are the labels.
    """

    id: str
    text: str
    choices: list[str] = []


class Swap(msgspec.Struct, frozen=True, kw_only=True, tag_field="do", tag="swap"):
    """Asks for another adapter from the next request on; answered by :class:`Swapped`.

    Attributes:
        id: Chosen by the host.
        adapter: PEFT folder or adapter file; None for the base alone.
    """

    id: str
    adapter: str | None = None


class Stop(msgspec.Struct, frozen=True, kw_only=True, tag_field="do", tag="stop"):
    """Ends a request, running or waiting; answered by that one's :class:`Done`.

    Attributes:
        id: Of the request to end.
    """

    id: str


Request = Generate | Classify | Swap | Stop


class Ready(msgspec.Struct, frozen=True, kw_only=True, tag_field="event", tag="ready"):
    """The first event: the model is open."""


class Text(msgspec.Struct, frozen=True, kw_only=True, tag_field="event", tag="text"):
    """A piece of text; never a part of a character."""

    id: str
    text: str


class Done(msgspec.Struct, frozen=True, kw_only=True, tag_field="event", tag="done"):
    """The last event about a text.

    Attributes:
        id: Of the request.
        reason: It came to its end or limit, or was stopped.
    """

    id: str
    reason: Literal["end", "stopped"]


class Scores(msgspec.Struct, frozen=True, kw_only=True, tag_field="event", tag="scores"):
    """The probability of each label."""

    id: str
    scores: dict[str, float]


class Swapped(msgspec.Struct, frozen=True, kw_only=True, tag_field="event", tag="swapped"):
    """The new adapter is in use.

    Attributes:
        id: Of the request.
        seconds: It took.
    """

    id: str
    seconds: float


class Failed(msgspec.Struct, frozen=True, kw_only=True, tag_field="event", tag="failed"):
    """A request was refused; the process goes on.

    Attributes:
        id: Of the request; empty if it could not be read, or the model could not be opened.
        code: Of :mod:`edge_sdk.errors`.
        message: For people.
    """

    id: str
    code: str
    message: str


Event = Ready | Text | Done | Scores | Swapped | Failed
