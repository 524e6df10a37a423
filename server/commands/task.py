"""``edge-server task create``: its flags, and the task they describe."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import MISSING, fields
from typing import Any, get_args

from edge_sdk.errors import ConfigError
from edge_sdk.model.model_folder import find_model, read_model_shape, weights_digest
from edge_sdk.model.model_shape import ModelShape
from edge_sdk.sketch import default_sketch_sizes
from edge_sdk.wire.task import (
    AdapterSpec,
    AggregationSpec,
    BaseModel,
    Combination,
    Optimizer,
    RoundPolicy,
    ServerOptimizer,
    Sketching,
    Stragglers,
    TaskSpec,
    TaskType,
    TrainingSpec,
    UpdateEncoding,
    Weighting,
    WireDtype,
)

# flag: (the dataclass that holds its default, field, type or choices, help)
_PLAIN_FLAGS: Mapping[str, tuple[type, str, Any, str]] = {
    "--task-type": (BaseModel, "task_type", get_args(TaskType), "what the model does"),
    "--rounds": (RoundPolicy, "rounds", int, "rounds until the task is finished"),
    "--cohort-size": (RoundPolicy, "cohort_size", int, "devices that get work in one round"),
    "--min-updates": (RoundPolicy, "min_updates", int, "updates a round needs at its deadline"),
    "--deadline": (RoundPolicy, "deadline_s", float, "length of a round in seconds"),
    "--sketching": (RoundPolicy, "sketching", get_args(Sketching), "how ranks are drawn"),
    "--stragglers": (RoundPolicy, "stragglers", get_args(Stragglers), "what is done with them"),
    "--max-staleness": (RoundPolicy, "max_staleness", int, "versions a late update may be behind"),
    "--weighting": (AggregationSpec, "weighting", get_args(Weighting), "weights of the mean"),
    "--combination": (AggregationSpec, "combination", get_args(Combination), "of the updates"),
    "--trim": (AggregationSpec, "trim", float, "share a trimmed mean leaves out at each end"),
    "--server-optimizer": (
        AggregationSpec,
        "server_optimizer",
        get_args(ServerOptimizer),
        "what is done with the mean update",
    ),
    "--server-lr": (AggregationSpec, "server_lr", float, "step size on the mean update"),
    "--momentum": (AggregationSpec, "momentum", float, "decay of past updates"),
    "--second-momentum": (AggregationSpec, "second_momentum", float, "decay of their squares"),
    "--epsilon": (AggregationSpec, "epsilon", float, "added to the root of their mean square"),
    "--staleness-exponent": (
        AggregationSpec,
        "staleness_exponent",
        float,
        "an update s versions behind weighs (1 + s) ** -x",
    ),
    "--max-norm": (AggregationSpec, "max_norm", float, "largest root mean square of an update"),
    "--max-norm-ratio": (
        AggregationSpec,
        "max_norm_ratio",
        float,
        "the same in multiples of the round's median",
    ),
    "--local-steps": (TrainingSpec, "local_steps", int, "optimizer steps per device and round"),
    "--local-lr": (TrainingSpec, "local_lr", float, "step size on the device"),
    "--optimizer": (TrainingSpec, "optimizer", get_args(Optimizer), "on the device"),
    "--weight-decay": (TrainingSpec, "weight_decay", float, "on the device"),
    "--batch-size": (TrainingSpec, "batch_size", int, "examples per optimizer step"),
    "--max-length": (TrainingSpec, "max_length", int, "tokens per example"),
    "--update-encoding": (
        TrainingSpec,
        "update_encoding",
        get_args(UpdateEncoding),
        "numbers of an update, wire: those of --wire-dtype",
    ),
    "--wire-dtype": (AdapterSpec, "wire_dtype", get_args(WireDtype), "numbers on the wire"),
}

# What the study's evidence changes for new tasks; a task that says nothing keeps its meaning.
_EVIDENT: Mapping[str, str] = {"--update-encoding": "int4"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add every flag of the command."""
    parser.add_argument("name", help="lower-case letters, digits and dashes")
    parser.add_argument("--model", required=True, help="folder or hub id of the base model")
    parser.add_argument("--revision", help="commit on the hub")
    parser.add_argument("--base-name", help="the name devices see (default: --model)")
    parser.add_argument("--label", nargs="+", default=[], help="class names, for SEQ_CLS")
    parser.add_argument("--rank", type=int, required=True, help="global rank r")
    parser.add_argument("--alpha", type=float, help="lora_alpha (default: 2 r)")
    parser.add_argument("--rslora", action="store_true", help="scale by alpha / sqrt(r)")
    parser.add_argument("--target", nargs="+", help="module name endings (default: by family)")
    parser.add_argument(
        "--sketch-sizes", type=_sizes, help="such as 1,2,4,8 (default: powers of two, and r)"
    )
    parser.add_argument("--quorum", type=int, help="updates that close a round (default: cohort)")
    parser.add_argument(
        "--error-feedback",
        action="store_true",
        help="devices add what the encoding left out to their next update",
    )
    parser.add_argument("--seed", type=int, help="of all randomness (default: random)")
    for flag, (holder, name, kind, text) in _PLAIN_FLAGS.items():
        _add_plain(parser, flag, _EVIDENT.get(flag, _default(holder, name)), kind, text)


