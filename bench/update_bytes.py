"""What the encoding of updates saves in bytes, and what it costs in held-out loss.

Ten rounds of the demo's task for every encoding, with and without error feedback, from the same
seed: the same data, sketches and order of examples. Two more runs in fp32 with other seeds say
how far such a loss moves by chance. ``--task classifier`` trains a small encoder on the same
questions instead, which takes a fraction of the time. Finished runs are kept in ``--folder``
and not done again.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from bench.base_models import base_folder
from bench.report import Claim, publish
from bench.rounds_in_one_process import Learner, Outcome, run_task
from demo import __main__ as demo
from demo import trec
from edge_sdk.compute.execution import Execution, ProductFormat
from edge_sdk.device import probe
from edge_sdk.model.model_folder import read_model_shape, weights_digest
from edge_sdk.planning.microbenchmark import measure_rates
from edge_sdk.text.example import Example
from edge_sdk.text.token_file import tokenized_examples
from edge_sdk.training.local_steps import TrainableBase
from edge_sdk.training.trainable_base import load_trainable
from edge_sdk.wire.task import (
    AdapterSpec,
    BaseModel,
    RoundPolicy,
    TaskSpec,
    TrainingSpec,
    UpdateEncoding,
)

ROUNDS = 10
MOST_INT8_BYTES = 0.27
OTHER_SEEDS = (8, 9)


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """One run.

    Attributes:
        encoding: Of updates; "wire" is fp32.
        error_feedback: Whether devices keep what was left out.
        seed: Of the task.
    """

    encoding: UpdateEncoding
    error_feedback: bool = False
    seed: int = demo.SEED

    @property
    def name(self) -> str:
        """For people and for files."""
        name = "fp32" if self.encoding == "wire" else self.encoding
        feedback = " with feedback" if self.error_feedback else ""
        return f"{name}{feedback}" + (f", seed {self.seed}" if self.seed != demo.SEED else "")


FP32, INT8 = Variant(encoding="wire"), Variant(encoding="int8")
INT8_FED = replace(INT8, error_feedback=True)
SEEDS = tuple(replace(FP32, seed=seed) for seed in OTHER_SEEDS)
VARIANTS = (
    FP32,
    INT8,
    *SEEDS,
    INT8_FED,
    Variant(encoding="int4"),
    Variant(encoding="int4", error_feedback=True),
    Variant(encoding="float16"),
    Variant(encoding="float16", error_feedback=True),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What all runs share.

    Attributes:
        spec: Of the task, in fp32.
        base: The frozen model.
        learners: Devices by name.
        heldout: What the results are tried on.
    """

    spec: TaskSpec
    base: TrainableBase
    learners: Mapping[str, Learner]
    heldout: Sequence[Example]


def main() -> int:
    """Run what is not done yet, print the table and the claims."""
    chosen = _parse()
    console = Console(width=120)
    setting = _setting(chosen)
    outcomes: dict[Variant, Outcome] = {}
    for variant in VARIANTS[: chosen.first or None]:
        started = time.monotonic()
        outcomes[variant] = _outcome(chosen, setting, variant)
        console.print(
            f"{variant.name}: held-out loss {_loss(outcomes[variant]):.4f}, "
            f"{outcomes[variant].update_bytes:,} bytes sent, {time.monotonic() - started:.0f} s"
        )
    console.print(_table(outcomes))
    return publish(console, _claims(outcomes), _rows(outcomes), chosen.json)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--task", choices=("demo", "classifier"), default="demo")
    parser.add_argument("--folder", type=Path, default=Path(".update_bytes"))
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--heldout", type=int, default=demo.HELDOUT, help="held-out questions")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"default: {ROUNDS}")
    parser.add_argument("--first", type=int, help="only so many of the runs")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the numbers here")
    return parser.parse_args()


def _setting(chosen: argparse.Namespace) -> Setting:
    is_classifier = chosen.task == "classifier"
    model = base_folder("minilm" if is_classifier else "smollm2")
    folder = chosen.folder / f"data-{chosen.task}-{chosen.heldout}"
    split = trec.write_split(
        folder,
        devices=list(demo.FLEET),
        examples_per_device=demo.EXAMPLES_PER_DEVICE,
        heldout=chosen.heldout,
        seed=demo.SEED,
    )
    base = BaseModel(model=chosen.task, digest=weights_digest(model))
    if is_classifier:
        base = replace(base, task_type="SEQ_CLS", labels=sorted(trec.LABEL_WORDS.values()))
        for path in (split.heldout, *(device.path for device in split.devices.values())):
            _label(path)
    shape = read_model_shape(model, base.task_type, len(base.labels))
    targets = list(shape.default_targets)
    spec = TaskSpec(
        name=demo.TASK,
        base=base,
        adapter=AdapterSpec(
            r=demo.RANK,
            lora_alpha=2.0 * demo.RANK,
            target_modules=targets,
            layers=shape.target_layers(targets),
            dense=list(shape.dense),
        ),
        training=TrainingSpec(
            local_steps=demo.LOCAL_STEPS,
            local_lr=demo.LOCAL_LR,
            batch_size=demo.BATCH_SIZE,
            max_length=demo.MAX_LENGTH,
        ),
        policy=RoundPolicy(
            rounds=chosen.rounds,
            cohort_size=len(demo.FLEET),
            quorum=len(demo.FLEET),
            sketch_sizes=list(demo.SKETCH_SIZES),
            deadline_s=1e6,  # devices take turns here
        ),
    )
    execution = Execution(
        quantization="fp32" if is_classifier else "nf4",
        products="wide" if is_classifier else _fastest_products(chosen.threads),
        micro_batch=demo.BATCH_SIZE,
        recomputed_blocks=0,
        length=demo.MAX_LENGTH,
        trained_targets=tuple(targets),
        k=demo.RANK,
    )

    def examples(path: Path) -> list[Example]:
        return tokenized_examples(path, model, base, demo.MAX_LENGTH)

    return Setting(
        spec=spec,
        base=load_trainable(model, base, execution, chosen.threads),
        learners={
            name: Learner(k=k, examples=examples(split.devices[name].path))
            for name, k in demo.FLEET.items()
        },
        heldout=examples(split.heldout),
    )


