"""What a task is: its base model, adapter, training, rounds and aggregation."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from typing import Literal

from edge_sdk.errors import ConfigError
from edge_sdk.sketch import check_sizes
from edge_sdk.wire.protocol import DIGEST, MAX_COUNT, PROTOCOL

MAX_STEP_SIZE = 1e30
"""Largest step size that float32 arithmetic can take at all."""

TaskType = Literal["CAUSAL_LM", "SEQ_CLS"]
WireDtype = Literal["fp32", "bf16"]
UpdateEncoding = Literal["wire", "float16", "int8", "int4"]
Optimizer = Literal["adamw", "sgd"]
Weighting = Literal["uniform", "examples", "inverse_probability"]
Combination = Literal["mean", "trimmed_mean", "median"]
ServerOptimizer = Literal["average", "momentum", "adam"]
Sketching = Literal["independent", "balanced"]
Stragglers = Literal["refuse", "fold"]

_TASK_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")


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
        if not DIGEST.fullmatch(self.digest):
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