def build_spec(args: argparse.Namespace) -> TaskSpec:
    """Read the base model's folder and return the task the flags describe.

    Raises:
        ModelError: The base model cannot be found or used.
        ConfigError: Values that do not fit together.
    """
    base, shape = _read_base(args)
    targets = list(args.target or shape.default_targets)
    return TaskSpec(
        name=args.name,
        base=base,
        adapter=AdapterSpec(
            r=args.rank,
            lora_alpha=2.0 * args.rank if args.alpha is None else args.alpha,
            target_modules=targets,
            layers=shape.target_layers(targets),
            use_rslora=args.rslora,
            dense=list(shape.dense),
            **_given(args, AdapterSpec),
        ),
        training=TrainingSpec(error_feedback=args.error_feedback, **_given(args, TrainingSpec)),
        policy=RoundPolicy(
            quorum=args.cohort_size if args.quorum is None else args.quorum,
            sketch_sizes=args.sketch_sizes or default_sketch_sizes(args.rank),
            **_given(args, RoundPolicy),
        ),
        aggregation=AggregationSpec(**_given(args, AggregationSpec)),
    )


def _read_base(args: argparse.Namespace) -> tuple[BaseModel, ModelShape]:
    folder = find_model(args.model, args.revision)
    base = BaseModel(
        model=args.base_name or args.model,
        digest=weights_digest(folder),
        revision=args.revision,
        labels=args.label,
        **_given(args, BaseModel),
    )
    if base.labels and base.task_type != "SEQ_CLS":
        raise ConfigError(f"--label is for --task-type SEQ_CLS; the task type is {base.task_type}")
    return base, read_model_shape(folder, base.task_type, len(base.labels))


def _given(args: argparse.Namespace, holder: type) -> dict[str, Any]:
    """Return the plain flags that were given, by field name; the dataclass knows the others."""
    values = {
        name: (getattr(args, flag[2:].replace("-", "_")), _EVIDENT.get(flag))
        for flag, (owner, name, _, _) in _PLAIN_FLAGS.items()
        if owner is holder
    }
    chosen = {name: own if given is None else given for name, (given, own) in values.items()}
    return {name: value for name, value in chosen.items() if value is not None}


def _default(holder: type, name: str) -> Any:
    return next(field.default for field in fields(holder) if field.name == name)


def _add_plain(
    parser: argparse.ArgumentParser, flag: str, default: Any, kind: Any, text: str
) -> None:
    choices = kind if isinstance(kind, tuple) else None
    parser.add_argument(
        flag,
        type=str if choices else kind,
        choices=choices,
        required=default is MISSING,
        help=text if default is MISSING else f"{text} (default: {default})",
    )


def _sizes(text: str) -> list[int]:
    return sorted({int(part) for part in text.split(",")})
