"""What the speed and memory of a training step are claimed to be."""

from __future__ import annotations

from collections.abc import Iterator

from bench.report import Claim
from bench.train_methods import (
    OURS_BF16,
    OURS_INT8,
    OURS_LEAN,
    OURS_NF4,
    OURS_TIGHT,
    PEFT_BF16,
    PEFT_FP32,
    PEFT_NF4,
    TEXTBOOK,
    Method,
)
from bench.train_speed import Comparison, Series

LEAST_SPEED_OF_TEXTBOOK, MOST_MEMORY_OF_TEXTBOOK = 3.0, 0.33
LEAST_SPEED_OF_TUNED, MOST_MEMORY_OF_TUNED = 1.6, 0.45
LEAST_SHARE_OF_MACHINE = 0.70
LEAST_INT8_OVER_BF16 = 1.2
MOST_TIGHT_BYTES = 900_000_000
MOST_LOSS_DIFFERENCE = 0.02
CANDIDATES = (OURS_LEAN, OURS_INT8)  # of ours, instead of a baseline
_SAME_BASE = {OURS_INT8: PEFT_FP32, OURS_BF16: PEFT_FP32, OURS_NF4: PEFT_NF4}


def speed_claims(comparison: Comparison) -> Iterator[Claim]:
    """Yield what must hold on every workload."""
    for baseline in (TEXTBOOK, PEFT_BF16, PEFT_FP32):
        yield from _both_at_once(comparison, baseline)
    for method in (OURS_NF4, OURS_BF16):
        yield _at_least(
            comparison,
            f"{method.name}: share of the machine's GEMM rate",
            LEAST_SHARE_OF_MACHINE,
            comparison.share_of_machine(method),
        )
    yield _at_least(
        comparison,
        f"{OURS_INT8.name} / {OURS_BF16.name}: tokens per second",
        LEAST_INT8_OVER_BF16,
        comparison.of(OURS_INT8).speed_over(comparison.of(OURS_BF16)),
    )
    yield _at_most(
        comparison,
        "first loss against PEFT's on the same weights, worst relative difference",
        MOST_LOSS_DIFFERENCE,
        max(
            _difference(comparison.of(ours), comparison.of(theirs))
            for ours, theirs in _SAME_BASE.items()
        ),
    )


def tight_claims(comparison: Comparison) -> Iterator[Claim]:
    """Yield what must hold of the mode for little memory."""
    tight = comparison.of(OURS_TIGHT)
    yield _at_most(
        comparison,
        f"{OURS_TIGHT.name}: peak memory from start to end, imports included, bytes",
        MOST_TIGHT_BYTES,
        tight.whole_peak_bytes,
    )
    yield _at_least(
        comparison,
        f"{OURS_TIGHT.name} / {TEXTBOOK.name}: tokens per second",
        1.0,
        tight.speed_over(comparison.of(TEXTBOOK)),
    )


def _both_at_once(comparison: Comparison, baseline: Method) -> Iterator[Claim]:
    """Yield speed and memory of the one method of ours that comes closest to meeting both."""
    least, most = LEAST_SPEED_OF_TUNED, MOST_MEMORY_OF_TUNED
    if baseline == TEXTBOOK:
        least, most = LEAST_SPEED_OF_TEXTBOOK, MOST_MEMORY_OF_TEXTBOOK
    theirs = comparison.of(baseline)

    def distance(method: Method) -> float:
        own = comparison.of(method)
        return min(own.speed_over(theirs) / least, most / own.memory_over(theirs))

    best = max(CANDIDATES, key=distance)
    own = comparison.of(best)
    pair = f"{best.name} / {baseline.name}"
    yield _at_least(comparison, f"{pair}: tokens per second", least, own.speed_over(theirs))
    yield _at_most(comparison, f"{pair}: memory above imports", most, own.memory_over(theirs))


def _difference(ours: Series, theirs: Series) -> float:
    return abs(ours.runs[0].losses[0] / theirs.runs[0].losses[0] - 1)


def _at_least(comparison: Comparison, claim: str, bound: float, measured: float) -> Claim:
    return Claim(
        claim=f"{comparison.work.model}: {claim}",
        target=f">= {bound:g}",
        measured=measured,
        holds=measured >= bound,
    )


def _at_most(comparison: Comparison, claim: str, bound: float, measured: float) -> Claim:
    return Claim(
        claim=f"{comparison.work.model}: {claim}",
        target=f"<= {bound:g}",
        measured=measured,
        holds=measured <= bound,
    )