def _fastest_products(threads: int) -> ProductFormat:
    """Return what the demo's devices plan with on this machine."""
    report = probe()
    rates = measure_rates(report, threads)
    return rates.product_formats("nf4")[-1]


def _label(path: Path) -> None:
    """Turn questions with the word that answers them into texts with a label."""
    records = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    lines = [json.dumps({"text": x["prompt"], "label": x["completion"]}) for x in records]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _outcome(chosen: argparse.Namespace, setting: Setting, variant: Variant) -> Outcome:
    """Return a finished run, or do it now."""
    shared = f"{chosen.task}-{chosen.rounds}-{chosen.heldout}"
    done = chosen.folder / f"{shared}-{variant.name}.json".replace(" ", "-").replace(",", "")
    if done.exists():
        return Outcome(**json.loads(done.read_text("utf-8")))
    state = chosen.folder / "state"
    shutil.rmtree(state, ignore_errors=True)
    training = replace(
        setting.spec.training,
        update_encoding=variant.encoding,
        error_feedback=variant.error_feedback,
    )
    spec = replace(setting.spec, training=training)
    outcome = run_task(state, spec, variant.seed, setting.base, setting.learners, setting.heldout)
    shutil.rmtree(state)
    done.write_text(json.dumps(asdict(outcome)) + "\n", encoding="utf-8")
    return outcome


def _loss(outcome: Outcome) -> float:
    return float(np.mean(outcome.heldout_losses))


def _noise(outcomes: Mapping[Variant, Outcome]) -> float:
    """Return how far the held-out losses of two fp32 runs are apart, at most."""
    losses = [_loss(outcomes[x]) for x in (FP32, *SEEDS) if x in outcomes]
    return max((abs(a - b) for a, b in combinations(losses, 2)), default=float("nan"))


def _claims(outcomes: Mapping[Variant, Outcome]) -> list[Claim]:
    noise, fp32 = _noise(outcomes), outcomes[FP32]
    claims = []
    for variant in (INT8, INT8_FED):
        if variant not in outcomes:
            continue
        share = outcomes[variant].update_bytes / fp32.update_bytes
        worse = _loss(outcomes[variant]) - _loss(fp32)
        claims += [
            Claim(
                claim=f"bytes of updates, {variant.name} over fp32",
                target=f"<= {MOST_INT8_BYTES}",
                measured=share,
                holds=share <= MOST_INT8_BYTES,
            ),
            Claim(
                claim=f"held-out loss, {variant.name} minus fp32",
                target=f"<= {noise:.4f}: between fp32 runs of other seeds",
                measured=worse,
                holds=worse <= noise,
            ),
        ]
    return claims


def _rows(outcomes: Mapping[Variant, Outcome]) -> list[dict[str, Any]]:
    fp32 = outcomes[FP32]
    return [
        {
            "variant": variant.name,
            "update_bytes": outcome.update_bytes,
            "share_of_fp32": outcome.update_bytes / fp32.update_bytes,
            "slice_bytes": outcome.slice_bytes,
            "heldout_loss": _loss(outcome),
            "difference": _loss(outcome) - _loss(fp32),
            "standard_error_of_difference": _standard_error(outcome, fp32),
            "last_train_loss": outcome.train_losses[-1],
        }
        for variant, outcome in outcomes.items()
    ]


def _standard_error(one: Outcome, other: Outcome) -> float:
    """Return that of the mean difference over the held-out questions, in pairs."""
    differences = np.subtract(one.heldout_losses, other.heldout_losses)
    return float(differences.std(ddof=1) / np.sqrt(len(differences)))


def _table(outcomes: Mapping[Variant, Outcome]) -> Table:
    table = Table("updates", "bytes", "of fp32", "held-out loss", "minus fp32", "standard error")
    for row in _rows(outcomes):
        table.add_row(
            row["variant"],
            f"{row['update_bytes']:,}",
            f"{row['share_of_fp32']:.4f}",
            f"{row['heldout_loss']:.4f}",
            f"{row['difference']:+.4f}",
            f"{row['standard_error_of_difference']:.4f}",
        )
    return table


if __name__ == "__main__":
    sys.exit(main())
