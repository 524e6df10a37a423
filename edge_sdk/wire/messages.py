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

MAX_WAIT_S = 86_400.0
"""Longest time after which a server may ask a waiting device to come back."""

MAX_VERSION = 2**31 - 1
"""Largest number of an adapter version that every database keeps in a plain integer."""

MAX_EVALUATED = 10_000
"""Most held-out examples one evaluation may speak of: what a device can weigh in a mean."""

MAX_LOSS = 1e4
"""Largest loss an evaluation may tell; a version beyond it, or without a finite loss, has it."""

MAX_STEP_SIZE = 1e30
"""Largest step size that float32 arithmetic can take at all."""

UPLOADS_HEADER = "Edge-Uploads"
"""Header of the answer to a check-in that offers another way for an update, if there is one."""

PRESIGNED = "presigned"
"""Its value where an update may be put into the object store, at an address the server signs."""

TaskType = Literal["CAUSAL_LM", "SEQ_CLS"]
WireDtype = Literal["fp32", "bf16"]
UpdateEncoding = Literal["wire", "float16", "int8", "int4"]
Optimizer = Literal["adamw", "sgd"]
Weighting = Literal["uniform", "examples", "inverse_probability"]
Combination = Literal["mean", "trimmed_mean", "median"]
ServerOptimizer = Literal["average", "momentum", "adam"]
Sketching = Literal["independent", "balanced"]
Stragglers = Literal["refuse", "fold"]
CheckInState = Literal["assigned", "wait", "finished"]
RoundState = Literal["open", "closing", "closed"]

_TASK_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_SIGNATURE = re.compile(r"[0-9a-f]{128}")


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
        update_encoding: Numbers of an update on their way to the server: the adapter's
            ``wire_dtype``, or 16, 8 or 4 bits each with a scale for every 64 of one rank.
        error_feedback: Whether a device keeps what the encoding of an update left out, rank by
            rank, and adds it to the next update of those ranks.
    """

    local_steps: int = 10
    local_lr: float = 1e-3
    optimizer: Optimizer = "adamw"
    weight_decay: float = 0.0
    batch_size: int = 8
    max_length: int = 256
    update_encoding: UpdateEncoding = "wire"
    error_feedback: bool = False

    def __post_init__(self) -> None:
        for name in ("local_steps", "batch_size", "max_length"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)} must be at least 1")
        if not 0 < self.local_lr <= MAX_STEP_SIZE:
            raise ConfigError(f"local_lr={self.local_lr} must be in 0..{MAX_STEP_SIZE}, above 0")
        if not (math.isfinite(self.weight_decay) and self.weight_decay >= 0):
            raise ConfigError(f"weight_decay={self.weight_decay} must be 0 or more")
        if self.error_feedback and self.update_encoding == "wire":
            raise ConfigError(
                "error_feedback needs an encoding that leaves something out: update_encoding is "
                "'wire', take 'float16', 'int8' or 'int4'"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundPolicy:
    """When rounds open and close, and who trains which ranks in them.

    A cohort larger than the quorum is over-selected. With late updates folded as well, devices
    of different speed never wait for each other: buffered asynchronous training, in which a
    round is the buffer.

    Attributes:
        rounds: Rounds until the task is finished.
        cohort_size: Devices that get work in one round, at most; in a prolonged round those
            that sent nothing give their place up to others, but may still submit.
        quorum: Accepted updates that close a round at once.
        min_updates: Updates a round needs at its deadline; with fewer it is prolonged.
        deadline_s: Length of a round in seconds.
        sketch_sizes: The ladder of k that devices can be given.
        sketching: Ranks of a device drawn independently of all others (the paper), or balanced:
            the draws of a task visit all ranks in turn, with the same chance of each.
        stragglers: Updates of a closed round are refused, or folded into the open one.
        max_staleness: Adapter versions a folded update may be behind.
    """

    rounds: int
    cohort_size: int
    quorum: int
    sketch_sizes: list[int]
    min_updates: int = 1
    deadline_s: float = 600.0
    sketching: Sketching = "independent"
    stragglers: Stragglers = "refuse"
    max_staleness: int = 4

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
        if not self.sketch_sizes:
            raise ConfigError("the task needs at least one sketch size k")
        if not 1 <= self.max_staleness <= MAX_COUNT:
            raise ConfigError(f"max_staleness={self.max_staleness} must be at least 1 version")


@dataclass(frozen=True, slots=True, kw_only=True)
class AggregationSpec:
    """How the updates of a round become the next version of the adapter.

    Attributes:
        weighting: Equal weights (the paper), by number of training examples, or by one over
            the share of the rounds a device took part in.
        combination: Weighted mean, or, per number and over the devices that trained its rank,
            the median or a mean without the extremes; the last two weigh all alike.
        trim: Share of the values that ``trimmed_mean`` leaves out at each end.
        server_optimizer: What is done with the mean update; a rank nobody trained never moves.
        server_lr: Step size on it.
        momentum: Decay of the mean of past updates, of ``momentum`` and ``adam``.
        second_momentum: Decay of the mean of their squares, of ``adam``.
        epsilon: Added to the root of that, of ``adam``.
        staleness_exponent: A folded update that is s versions behind weighs ``(1 + s) ** -x``.
        max_norm: Largest root mean square of an update's numbers; a larger one is quarantined.
        max_norm_ratio: The same, in multiples of the median of its round.
    """

    weighting: Weighting = "uniform"
    combination: Combination = "mean"
    trim: float = 0.1
    server_optimizer: ServerOptimizer = "average"
    server_lr: float = 1.0
    momentum: float = 0.9
    second_momentum: float = 0.99
    epsilon: float = 1e-3
    staleness_exponent: float = 0.5
    max_norm: float | None = None
    max_norm_ratio: float | None = None

    def __post_init__(self) -> None:
        if not 0 < self.server_lr <= MAX_STEP_SIZE:
            raise ConfigError(f"server_lr={self.server_lr} must be in 0..{MAX_STEP_SIZE}, above 0")
        if self.combination != "mean" and self.weighting != "uniform":
            raise ConfigError(
                f"combination={self.combination} weighs all updates alike: weighting="
                f"{self.weighting} needs combination=mean"
            )
        if not 0 <= self.trim < 0.5:
            raise ConfigError(f"trim={self.trim} must be at least 0 and below 0.5")
        for name in ("momentum", "second_momentum"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)} must be at least 0 and below 1")
        if not (math.isfinite(self.epsilon) and self.epsilon > 0):
            raise ConfigError(f"epsilon={self.epsilon} must be a positive number")
        if not (math.isfinite(self.staleness_exponent) and self.staleness_exponent >= 0):
            raise ConfigError(f"staleness_exponent={self.staleness_exponent} must be 0 or more")
        for name in ("max_norm", "max_norm_ratio"):
            bound = getattr(self, name)
            if bound is not None and not (math.isfinite(bound) and bound > 0):
                raise ConfigError(
                    f"{name}={bound} must be a positive number; leave it out for none"
                )


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskSpec:
    """Everything a fleet agrees on before the first round.

    Attributes:
        name: Lower-case letters, digits and dashes; part of every address.
        base: The frozen model.
        adapter: What is trained.
        training: What a device does in a round.
        policy: How rounds run.
        aggregation: How updates are combined.
    """

    name: str
    base: BaseModel
    adapter: AdapterSpec
    training: TrainingSpec
    policy: RoundPolicy
    aggregation: AggregationSpec = field(default_factory=AggregationSpec)
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
        public_key: The device's Ed25519 key, 64 hex digits.
        proof: Signature of that key over :func:`edge_sdk.wire.proofs.enrolment_statement`.
    """

    enrolment_token: str
    name: str
    public_key: str
    proof: str

    def __post_init__(self) -> None:
        if not 1 <= len(self.name) <= 100 or not self.name.isprintable():
            raise ConfigError(f"device name {self.name!r} must be 1 to 100 printable characters")
        _check_key(self.public_key)
        _check_signature("proof", self.proof)


