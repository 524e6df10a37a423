"""What a simulation is told: a TOML file of one task, one fleet, and variants of them.

A file describes one run; ``[[variants]]`` and ``seeds`` make a sweep of it, every variant with
every seed. A variant is a table of the fields in which it differs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal, TypeVar

import msgspec

from edge_sdk.compute.execution import Quantization
from edge_sdk.errors import ConfigError
from edge_sdk.sketch import default_sketch_sizes
from edge_sdk.wire.task import AggregationSpec, Sketching, TaskType, TrainingSpec
from server.methods import method_of

_Spec = TypeVar("_Spec")


class AdapterConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The global adapter.

    Attributes:
        r: Global rank. A method of equal ranks takes that of its weakest device instead.
        lora_alpha: Numerator of the LoRA scaling; None is twice the rank.
        target_modules: Module name endings; None takes the usual ones of the family.
        use_rslora: Scale by ``alpha / sqrt(r)``.
    """

    r: int
    lora_alpha: float | None = None
    target_modules: tuple[str, ...] | None = None
    use_rslora: bool = False


class ModelConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A real base model and real data; devices really train.

    Attributes:
        model: Hugging Face folder.
        data: Folder with one ``<device>.jsonl`` for each device, and what is held out:
            ``choices.jsonl`` of questions with choices, else ``heldout.jsonl``.
        task_type: PEFT's name for what the model does.
        labels: Class names of a sequence classifier.
        quantization: Number format of the frozen layers.
        threads: CPU threads.
    """

    model: str
    data: str
    task_type: TaskType = "CAUSAL_LM"
    labels: tuple[str, ...] = ()
    quantization: Quantization = "fp32"
    threads: int = 1


class StandInConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """No model: devices send random updates of the right form, to try everything else.

    Attributes:
        layers: ``(d_in, d_out)`` of every adapted layer.
    """

    layers: tuple[tuple[int, int], ...] = ((64, 64), (64, 64))


class DeviceClass(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Devices that are alike.

    Attributes:
        share: Of the fleet; those of all classes add up to 1.
        k: Ranks that such a device can afford; None plans with its ``profile``.
        step_s: Seconds of one local step; None plans with its ``profile``.
        profile: Name of a device profile.
        uplink_bytes_per_s: To the server.
        downlink_bytes_per_s: From the server.
    """

    share: float
    k: int | None = None
    step_s: float | None = None
    profile: str | None = None
    uplink_bytes_per_s: float = 1e6
    downlink_bytes_per_s: float = 4e6

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise ValueError(f"share={self.share} must be above 0 and at most 1")
        if self.profile is None and (self.k is None or self.step_s is None):
            raise ValueError("a class of devices needs k and step_s, or a profile to plan with")
        if min(self.uplink_bytes_per_s, self.downlink_bytes_per_s) <= 0:
            raise ValueError("links need more than 0 bytes per second")


class FleetConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Who there is.

    Attributes:
        devices: How many; with real data as many as there are files if it is left out.
        classes: What they are.
        dropout: Chance that a device which got work is never heard of again.
        hours_per_day: For how long a device is available, once a day at its own time.
    """

    classes: tuple[DeviceClass, ...]
    devices: int | None = None
    dropout: float = 0.0
    hours_per_day: float = 24.0

    def __post_init__(self) -> None:
        if not self.classes or not math.isclose(sum(x.share for x in self.classes), 1.0):
            raise ValueError("the shares of the classes must add up to 1")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout={self.dropout} must be at least 0 and below 1")
        if not 0 < self.hours_per_day <= 24:
            raise ValueError(f"hours_per_day={self.hours_per_day} must be above 0, at most 24")


class RunConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One run.

    Attributes:
        rounds: At most.
        fleet: The devices.
        adapter: What they train.
        method: How their work becomes one adapter; see :data:`server.methods.METHODS`.
        seed: Of everything random: the same file gives the same result.
        cohort_size: Devices that get work in a round; None is all of them.
        quorum: Updates that close a round at once; None is the cohort.
        min_updates: Updates without which a round is prolonged.
        deadline_s: Virtual seconds of a round.
        sketching: How ranks are drawn.
        sketch_sizes: The ladder of k; None is the powers of two up to r.
        upload_budget_bytes: The run ends when devices have sent so much; None is no end.
        evaluate_every: Rounds between two evaluations; the first and the last model always are.
        training: Fields of :class:`edge_sdk.wire.task.TrainingSpec`.
        aggregation: Fields of :class:`edge_sdk.wire.task.AggregationSpec`.
        server: ``method`` keeps everything in memory and knows every method; ``coordinator`` is
            the server's own, with its database and files.
        learner: A real model and data; None is a stand-in.
        stand_in: What to train where there is no model.
    """

    rounds: int
    fleet: FleetConfig
    adapter: AdapterConfig
    method: str = "fslora"
    seed: int = 0
    cohort_size: int | None = None
    quorum: int | None = None
    min_updates: int = 1
    deadline_s: float = 86_400.0
    sketching: Sketching = "independent"
    sketch_sizes: tuple[int, ...] | None = None
    upload_budget_bytes: int | None = None
    evaluate_every: int = 1_000_000
    training: dict[str, Any] = {}
    aggregation: dict[str, Any] = {}
    server: Literal["method", "coordinator"] = "method"
    learner: ModelConfig | None = None
    stand_in: StandInConfig = StandInConfig()

    def __post_init__(self) -> None:
        method_of(self.method)
        self.training_spec()
        self.aggregation_spec()
        if self.rounds < 1 or self.evaluate_every < 1:
            raise ValueError("rounds and evaluate_every must be 1 or more")
        if self.server == "coordinator" and self.method != "fslora":
            raise ValueError(f"the server runs fslora; {self.method} needs server=method")
        turns = method_of(self.method).turns != ("AB",)
        if turns and self.aggregation_spec().server_optimizer != "average":
            raise ValueError(
                f"{self.method} freezes a factor, which a server optimizer would move: take "
                "server_optimizer=average"
            )

    def training_spec(self) -> TrainingSpec:
        """Return what a device does in a round."""
        return _spec(TrainingSpec, self.training)

    def aggregation_spec(self) -> AggregationSpec:
        """Return how updates are combined."""
        return _spec(AggregationSpec, self.aggregation)

    def ladder(self, r: int) -> list[int]:
        """Return the sketch sizes that fit a rank."""
        return [k for k in self.sketch_sizes or default_sketch_sizes(r) if k <= r]


def read_runs(path: Path) -> dict[str, RunConfig]:
    """Return every run of a file by its name: of the variant, and the seed.

    Raises:
        ConfigError: The file cannot be read, or says something that is not allowed.
    """
    try:
        told: dict[str, Any] = msgspec.toml.decode(path.read_bytes())
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is no TOML: {error}") from error
    variants = told.pop("variants", [{"name": path.stem}])
    seeds = told.pop("seeds", [told.get("seed", 0)])
    runs: dict[str, RunConfig] = {}
    for variant in variants:
        changes = dict(variant)
        name = changes.pop("name", "")
        for seed in seeds:
            merged = merge(told, changes) | {"seed": seed}
            label = f"{name}-{seed}"
            if not name or label in runs:
                raise ConfigError(f"{path}: every variant needs a name of its own, got {name!r}")
            runs[label] = _run(merged, path, label)
    return runs


def merge(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return a table with another one's fields over its own, tables within tables too."""
    merged = dict(base)
    for key, value in changes.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = merge(merged[key], value) if both else value
    return merged


def _run(told: Mapping[str, Any], path: Path, label: str) -> RunConfig:
    try:
        return msgspec.convert(told, RunConfig)
    except (msgspec.ValidationError, ConfigError, ValueError) as error:
        raise ConfigError(f"{path}, run {label}: {error}") from error


def _spec(kind: type[_Spec], told: Mapping[str, Any]) -> _Spec:
    """Make a dataclass of the wire out of a table; a field it does not have is an error."""
    known: Sequence[str] = [x.name for x in fields(kind)]  # type: ignore[arg-type]
    unknown = [name for name in told if name not in known]
    if unknown:
        raise ConfigError(f"{unknown[0]!r} is none of {', '.join(known)}")
    return msgspec.convert(told, kind)
