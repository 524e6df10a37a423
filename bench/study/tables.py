"""The study's tables: a configuration and, once it was run, a data file of its results for each."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from edge_sdk.files.whole_file import write_whole
from simulation.config import read_runs
from simulation.results import Result
from simulation.run import config_digest, run_simulation
from simulation.sweep import run_apart

FOLDER = Path(__file__).parent
RAW = Path(".study") / "results"
_LOOKS = 3


class Point(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """How good the model of a run was at some time.

    Attributes:
        round_number: 0 before the first.
        uplink_bytes: Sent by then.
        loss: On held-out examples.
        accuracy: On the same.
    """

    round_number: int
    uplink_bytes: int
    loss: float
    accuracy: float | None


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One run of a table.

    Attributes:
        variant: As the configuration calls it.
        seed: Of the run.
        config_digest: Of all that it was told.
        r: Rank of its adapter.
        curve: Every look at the held-out examples.
        uplink_bytes: Of all updates.
        downlink_bytes: Of all works.
        adapter_memory_bytes: Of the device with the most ranks.
        aggregation_error: Mean over the rounds.
        trained_ranks: Mean share of the ranks trained in a round.
        oldest_rank: Rounds that a rank was left alone, at most.
        dropped: Works lost.
        server_s: CPU seconds of all folds.
        is_diverged: Whether its loss left the finite numbers.
    """

    variant: str
    seed: int
    config_digest: str
    r: int
    curve: list[Point]
    uplink_bytes: int
    downlink_bytes: int
    adapter_memory_bytes: int
    aggregation_error: float | None
    trained_ranks: float
    oldest_rank: int
    dropped: int
    server_s: float
    is_diverged: bool

    def settled(
        self, budget: float = math.inf, rounds: float = math.inf, *, may_finish: bool = False
    ) -> Point:
        """Return the mean of the last looks before a number of bytes sent, or of rounds.

        With ``may_finish`` the look counts that came first after the bytes were spent, too.

        Where devices see different labels, the loss jumps from round to round: a single look is
        as much chance as method. The mean is over three looks at most, all in the last quarter of
        the rounds until then, so that a run with more looks is not charged for its beginning.
        """
        looks = [x for x in self.curve if x.uplink_bytes <= budget and x.round_number <= rounds]
        if may_finish and looks[-1].uplink_bytes < budget:
            looks += self.curve[len(looks) : len(looks) + 1]
        looks = [x for x in looks if 4 * x.round_number >= 3 * looks[-1].round_number][-_LOOKS:]
        accuracies = [x.accuracy for x in looks if x.accuracy is not None]
        return Point(
            round_number=looks[-1].round_number,
            uplink_bytes=looks[-1].uplink_bytes,
            loss=sum(x.loss for x in looks) / len(looks),
            accuracy=sum(accuracies) / len(accuracies) if accuracies else None,
        )


def table_names() -> list[str]:
    """Return the names of all tables."""
    return sorted(path.stem for path in (FOLDER / "tables").glob("*.toml"))


def config_path(name: str) -> Path:
    """Return the configuration of a table."""
    return FOLDER / "tables" / f"{name}.toml"


def results_path(name: str) -> Path:
    """Return the data file of a table."""
    return FOLDER / "results" / f"{name}.json"


def run_table(name: str, jobs: int) -> None:
    """Run what is missing of a table and write its data file; it may be cut off at any time.

    A row that is stored stays, as long as its configuration is the same.
    """
    runs = read_runs(config_path(name))
    stored = {f"{x.variant}-{x.seed}": x for x in _stored(name)}
    kept = {
        x: stored[x]
        for x, config in runs.items()
        if x in stored and stored[x].config_digest == config_digest(config)
    }
    missing = {x: config for x, config in runs.items() if x not in kept}
    run_apart(config_path(name), missing, RAW / name, jobs)
    found = {
        x: as_row(x, run_simulation(config, RAW / name / f"{x}.json"))
        for x, config in missing.items()
    }
    rows = [(kept | found)[x] for x in runs]
    lines = [msgspec.json.encode(row) for row in rows]
    write_whole(results_path(name), b"[\n" + b",\n".join(lines) + b"\n]\n")
    results_path(name).chmod(0o644)


def read_table(name: str) -> list[Row]:
    """Return the rows of a table that was run."""
    return msgspec.json.decode(results_path(name).read_bytes(), type=list[Row])


def _stored(name: str) -> list[Row]:
    return read_table(name) if results_path(name).exists() else []


def by_variant(rows: Sequence[Row]) -> Mapping[str, list[Row]]:
    """Return the seeds of every variant, in the order of the configuration."""
    found: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        found[row.variant].append(row)
    return found


def as_row(name: str, result: Result) -> Row:
    """Return what a table keeps of a run."""
    curve = [] if result.start is None else [(0, 0, result.start)]
    curve += [
        (x.number, x.total_uplink_bytes, x.evaluation)
        for x in result.rounds
        if x.evaluation is not None
    ]
    found = result.summary
    return Row(
        variant=name.rpartition("-")[0],
        seed=result.config.seed,
        config_digest=config_digest(result.config),
        r=result.r,
        curve=[
            Point(round_number=n, uplink_bytes=sent, loss=x.loss, accuracy=x.accuracy)
            for n, sent, x in curve
        ],
        uplink_bytes=found.uplink_bytes,
        downlink_bytes=found.downlink_bytes,
        adapter_memory_bytes=found.adapter_memory_bytes,
        aggregation_error=found.aggregation_error,
        trained_ranks=found.trained_ranks,
        oldest_rank=found.oldest_rank,
        dropped=found.dropped,
        server_s=found.server_s,
        is_diverged=found.is_diverged,
    )
