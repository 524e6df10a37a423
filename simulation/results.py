"""What a simulation came to: a row per round, and one summary."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from simulation.config import RunConfig
from simulation.work import Evaluation


class RoundRow(msgspec.Struct, frozen=True, kw_only=True):
    """One round.

    Attributes:
        number: From 1.
        began_at: Virtual seconds.
        ended_at: Virtual seconds.
        assigned: Devices that got work.
        accepted: Updates in the mean.
        dropped: Devices that were lost, or left before they were done.
        late: Devices whose update came after the end.
        uplink_bytes: Of the updates.
        downlink_bytes: Of all that got work.
        total_uplink_bytes: Of this round and all before.
        train_loss: Mean over the updates.
        trained_ranks: Share of the ranks that any update trained.
        oldest_rank: Rounds since the rank that is coldest was trained.
        aggregation_error: Relative, see :mod:`server.methods.error`.
        server_s: CPU seconds of the fold.
        evaluation: Of the model after this round, where it was tried.
    """

    number: int
    began_at: float
    ended_at: float
    assigned: int
    accepted: int
    dropped: int
    late: int
    uplink_bytes: int
    downlink_bytes: int
    total_uplink_bytes: int
    train_loss: float
    trained_ranks: float
    oldest_rank: int
    aggregation_error: float | None
    server_s: float
    evaluation: Evaluation | None


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """A run in a few numbers.

    Attributes:
        rounds: Closed.
        hours: Virtual.
        assigned: Works given out.
        accepted: Updates in means.
        dropped: Works lost.
        late: Updates that came too late.
        uplink_bytes: Of all updates.
        downlink_bytes: Of all works.
        adapter_memory_bytes: Of the device with the most ranks.
        trained_ranks: Mean over the rounds of the share of ranks that were trained.
        oldest_rank: The longest that any rank was left alone, in rounds.
        aggregation_error: Mean over the rounds.
        server_s: CPU seconds of all folds.
        cpu_s: CPU seconds of the whole run since it last began.
        heldout_loss: Of the last model.
        accuracy: Of the last model.
        is_diverged: Whether it ended because the loss left the finite numbers.
    """

    rounds: int
    hours: float
    assigned: int
    accepted: int
    dropped: int
    late: int
    uplink_bytes: int
    downlink_bytes: int
    adapter_memory_bytes: int
    trained_ranks: float
    oldest_rank: int
    aggregation_error: float | None
    server_s: float
    cpu_s: float
    heldout_loss: float | None
    accuracy: float | None
    is_diverged: bool


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """A finished run.

    Attributes:
        config_digest: SHA-256 of the configuration.
        config: What was run.
        r: Rank of the global adapter.
        affordable: The different numbers of ranks that devices could afford.
        start: How good the model was before the first round.
        rounds: One row each.
        summary: Of them.
    """

    config_digest: str
    config: RunConfig
    r: int
    affordable: list[int]
    start: Evaluation | None
    rounds: list[RoundRow]
    summary: Summary


def summarize(
    rows: Sequence[RoundRow], memory_bytes: int, cpu_s: float, is_diverged: bool
) -> Summary:
    """Add up the rounds of a run."""
    errors = [x.aggregation_error for x in rows if x.aggregation_error is not None]
    last = rows[-1].evaluation if rows else None
    return Summary(
        rounds=len(rows),
        hours=rows[-1].ended_at / 3600 if rows else 0.0,
        assigned=sum(x.assigned for x in rows),
        accepted=sum(x.accepted for x in rows),
        dropped=sum(x.dropped for x in rows),
        late=sum(x.late for x in rows),
        uplink_bytes=sum(x.uplink_bytes for x in rows),
        downlink_bytes=sum(x.downlink_bytes for x in rows),
        adapter_memory_bytes=memory_bytes,
        trained_ranks=sum(x.trained_ranks for x in rows) / max(1, len(rows)),
        oldest_rank=max((x.oldest_rank for x in rows), default=0),
        aggregation_error=sum(errors) / len(errors) if errors else None,
        server_s=sum(x.server_s for x in rows),
        cpu_s=cpu_s,
        heldout_loss=last.loss if last else None,
        accuracy=last.accuracy if last else None,
        is_diverged=is_diverged,
    )
