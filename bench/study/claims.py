"""What the study claims, from the stored results, with intervals over the seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from bench.report import Claim
from bench.study.tables import Row, by_variant, read_table, results_path
from simulation.interval import interval

DEFAULT = "default"
RIVALS = ("fedit", "hetlora")
IN_4_BITS = "-int4"
TASKS = ("minilm-bytes", "smollm2-reviews", "smollm2-commonsense", "smollm2-speeches")
_LEAST_TASKS = 2


def study_claims() -> list[Claim]:
    """Return the claims of every task that was run."""
    done = [task for task in TASKS if results_path(task).exists()]
    claims: list[Claim] = []
    won = 0
    for task in done:
        rows = by_variant(read_table(task))
        found = {
            name: _against(task, name, rows)
            for rival in RIVALS
            for name in (rival, rival + IN_4_BITS)
            if name in rows
        }
        claims += found.values()
        won += all(rival in found and found[rival].holds for rival in RIVALS)
    enough = Claim(
        claim=f"tasks of {len(done)} where {DEFAULT} beats {' and '.join(RIVALS)} as published at "
        "equal upload bytes, heavy tail, beyond the intervals",
        target=f">= {_LEAST_TASKS}",
        measured=won,
        holds=won >= _LEAST_TASKS,
    )
    return [*claims, enough]


def equal_bytes(variants: Mapping[str, Sequence[Row]], names: Sequence[str]) -> int:
    """Return the bytes that every run of these variants has sent by its end."""
    return min(row.curve[-1].uplink_bytes for name in names for row in variants[name])


def differences(
    ours: Sequence[Row], theirs: Sequence[Row], budget: int
) -> tuple[float, float | None]:
    """Return mean and 95 % half width of our loss minus theirs at equal bytes, seed by seed.

    They may finish the round in which the bytes run out, and we may not: one round of a method may
    be more than all of the bytes.
    """
    other = {row.seed: row.settled(budget, may_finish=True) for row in theirs}
    return interval([row.settled(budget).loss - other[row.seed].loss for row in ours])


def _against(task: str, rival: str, variants: Mapping[str, Sequence[Row]]) -> Claim:
    budget = equal_bytes(variants, [DEFAULT, rival])
    mean, half = differences(variants[DEFAULT], variants[rival], budget)
    return Claim(
        claim=f"{task}: held-out loss of {DEFAULT} less that of {rival}, both at "
        f"{budget / 1e6:.1f} MB sent, ± {half or 0.0:.3f}",
        target="< 0 beyond its interval",
        measured=mean,
        holds=half is not None and mean + half < 0,
    )
