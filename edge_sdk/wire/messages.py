"""The JSON messages of a round, as frozen dataclasses that check themselves.

FastAPI serves these very classes, the device decodes into them with msgspec, so the OpenAPI
document, the server and the client cannot disagree. Readers ignore fields they do not know.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, TypeVar

import msgspec

from edge_sdk.errors import ConfigError, MalformedMessage
from edge_sdk.wire.protocol import DIGEST, MAX_COUNT, MAX_VERSION, PROTOCOL
from edge_sdk.wire.task import TrainingSpec
from edge_sdk.wire.typed_json import decode_json

MAX_WAIT_S = 86_400.0
"""Longest time after which a server may ask a waiting device to come back."""

MAX_EVALUATED = 10_000
"""Most held-out examples one evaluation may speak of: what a device can weigh in a mean."""

MAX_LOSS = 1e4
"""Largest loss an evaluation may tell; a version beyond it, or without a finite loss, has it."""

UPLOADS_HEADER = "Edge-Uploads"
"""Header of the answer to a check-in that offers another way for an update, if there is one."""

PRESIGNED = "presigned"
"""Its value where an update may be put into the object store, at an address the server signs."""

CheckInState = Literal["assigned", "wait", "finished"]
RoundState = Literal["open", "closing", "closed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckIn:
    """A device says it is ready and what it can afford.

    Attributes:
        base_digest: Digest of the base model it holds.
        affordable_k: Largest sketch size its plan allows. Asking again in a round with less than
            the assigned size makes the assignment smaller; with more it changes nothing.
        examples: Training examples it holds.
        is_relay: Whether it is a server that trains nothing and sends the sum of its devices.
    """

    base_digest: str
    affordable_k: int
    examples: int
    is_relay: bool = False
    protocol: int = PROTOCOL

    def __post_init__(self) -> None:
        if not (1 <= self.affordable_k <= MAX_COUNT and 1 <= self.examples <= MAX_COUNT):
            raise ConfigError(
                f"affordable_k={self.affordable_k}, examples={self.examples}: both must be in "
                f"1..{MAX_COUNT}; a device that can afford nothing does not check in"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Assignment:
    """What one device trains in one round.

    Attributes:
        task: Name of the task.
        round_number: From 1.
        adapter_version: The version the slice is cut from; 0 is the initial adapter.
        k: Sketch size.
        seed: Of this device in this round; orders the training data on the device.
        training: Hyper-parameters.
        deadline_s: Seconds left, counted from the reply.
        members: Devices whose sum a relay may send.
    """

    task: str
    round_number: int
    adapter_version: int
    k: int
    seed: int
    training: TrainingSpec
    deadline_s: float
    members: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class SliceRanks:
    """Which ranks a slice holds; travels inside its tensor body if the task has error feedback.

    Attributes:
        ranks: For each layer of the task, in its order, the k ranks, sorted.
    """

    ranks: list[list[int]]


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckInReply:
    """Work, a request to come back later, or the end.

    Attributes:
        state: ``assigned``, ``wait`` or ``finished``.
        round_number: The current round, or the last one when finished.
        retry_after_s: When to check in again, if waiting.
        assignment: The work, if assigned.
    """

    state: CheckInState
    round_number: int
    retry_after_s: float = 0.0
    assignment: Assignment | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.retry_after_s <= MAX_WAIT_S:
            raise ConfigError(
                f"retry_after_s={self.retry_after_s} must be in 0..{MAX_WAIT_S:.0f}: "
                "a device waits a day at most"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdateReport:
    """What a device tells about its training; travels inside the tensor body of its update.

    Attributes:
        examples: Training examples it holds, for weighting by examples.
        loss: Mean training loss over the local steps.
        seconds: Wall time of the local steps.
        peak_rss_bytes: Peak memory of the device process so far.
    """

    examples: int
    loss: float
    seconds: float
    peak_rss_bytes: int
    protocol: int = PROTOCOL

    def __post_init__(self) -> None:
        if not (1 <= self.examples <= MAX_COUNT and 0 <= self.peak_rss_bytes <= MAX_COUNT):
            raise ConfigError(
                f"examples={self.examples}, peak_rss_bytes={self.peak_rss_bytes}: must be in "
                f"1..{MAX_COUNT} and 0..{MAX_COUNT}"
            )
        if not (math.isfinite(self.loss) and math.isfinite(self.seconds) and self.seconds >= 0):
            raise ConfigError(
                f"loss={self.loss}, seconds={self.seconds}: must be finite, and no time negative"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationReport:
    """How an adapter version did on one device's held-out examples, and whether it is used.

    Attributes:
        version: That was evaluated.
        examples: It was evaluated on.
        loss_before: Mean loss without the version: with the one in use, or the base model alone.
        loss_after: Mean loss with it.
        accepted: Whether the device uses it since.
        accuracy: Share of the examples it classifies rightly; for classifiers alone.
    """

    version: int
    examples: int
    loss_before: float
    loss_after: float
    accepted: bool
    accuracy: float | None = None
    protocol: int = PROTOCOL

    def __post_init__(self) -> None:
        if not (0 <= self.version <= MAX_VERSION and 1 <= self.examples <= MAX_EVALUATED):
            raise ConfigError(
                f"version={self.version}, examples={self.examples}: must be in 0..{MAX_VERSION} "
                f"and 1..{MAX_EVALUATED}"
            )
        for name in ("loss_before", "loss_after"):
            if not 0 <= getattr(self, name) <= MAX_LOSS:
                raise ConfigError(f"{name}={getattr(self, name)} must be in 0..{MAX_LOSS:.0f}")
        if self.accuracy is not None and not 0 <= self.accuracy <= 1:
            raise ConfigError(f"accuracy={self.accuracy} must be in 0..1")


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdateNotice:
    """A device says which update it puts into the object store: before, and when it is there.

    Attributes:
        size_bytes: Of its tensor body.
        digest: SHA-256 of its tensor body, 64 hex digits.
    """

    size_bytes: int
    digest: str

    def __post_init__(self) -> None:
        if not 1 <= self.size_bytes <= MAX_COUNT:
            raise ConfigError(f"size_bytes={self.size_bytes} must be in 1..{MAX_COUNT}")
        if not DIGEST.fullmatch(self.digest):
            raise ConfigError(f"digest={self.digest[:20]!r} is not 64 hex digits")


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldParts:
    """Which parts of an update the server has.

    Attributes:
        parts: Their numbers, from 0, in order.
    """

    parts: list[int]


@dataclass(frozen=True, slots=True, kw_only=True)
class UploadPlace:
    """Where an update may be put with one ``PUT``, by whoever knows the address.

    Attributes:
        url: Secret; in the object store, signed by the server.
        expires_in_s: Seconds within which the upload must begin.
    """

    url: str
    expires_in_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """The server's word that an update is durable: counted once, or kept and quarantined."""

    task: str
    round_number: int
    digest: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundStatus:
    """One round as anybody in the fleet may see it.

    Attributes:
        round_number: From 1.
        state: ``open``, ``closing`` (frozen, being aggregated) or ``closed``.
        assigned: Devices that got work.
        accepted: Updates that are durable.
        deadline_s: Seconds left; 0 once the round is not open.
        adapter_version: The version the round produced, once closed.
    """

    round_number: int
    state: RoundState
    assigned: int
    accepted: int
    deadline_s: float
    adapter_version: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterInfo:
    """One version of the global adapter.

    Attributes:
        version: 0 is the initial adapter.
        round_number: The round that made it; 0 for the initial one.
        digest: SHA-256 of its tensor file.
        size_bytes: Of its tensor file.
        created_at: Seconds since 1970, UTC.
    """

    version: int
    round_number: int
    digest: str
    size_bytes: int
    created_at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """An error as it travels: RFC 9457 ``application/problem+json``.

    Attributes:
        title: The class of error in a few words.
        status: HTTP status.
        code: Stable name, see :mod:`edge_sdk.errors`.
        detail: What came, what is allowed, what to do.
        request_id: Of the request, for the operator, who finds it in the server's log.
    """

    title: str
    status: int
    code: str
    detail: str
    type: str = "about:blank"
    request_id: str | None = None


Message = TypeVar("Message")


def encode_message(message: object) -> bytes:
    """Encode one message as JSON."""
    return msgspec.json.encode(message)


def decode_message(kind: type[Message], body: bytes) -> Message:
    """Decode and check one JSON message.

    Raises:
        MalformedMessage: The body is not JSON, or not of this form; says which field.
    """
    try:
        return decode_json(body, kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise MalformedMessage(f"not a valid {kind.__name__}: {error}") from error
