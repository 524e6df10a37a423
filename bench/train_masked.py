"""A processor with narrower instructions: AVX-512 masked off, with and without in turn.

The masked processes see an AVX2 laptop. What they measure about themselves goes to the planner,
which has to choose the way of training that is really the faster one there.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table

from bench.fresh_process import measure_fresh
from bench.gemm_rates import GemmRate, Shapes
from bench.report import Claim
from bench.train_methods import GLOBAL_RANK, OURS_NF4, SMOLLM2, Method, Work, adapter_of
from bench.train_once import Measured, Once
from bench.train_speed import Plan
from bench.vector_width import Vectors
from edge_sdk.compute.execution import Execution
from edge_sdk.compute.rates import Rates
from edge_sdk.device import has_native_bf16
from edge_sdk.planning.cost import Budget, Machine, Workload
from edge_sdk.planning.plan import make_plan

MASK = {
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "ATEN_CPU_CAPABILITY": "avx2",
    "MKL_ENABLE_INSTRUCTIONS": "AVX2",
}
AVX2_WIDTH = 8
ALLOWED = 0.05
STEPS = 2
_INTEGERS = replace(OURS_NF4, name="ours nf4, int8 products, whole batch", products="int8")
_METHODS = (OURS_NF4, _INTEGERS)
_PLENTY = Budget(memory_bytes=1 << 40)


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """One processor, masked or not.

    Attributes:
        vectors: Instructions in use.
        execution: What the planner chose, from what was measured there.
        gemm: fp32 rate of all layers of a block, forward and back, of each repetition.
        runs: By the method's name, in the order of the repetitions.
    """

    vectors: Vectors
    execution: Execution
    gemm: list[float]
    runs: dict[str, list[Measured]]

    def step_s(self, method: Method) -> float:
        """Return the shortest step."""
        return min(min(run.step_s) for run in self.runs[method.name])


@dataclass(frozen=True, slots=True, kw_only=True)
class Masked:
    """Both processors.

    Attributes:
        whole: As it is.
        masked: Without AVX-512.
    """

    whole: Side
    masked: Side

    @property
    def gemm_left(self) -> float:
        """Share of the GEMM rate that is left: median over the repetitions."""
        return median(m / w for m, w in zip(self.masked.gemm, self.whole.gemm, strict=True))

    def speed_left(self, method: Method) -> float:
        """Return the share of the tokens per second that is left: median over repetitions."""
        pairs = zip(self.masked.runs[method.name], self.whole.runs[method.name], strict=True)
        return median(min(w.step_s) / min(m.step_s) for m, w in pairs)


def measure_masked(console: Console, plan: Plan) -> Masked:
    """Measure both sides in turn, and print the table."""
    sides = [_first_look(mask, plan.threads) for mask in ({}, MASK)]
    for _ in range(plan.repetitions):
        for side, mask in zip(sides, ({}, MASK), strict=True):
            side.gemm.append(_gemm_rate(mask, plan.threads))
            for method in _METHODS:
                side.runs[method.name].append(_run(method, mask, plan.threads))
    found = Masked(whole=sides[0], masked=sides[1])
    console.print(_table(found))
    return found


def masked_claims(found: Masked) -> Iterator[Claim]:
    """Yield that the trainer adapts, chooses well, and loses no more than the GEMM rate does."""
    masked = found.masked
    yield Claim(
        claim="AVX-512 masked: fp32 numbers the compiled kernels compute at once",
        target=f"= {AVX2_WIDTH}",
        measured=masked.vectors.width,
        holds=masked.vectors.width == AVX2_WIDTH,
    )
    chosen = _INTEGERS if masked.execution.products == "int8" else OURS_NF4
    fastest = min(masked.step_s(method) for method in _METHODS)
    yield _at_least(
        f"AVX-512 masked: speed of the planned way ({masked.execution.products} products) over "
        "the fastest one",
        1 - ALLOWED,
        fastest / masked.step_s(chosen),
    )
    yield _at_least(
        f"AVX-512 masked: {OURS_NF4.name}, share of tokens per second left over share of the fp32 "
        "GEMM rate left",
        1 - ALLOWED,
        found.speed_left(OURS_NF4) / found.gemm_left,
    )


def json_rows(found: Masked) -> list[dict[str, Any]]:
    """Return everything, for the JSON file."""
    return [asdict(found)]


def _first_look(mask: Mapping[str, str], threads: int) -> Side:
    """Ask a processor what it has, and plan for it."""
    vectors = measure_fresh("bench.vector_width", threads, Vectors, threads, environment=mask)
    rates = measure_fresh(
        "edge_sdk.training.kernel_rates", threads, Rates, threads, environment=mask
    )
    machine = Machine(has_native_bf16=has_native_bf16() and not mask, rates=rates)
    return Side(
        vectors=vectors,
        execution=make_plan(workload(SMOLLM2), machine, _PLENTY).execution,
        gemm=[],
        runs={method.name: [] for method in _METHODS},
    )


def workload(work: Work) -> Workload:
    """Return a workload as the planner sees it, for a base in nf4."""
    return Workload(
        shape=work.shape,
        layers=tuple(adapter_of(work).layers),
        r=GLOBAL_RANK,
        sketch_sizes=(work.k,),
        quantizations=("nf4",),
        batch_size=work.batch_size,
        local_steps=1,
        length=work.length,
        learned=work.length - 1,
    )


def _gemm_rate(mask: Mapping[str, str], threads: int) -> float:
    shape = SMOLLM2.shape
    block = shape.linears[: len(shape.linears) // shape.num_layers]
    layers = [(layer.d_in, layer.d_out) for layer in block]
    shapes = Shapes(tokens=SMOLLM2.tokens, layers=layers, threads=threads, formats=["fp32"])
    rates = measure_fresh("bench.gemm_rates", shapes, list[GemmRate], threads, environment=mask)
    return next(rate.both for rate in rates if rate.where == "block")


def _run(method: Method, mask: Mapping[str, str], threads: int) -> Measured:
    once = Once(method=method, work=SMOLLM2, steps=STEPS, threads=threads)
    return measure_fresh("bench.train_once", once, Measured, threads, environment=mask)


def _table(found: Masked) -> Table:
    title = f"{SMOLLM2.model}, {SMOLLM2.batch_size} x {SMOLLM2.length} tokens, AVX-512 masked off"
    table = Table("", "whole", "masked", "left", title=title)
    whole, masked = found.whole, found.masked
    widths = [f"{x.vectors.width} ({x.vectors.torch_capability})" for x in (whole, masked)]
    table.add_row("numbers at once (torch)", *widths, "")
    table.add_row("products planned", whole.execution.products, masked.execution.products, "")
    speeds = [f"{max(side.gemm) / 1e9:.0f}" for side in (whole, masked)]
    table.add_row("fp32 products, G operations/s", *speeds, f"{found.gemm_left:.2f}")
    for method in _METHODS:
        speeds = [f"{SMOLLM2.tokens / side.step_s(method):.0f}" for side in (whole, masked)]
        table.add_row(f"{method.name}, tokens/s", *speeds, f"{found.speed_left(method):.2f}")
    return table


def _at_least(claim: str, bound: float, measured: float) -> Claim:
    return Claim(claim=claim, target=f">= {bound:g}", measured=measured, holds=measured >= bound)