@dataclass(frozen=True, slots=True, kw_only=True)
class Enrolment:
    """The identity of a device.

    Attributes:
        device_id: Given by the server.
        signing_key: Public key the device trusts from now on, 64 hex digits; it signs adapters.
    """

    device_id: str
    signing_key: str = ""

    def __post_init__(self) -> None:
        if self.signing_key and not _DIGEST.fullmatch(self.signing_key):
            raise ConfigError(f"signing_key={self.signing_key[:20]!r} is not 64 hex digits")


@dataclass(frozen=True, slots=True, kw_only=True)
class Challenge:
    """Something new for a device to sign.

    Attributes:
        nonce: Good once, for one device.
        expires_in_s: Seconds until it is good no more.
    """

    nonce: str
    expires_in_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class AccessRequest:
    """A device answers a challenge.

    Attributes:
        nonce: Of the challenge.
        signature: Of the device's key over :func:`edge_sdk.wire.proofs.access_statement`.
    """

    nonce: str
    signature: str

    def __post_init__(self) -> None:
        _check_signature("signature", self.signature)


@dataclass(frozen=True, slots=True, kw_only=True)
class AccessToken:
    """What opens the device's endpoints for a while.

    Attributes:
        access_token: Secret; sent as a bearer token, never logged.
        expires_in_s: Seconds until it opens nothing any more.
    """

    access_token: str
    expires_in_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyChange:
    """A device asks to be known by a new key.

    Attributes:
        nonce: Of a challenge.
        public_key: The new Ed25519 key, 64 hex digits.
        signature: Of the old key over :func:`edge_sdk.wire.proofs.key_change_statement`.
        new_signature: Of the new key over the same.
    """

    nonce: str
    public_key: str
    signature: str
    new_signature: str

    def __post_init__(self) -> None:
        _check_key(self.public_key)
        _check_signature("signature", self.signature)
        _check_signature("new_signature", self.new_signature)


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
        if not _DIGEST.fullmatch(self.digest):
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


def _check_key(public_key: str) -> None:
    if not _DIGEST.fullmatch(public_key):
        raise ConfigError(f"public_key={public_key[:20]!r} is not 64 hex digits")


def _check_signature(name: str, signature: str) -> None:
    if not _SIGNATURE.fullmatch(signature):
        raise ConfigError(f"{name}={signature[:20]!r} is not 128 hex digits")


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
