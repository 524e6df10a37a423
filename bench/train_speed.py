"""Speed and memory of every method on one workload: measured in turn, compared in pairs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from statistics import median
from typing import Any

from rich.console import Console

from bench.fresh_process import measure_fresh
from bench.gemm_rates import GemmRate, Shapes
from bench.train_methods import TEXTBOOK, Method, Products, Work
from bench.train_once import Measured, Once


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How much is measured.

    Attributes:
        repetitions: Processes of each method; every method runs before one runs again.
        steps: Timed steps in each.
        threads: CPU threads of every method.
    """

    repetitions: int
    steps: int
    threads: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """One method, once in every repetition.

    Attributes:
        method: The method.
        runs: What was measured, in the order of the repetitions.
    """

    method: Method
    runs: list[Measured]

    @property
    def step_s(self) -> float:
        """Shortest step of all: the others were disturbed."""
        return min(min(run.step_s) for run in self.runs)

    @property
    def tokens_per_s(self) -> float:
        """Tokens per second of the shortest step."""
        return self.runs[0].tokens / self.step_s

    @property
    def import_bytes(self) -> int:
        """Resident memory of the libraries, median."""
        return int(median(run.import_bytes for run in self.runs))

    @property
    def peak_bytes(self) -> int:
        """Peak resident memory of the steps, median."""
        return int(median(run.peak_bytes for run in self.runs))

    @property
    def whole_peak_bytes(self) -> int:
        """Peak resident memory from start to end, the worst."""
        return max(run.whole_peak_bytes for run in self.runs)

    @property
    def above_imports_bytes(self) -> int:
        """Peak of the steps above the libraries, median."""
        return int(median(_above_imports(run) for run in self.runs))

    @property
    def fastest(self) -> Measured:
        """The run with the shortest step."""
        return min(self.runs, key=lambda run: min(run.step_s))

    def speed_over(self, other: Series) -> float:
        """Return how many times faster this is: median over the repetitions."""
        pairs = zip(self.runs, other.runs, strict=True)
        return median(min(theirs.step_s) / min(own.step_s) for own, theirs in pairs)

    def memory_over(self, other: Series) -> float:
        """Return the share of the other's memory above imports: median over the repetitions."""
        pairs = zip(self.runs, other.runs, strict=True)
        return median(_above_imports(own) / _above_imports(theirs) for own, theirs in pairs)


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Everything measured on one workload.

    Attributes:
        work: The workload.
        series: By the method's name, in the order of measuring.
        gemm: Best rates over all repetitions.
    """

    work: Work
    series: dict[str, Series]
    gemm: list[GemmRate]

    def of(self, method: Method) -> Series:
        """Return the measurements of a method."""
        return self.series[method.name]

    def useful_flops(self) -> float:
        """Return the operations a step cannot do without: forward and input gradient of weights."""
        shape = self.work.shape
        head = shape.vocab_size * shape.hidden_size
        return 4.0 * (shape.linear_parameters * self.work.tokens + head * self.work.learned)

    def gemm_rate(self, formats: Sequence[Products]) -> float:
        """Return the rate of the largest layer, forward and backward, in the fastest format."""
        return max(
            rate.both for rate in self.gemm if rate.where == "largest" and rate.products in formats
        )

    def share_of_machine(self, method: Method) -> float:
        """Return the useful operations over what the machine multiplies in fp32.

        That is what our wide products are computed in.
        """
        return self.useful_flops() / self.of(method).step_s / self.gemm_rate(("fp32",))

    def rows(self) -> list[dict[str, Any]]:
        """Return everything, for the JSON file."""
        return [
            {"work": asdict(self.work), "method": asdict(series.method), **asdict(run)}
            for series in self.series.values()
            for run in series.runs
        ] + [{"work": asdict(self.work), "gemm": asdict(rate)} for rate in self.gemm]


def compare(console: Console, work: Work, methods: Sequence[Method], plan: Plan) -> Comparison:
    """Measure all methods in turn, again and again, each in a process of its own.

    Raises:
        SystemExit: A method failed.
    """
    runs: dict[str, list[Measured]] = {method.name: [] for method in methods}
    rates = list[GemmRate]()
    for repetition in range(1, plan.repetitions + 1):
        rates += _measure_gemm(work, plan.threads)
        for method in methods:
            run = run_once(method, work, plan)
            runs[method.name].append(run)
            console.print(
                f"{work.model} {repetition}/{plan.repetitions} {method.name}: "
                f"{run.tokens / min(run.step_s):.0f} tokens/s, "
                f"{_above_imports(run) / 1e6:.0f} MB above imports"
            )
    series = {m.name: Series(method=m, runs=runs[m.name]) for m in methods}
    return Comparison(work=work, series=series, gemm=_best(rates))


def run_once(method: Method, work: Work, plan: Plan) -> Measured:
    """Measure a method in a fresh process."""
    once = Once(method=method, work=work, steps=plan.steps, threads=plan.threads)
    return measure_fresh("bench.train_once", once, Measured, plan.threads)


def faster_products(console: Console, work: Work, plan: Plan) -> Products:
    """Try textbook QLoRA in fp32 and in mixed bf16, and return what it is faster in here."""
    formats: tuple[Products, ...] = ("fp32", "bf16")
    step_s = {}
    for products in formats:
        run = run_once(replace(TEXTBOOK, products=products), work, replace(plan, steps=2))
        step_s[products] = min(run.step_s)
    chosen = min(formats, key=lambda products: step_s[products])
    tried = ", ".join(f"{name} {seconds:.2f} s" for name, seconds in step_s.items())
    console.print(f"textbook QLoRA takes per step: {tried}; the 4-bit baselines get {chosen}")
    return chosen


def _above_imports(run: Measured) -> int:
    return run.peak_bytes - run.import_bytes


def _measure_gemm(work: Work, threads: int) -> list[GemmRate]:
    shape = work.shape
    block = shape.linears[: len(shape.linears) // shape.num_layers]
    layers = [(layer.d_in, layer.d_out) for layer in block]
    shapes = Shapes(tokens=work.tokens, layers=layers, threads=threads)
    return measure_fresh("bench.gemm_rates", shapes, list[GemmRate], threads)


def _best(rates: Sequence[GemmRate]) -> list[GemmRate]:
    """Return each rate at its highest: a machine others use as well is never faster than it is."""
    best: dict[tuple[str, str], GemmRate] = {}
    for rate in rates:
        key = (rate.where, rate.products)
        if key not in best or rate.both > best[key].both:
            best[key] = rate
    return [best[key] for key in sorted(best)]
