"""Is the plan right? Predicted against measured peak memory and step time, run after run.

Every configuration is trained twice, each time in a process of its own. The first run is
predicted from the model's configuration and this machine's rates alone; the second one by a plan
that the first has corrected. Baselines, in the same table: what ``accelerate estimate-memory``
says for training with Adam, and the rule of thumb "1.2 x the weights, and 16 bytes per trained
number".
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any, cast

import msgspec
import numpy as np
from rich.console import Console
from rich.table import Table

from bench.base_models import base_folder
from bench.report import Claim, json_path, publish
from bench.training_run import GLOBAL_RANK, LABELS, Measured, Run
from edge_sdk.compute.execution import Execution, ProductFormat, Quantization
from edge_sdk.device import probe
from edge_sdk.general.memory_need import WEIGHT_BYTES, adapter_parameters
from edge_sdk.model.model_folder import read_model_shape
from edge_sdk.model.model_shape import ModelShape
from edge_sdk.planning.cost import Budget, Correction, Cost, Machine, Workload, cost_of
from edge_sdk.planning.microbenchmark import measure_rates
from edge_sdk.quantities import format_bytes
from edge_sdk.wire.task import TaskType

STEPS = 4
MEASURE_EVERY = 4  # configurations: a shared machine changes its speed within minutes
UNLIMITED = Budget(memory_bytes=1 << 60)
HELD_OUT_SEED = 20261123  # drawn from after the formulas were frozen
HELD_OUT = 13


@dataclass(frozen=True, slots=True, kw_only=True)
class Configuration:
    """One row of the table.

    Attributes:
        model: One of ``bench.base_models.NAMES``.
        quantization: Number format of the frozen base.
        products: Format of the products with it.
        k: Sketch size.
        batch_size: Examples per step.
        micro_batch: Examples at once.
        length: Tokens per example.
        learned: Tokens of them that are learned; 0 means all.
        recomputed: Share of the blocks that are computed again.
        is_held_out: Drawn after the formulas were frozen.
    """

    model: str
    quantization: Quantization
    products: ProductFormat
    k: int
    batch_size: int
    micro_batch: int
    length: int
    learned: int = 0
    recomputed: float = 0.0
    is_held_out: bool = False

    @property
    def task_type(self) -> TaskType:
        """What the model is trained for."""
        return "SEQ_CLS" if self.model == "minilm" else "CAUSAL_LM"

    @property
    def base_text(self) -> str:
        """The base and its products, for the table."""
        return self.quantization + (", int8 products" if self.products == "int8" else "")

    @property
    def text(self) -> str:
        """For the table."""
        micro = f"{self.batch_size // self.micro_batch}x" if self.batch_size > 1 else ""
        marks = f", {self.recomputed:.0%} again" if self.recomputed else ""
        marks += "  *" if self.is_held_out else ""
        return f"k{self.k} {micro}{self.micro_batch}x{self.length}{marks}"


def _row(model: str, base: str, *sizes: int, again: float = 0.0) -> Configuration:
    """Return a row whose ``base`` is a number format, and ``nf4+`` one with integer products."""
    k, batch_size, micro_batch, length, learned = sizes
    return Configuration(
        model=model,
        quantization=cast(Quantization, base.removesuffix("+")),
        products="int8" if base.endswith("+") else "wide",
        k=k,
        batch_size=batch_size,
        micro_batch=micro_batch,
        length=length,
        learned=learned,
        recomputed=again,
    )


FITTED = (
    _row("smollm2", "nf4", 8, 8, 8, 32, 2),
    _row("smollm2", "nf4+", 64, 8, 2, 32, 2),
    _row("smollm2", "nf4", 8, 2, 2, 128, 0),
    _row("smollm2", "nf4", 16, 4, 4, 64, 0, again=0.5),
    _row("smollm2", "nf4+", 8, 4, 4, 256, 64),
    _row("smollm2", "int8+", 8, 8, 4, 64, 8),
    _row("smollm2", "int8", 32, 2, 2, 96, 0, again=0.5),
    _row("smollm2", "nf4", 1, 1, 1, 16, 4),
    _row("smollm2", "bf16", 8, 4, 4, 64, 8),
    _row("smollm2", "bf16", 32, 8, 4, 32, 2, again=1.0),
    _row("smollm2", "fp32", 4, 4, 4, 64, 0),
    _row("smollm2", "fp32", 64, 2, 2, 32, 2),
    _row("minilm", "fp32", 8, 8, 8, 64, 0),
    _row("minilm", "fp32", 32, 16, 16, 128, 0),
    _row("minilm", "nf4", 8, 16, 16, 128, 0),
    _row("minilm", "bf16", 16, 32, 8, 64, 0, again=1.0),
    _row("llama-wide", "nf4", 8, 4, 4, 64, 0),
    _row("llama-wide", "nf4+", 32, 8, 2, 64, 4),
    _row("llama-wide", "bf16", 16, 2, 2, 128, 4, again=1.0),
    _row("llama-wide", "fp32", 8, 2, 2, 128, 0),
    _row("llama-deep", "fp32", 4, 4, 4, 64, 0),
    _row("llama-deep", "nf4", 32, 1, 1, 64, 2),
    _row("llama-deep", "nf4", 8, 8, 8, 64, 0),
    _row("llama-deep", "int8+", 8, 8, 8, 64, 0),
    _row("llama-deep", "bf16", 8, 4, 4, 128, 8),
    _row("llama-deep", "nf4", 64, 4, 1, 128, 16, again=1.0),
)


def held_out() -> Iterator[Configuration]:
    """Draw configurations nobody looked at while the formulas were made, and one new shape."""
    rng = np.random.default_rng(HELD_OUT_SEED)
    models = ["smollm2", "minilm", "llama-wide", "llama-deep", "llama-small-vocabulary"]
    formats = ["nf4", "nf4+", "int8+", "bf16", "fp32"]
    for i in range(HELD_OUT):
        model = models[i % len(models)]
        known = ["nf4", "bf16", "fp32"] if model == "minilm" else formats
        micro_batch = int(rng.choice([1, 2, 3, 4, 6, 8]))
        row = _row(
            model,
            known[int(rng.integers(len(known)))],
            int(rng.choice([1, 2, 3, 6, 12, 24, 48])),
            micro_batch * int(rng.choice([1, 1, 2])),
            micro_batch,
            int(rng.choice([24, 48, 80, 96, 160])),
            int(rng.choice([0, 3, 12])),
            again=float(rng.choice([0, 0, 1] if model == "minilm" else [0, 0, 0.3, 1])),
        )
        yield replace(row, is_held_out=True)


def main() -> int:
    """Run everything, print the tables and the claims."""
    path = json_path(__doc__)
    console = Console(width=160)
    report = probe()
    configurations = [*FITTED, *held_out()]
    rows, measuring_s = [], []
    for number, configuration in enumerate(configurations, start=1):
        if (number - 1) % MEASURE_EVERY == 0:
            rates = measure_rates(report, report.cores)
            measuring_s.append(rates.measured_s)
            machine = Machine(has_native_bf16=report.has_native_bf16, rates=rates)
            console.print(
                f"measured in {rates.measured_s:.1f} s, imports aside: "
                f"{rates.fp32_flops_per_s / 1e9:.0f} GFLOP/s in fp32 on {rates.threads} threads"
            )
        row = _measure(configuration, machine)
        rows.append(row)
        console.print(
            f"{number}/{len(configurations)} {configuration.model} {configuration.base_text} "
            f"{configuration.text}: peak {row['peak_error']:+.1%}, step {row['step_error']:+.0%}; "
            f"calibrated {row['calibrated_peak_error']:+.1%}, {row['calibrated_step_error']:+.0%}"
        )
    console.print(_table(rows))
    return publish(console, [_benchmark_claim(measuring_s), *_claims(rows)], rows, path)


def _measure(configuration: Configuration, machine: Machine) -> dict[str, Any]:
    folder = base_folder(configuration.model)
    labels = len(LABELS) if configuration.task_type == "SEQ_CLS" else 0
    shape = read_model_shape(folder, configuration.task_type, labels)
    execution = Execution(
        quantization=configuration.quantization,
        products=configuration.products,
        micro_batch=configuration.micro_batch,
        recomputed_blocks=round(configuration.recomputed * shape.num_layers),
        length=configuration.length,
        trained_targets=shape.default_targets,
        k=configuration.k,
    )
    learned = min(configuration.learned or configuration.length, configuration.length)
    work = Workload(
        shape=shape,
        layers=tuple(shape.target_layers(shape.default_targets)),
        r=GLOBAL_RANK,
        sketch_sizes=(configuration.k,),
        quantizations=(configuration.quantization,),
        batch_size=configuration.batch_size,
        local_steps=STEPS,
        length=configuration.length,
        learned=learned,
    )
    run = Run(
        folder=str(folder),
        task_type=configuration.task_type,
        execution=execution,
        batch_size=configuration.batch_size,
        learned=learned,
        steps=STEPS,
        threads=machine.rates.threads,
    )
    cost = cost_of(work, machine, UNLIMITED, execution)
    first = train(run)
    correction = Correction(
        memory_bytes=first.peak_bytes - cost.need.total,
        time_factor=median(first.step_s) / cost.step.total,
        runs=1,
    )
    corrected = replace(machine, corrections={configuration.quantization: correction})
    second = train(run)
    return {
        **asdict(configuration),
        **_errors(cost, first, ""),
        **_errors(cost_of(work, corrected, UNLIMITED, execution), second, "calibrated_"),
        "predicted_bytes": cost.peak_bytes,
        "measured_bytes": first.peak_bytes,
        "second_measured_bytes": second.peak_bytes,
        "predicted_step_s": cost.step_s,
        "measured_step_s": median(first.step_s),
        "second_measured_step_s": median(second.step_s),
        "components": asdict(cost.need),
        "accelerate_bytes": _accelerate_bytes(folder, configuration),
        "rule_of_thumb_bytes": _rule_of_thumb_bytes(shape, execution),
    }


def train(run: Run) -> Measured:
    """Train in a fresh process."""
    command = [sys.executable, "-m", "bench.training_run", msgspec.json.encode(run).decode()]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"{run} failed:\n{done.stderr}")
    return msgspec.json.decode(done.stdout.splitlines()[-1], type=Measured)


def _errors(cost: Cost, measured: Measured, prefix: str) -> dict[str, float]:
    return {
        f"{prefix}peak_error": cost.peak_bytes / measured.peak_bytes - 1,
        f"{prefix}step_error": cost.step_s / median(measured.step_s) - 1,
    }


def _accelerate_bytes(folder: Path, configuration: Configuration) -> int:
    """Return what ``accelerate estimate-memory`` prints as training with Adam."""
    import torch
    import transformers
    from accelerate.commands.estimate import estimate_training_usage
    from accelerate.utils import calculate_maximum_sizes

    config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
    kind: Any = transformers.AutoModelForCausalLM
    if configuration.task_type == "SEQ_CLS":
        kind = transformers.AutoModelForSequenceClassification
    with torch.device("meta"):
        model = kind.from_config(config).float()
    total, _ = calculate_maximum_sizes(model)
    # its table has rows for float32 and float16; int4 divides the size and has no training column
    usage = estimate_training_usage(total, "float32")
    return int(max(usage.values()))


def _rule_of_thumb_bytes(shape: ModelShape, execution: Execution) -> int:
    weights = shape.linear_parameters * WEIGHT_BYTES[execution.quantization]
    weights += shape.embedding_parameters * WEIGHT_BYTES["fp32"]
    layers = shape.target_layers(shape.default_targets)
    return int(1.2 * weights + 16 * adapter_parameters(layers, execution.k))


def _table(rows: list[dict[str, Any]]) -> Table:
    table = Table(title="* drawn after the formulas were frozen")
    for name in ("model", "base", "configuration"):
        table.add_column(name)
    for name in ("predicted", "measured", "error", "2nd run", "step s", "error", "2nd run"):
        table.add_column(name, justify="right")
    table.add_column("accelerate", justify="right")
    table.add_column("rule of thumb", justify="right")
    for row in rows:
        names = Configuration.__dataclass_fields__
        configuration = Configuration(**{name: row[name] for name in names})
        table.add_row(
            configuration.model,
            configuration.base_text,
            configuration.text,
            format_bytes(row["predicted_bytes"]),
            format_bytes(row["measured_bytes"]),
            f"{row['peak_error']:+.1%}",
            f"{row['calibrated_peak_error']:+.1%}",
            f"{row['measured_step_s']:.2f}",
            f"{row['step_error']:+.0%}",
            f"{row['calibrated_step_error']:+.0%}",
            f"{row['accelerate_bytes'] / row['measured_bytes'] - 1:+.0%}",
            f"{row['rule_of_thumb_bytes'] / row['measured_bytes'] - 1:+.0%}",
        )
    return table


def _benchmark_claim(seconds: list[float]) -> Claim:
    return Claim(
        claim="micro-benchmark, imports aside, median seconds",
        target="<= 3",
        measured=median(seconds),
        holds=median(seconds) <= 3,
    )


def _claims(rows: list[dict[str, Any]]) -> list[Claim]:
    held = [row for row in rows if row["is_held_out"]]

    def claim(text: str, most: float, measured: float) -> Claim:
        return Claim(claim=text, target=f"<= {most:.0%}", measured=measured, holds=measured <= most)

    def errors(name: str, chosen: list[dict[str, Any]] = rows) -> list[float]:
        return [abs(row[name]) for row in chosen]

    return [
        Claim(
            claim="configurations (a third held out)",
            target=">= 32, >= 1/3",
            measured=len(rows),
            holds=len(rows) >= 32 and 3 * len(held) >= len(rows),
        ),
        claim("peak memory, median error", 0.05, median(errors("peak_error"))),
        claim("peak memory, worst error", 0.12, max(errors("peak_error"))),
        claim("peak memory, most under", 0.05, max(-row["peak_error"] for row in rows)),
        claim("peak memory, held out: worst error", 0.12, max(errors("peak_error", held))),
        claim("step time, median error", 0.20, median(errors("step_error"))),
        claim("peak memory after one run, worst error", 0.03, max(errors("calibrated_peak_error"))),
        claim(
            "step time after one run, median error", 0.10, median(errors("calibrated_step_error"))
        ),
    ]


if __name__ == "__main__":
    sys.exit(main())
