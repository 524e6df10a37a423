"""The JSON messages of the protocol, as frozen dataclasses that check themselves.

FastAPI serves these very classes, the device decodes into them with msgspec, so the OpenAPI
document, the server and the client cannot disagree. Readers ignore fields they do not know.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from typing import Literal, TypeVar

import msgspec

from edge_sdk.errors import ConfigError, MalformedMessage, ProtocolMismatch
from edge_sdk.sketch import check_sizes
from edge_sdk.wire.typed_json import decode_json

PROTOCOL = 1
"""Version of messages, payloads and endpoints; both sides refuse any other."""

MAX_COUNT = 2**53
"""Largest integer that every JSON reader and database keeps exactly."""

MAX_STEP_SIZE = 1e30
"""Largest step size that float32 arithmetic can take at all."""

TaskType = Literal["CAUSAL_LM", "SEQ_CLS"]
WireDtype = Literal["fp32", "bf16"]
Optimizer = Literal["adamw", "sgd"]
Weighting = Literal["uniform", "examples"]
CheckInState = Literal["assigned", "wait", "finished"]
RoundState = Literal["open", "closing", "closed"]

_TASK_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
_DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerSpec:
    """One adapted linear layer.

    Attributes:
        name: Path of the module in the Hugging Face model.
        d_in: Input features.
        d_out: Output features.
    """

    name: str
    d_in: int
    d_out: int

    def __post_init__(self) -> None:
        if not self.name or self.d_in < 1 or self.d_out < 1:
            raise ConfigError(
                f"layer {self.name!r} with d_in={self.d_in}, d_out={self.d_out}: "
                "a layer has a name and at least one feature on each side"
            )

    @property
    def ending(self) -> str:
        """Last part of the name, which target modules are matched with."""
        return self.name.rpartition(".")[2]


@dataclass(frozen=True, slots=True, kw_only=True)
class DenseSpec:
    """One parameter that is trained whole and averaged densely, such as a classifier head.

    Attributes:
        name: Path of the parameter in the Hugging Face model.
        shape: Its shape.
    """

    name: str
    shape: list[int]

    def __post_init__(self) -> None:
        if not self.name or not self.shape or min(self.shape) < 1:
            raise ConfigError(
                f"dense parameter {self.name!r} of shape {self.shape}: a dense parameter has a "
                "name and at least one element along each axis"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseModel:
    """The frozen model every device of a task must hold.

    Attributes:
        model: Hub id or the name the operator gave; devices may map it to a local folder.
        revision: Commit on the hub, if it came from there.
        digest: SHA-256 over its safetensors files, 64 hex digits.
        task_type: PEFT's name for what the model does.
        labels: Class names of a sequence classifier, in the order of its outputs.
    """

    model: str
    digest: str
    revision: str | None = None
    task_type: TaskType = "CAUSAL_LM"
    labels: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        if not self.model:
            raise ConfigError("the base model needs a name: a hub id or a folder")
        if not _DIGEST.fullmatch(self.digest):
            raise ConfigError(f"base model digest {self.digest!r} is not 64 hex digits")
        if self.task_type == "SEQ_CLS" and len(set(self.labels)) < 2:
            raise ConfigError(
                f"a sequence classifier needs at least two different labels, got {self.labels}"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterSpec:
    """The global adapter: its rank, scaling, and the layers it sits on.

    Attributes:
        r: Global rank.
        lora_alpha: Numerator of the LoRA scaling.
        target_modules: Module name endings, as PEFT takes them.
        layers: Every adapted layer; the order is part of the task, sketches are drawn in it.
        use_rslora: Scale by ``alpha / sqrt(r)`` instead of ``alpha / r``.
        dense: Parameters outside the adapter that are trained whole.
        wire_dtype: Number format of every tensor body.
    """

    r: int
    lora_alpha: float
    target_modules: list[str]
    layers: list[LayerSpec]
    use_rslora: bool = False
    dense: list[DenseSpec] = field(default_factory=list)
    wire_dtype: WireDtype = "fp32"

    def __post_init__(self) -> None:
        check_sizes(self.r, 1)
        if not (math.isfinite(self.lora_alpha) and self.lora_alpha > 0):
            raise ConfigError(f"lora_alpha={self.lora_alpha} must be a positive number")
        if not self.layers:
            raise ConfigError("an adapter needs at least one target layer")
        names = [layer.name for layer in self.layers] + [dense.name for dense in self.dense]
        if len(set(names)) != len(names):
            raise ConfigError("two layers of the adapter have the same name")
        too_thin = [x.name for x in self.layers if self.r > min(x.d_in, x.d_out)]
        if too_thin:
            raise ConfigError(
                f"global rank r={self.r} exceeds the smaller side of layer {too_thin[0]}; "
                "a larger rank adds nothing"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingSpec:
    """What a device does in one round.

    Attributes:
        local_steps: Optimizer steps (H).
        local_lr: Step size on the device.
        optimizer: AdamW or plain SGD; its state lives for one round.
        weight_decay: Decoupled, of AdamW; L2 of SGD.
        batch_size: Examples per optimizer step.
        max_length: Tokens per example; longer ones are cut.
    """

    local_steps: int = 10
    local_lr: float = 1e-3
    optimizer: Optimizer = "adamw"
    weight_decay: float = 0.0
    batch_size: int = 8
    max_length: int = 256

    def __post_init__(self) -> None:
        for name in ("local_steps", "batch_size", "max_length"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)} must be at least 1")
        if not 0 < self.local_lr <= MAX_STEP_SIZE:
            raise ConfigError(f"local_lr={self.local_lr} must be in 0..{MAX_STEP_SIZE}, above 0")
        if not (math.isfinite(self.weight_decay) and self.weight_decay >= 0):
            raise ConfigError(f"weight_decay={self.weight_decay} must be 0 or more")


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundPolicy:
    """When rounds open and close, and how their updates are combined.

    Attributes:
        rounds: Rounds until the task is finished.
        cohort_size: Devices that get work in one round, at most; in a prolonged round those
            that sent nothing give their place up to others, but may still submit.
        quorum: Accepted updates that close a round at once.
        min_updates: Updates a round needs at its deadline; with fewer it is prolonged.
        deadline_s: Length of a round in seconds.
        sketch_sizes: The ladder of k that devices can be given.
        weighting: Equal weights (the paper), or by number of training examples.
        server_lr: Step size of the server on the mean update.
    """

    rounds: int
    cohort_size: int
    quorum: int
    sketch_sizes: list[int]
    min_updates: int = 1
    deadline_s: float = 600.0
    weighting: Weighting = "uniform"
    server_lr: float = 1.0

    def __post_init__(self) -> None:
        if self.rounds < 1:
            raise ConfigError(f"rounds={self.rounds} must be at least 1")
        if not 1 <= self.min_updates <= self.quorum <= self.cohort_size:
            raise ConfigError(
                f"min_updates={self.min_updates}, quorum={self.quorum}, "
                f"cohort_size={self.cohort_size}: must satisfy 1 <= min_updates <= quorum <= cohort"
            )
        if not (math.isfinite(self.deadline_s) and self.deadline_s > 0):
            raise ConfigError(f"deadline_s={self.deadline_s} must be a positive number of seconds")
        if not 0 < self.server_lr <= MAX_STEP_SIZE:
            raise ConfigError(f"server_lr={self.server_lr} must be in 0..{MAX_STEP_SIZE}, above 0")
        if not self.sketch_sizes:
            raise ConfigError("the task needs at least one sketch size k")


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskSpec:
    """Everything a fleet agrees on before the first round.

    Attributes:
        name: Lower-case letters, digits and dashes; part of every address.
        base: The frozen model.
        adapter: What is trained.
        training: What a device does in a round.
        policy: How rounds run.
    """

    name: str
    base: BaseModel
    adapter: AdapterSpec
    training: TrainingSpec
    policy: RoundPolicy
    protocol: int = PROTOCOL

    def __post_init__(self) -> None:
        if not _TASK_NAME.fullmatch(self.name):
            raise ConfigError(
                f"task name {self.name!r} must be 1 to 63 lower-case letters, digits and dashes"
            )
        for k in self.policy.sketch_sizes:
            check_sizes(self.adapter.r, k)


@dataclass(frozen=True, slots=True, kw_only=True)
class EnrolRequest:
    """A new device asks to be let in.

    Attributes:
        enrolment_token: Given to the owner by the operator.
        name: For people; need not be unique.
    """

    enrolment_token: str
    name: str

    def __post_init__(self) -> None:
        if not 1 <= len(self.name) <= 100 or not self.name.isprintable():
            raise ConfigError(f"device name {self.name!r} must be 1 to 100 printable characters")


@dataclass(frozen=True, slots=True, kw_only=True)
class Enrolment:
    """The identity of a device; the token is shown once and stored hashed on the server."""

    device_id: str
    device_token: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckIn:
    """A device says it is ready and what it can afford.

    Attributes:
        base_digest: Digest of the base model it holds.
        affordable_k: Largest sketch size its plan allows. Asking again in a round with less than
            the assigned size makes the assignment smaller; with more it changes nothing.
        examples: Training examples it holds.
    """

    base_digest: str
    affordable_k: int
    examples: int
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
    """

    task: str
    round_number: int
    adapter_version: int
    k: int
    seed: int
    training: TrainingSpec
    deadline_s: float


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
class Receipt:
    """The server's word that an update is durable and will be counted exactly once."""

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
    """

    title: str
    status: int
    code: str
    detail: str
    type: str = "about:blank"


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


def check_protocol(theirs: int) -> None:
    """Refuse to talk across protocol versions.

    Raises:
        ProtocolMismatch: The other side speaks another version.
    """
    if theirs != PROTOCOL:
        raise ProtocolMismatch(
            f"the other side speaks protocol {theirs}, this side {PROTOCOL}: "
            "install the same release on both"
        )
