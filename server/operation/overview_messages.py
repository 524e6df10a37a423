"""The JSON of the operator's overview, as frozen dataclasses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from edge_sdk.wire.messages import RoundState
from edge_sdk.wire.task import Combination, Sketching, Stragglers, Weighting
from server.registry.evaluating import Evaluation

TaskState = Literal["new", "open", "closing", "between", "finished"]
LeftOutKind = Literal["quarantined", "late"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SketchClass:
    """The devices of one round that trained the same number of ranks.

    Attributes:
        k: Sketch size.
        devices: How many got work.
        updates: How many sent an update in time.
        seconds: Wall time of the local steps of the typical one (lower median), if any.
        peak_rss_bytes: The highest peak memory among them.
        upload_bytes: The update of the typical one.
    """

    k: int
    devices: int
    updates: int
    seconds: float | None
    peak_rss_bytes: int | None
    upload_bytes: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryClass:
    """How many devices of one round peaked in one range of memory.

    Attributes:
        from_bytes: Lower end, included.
        below_bytes: Upper end, not included; None without one.
        devices: How many.
    """

    from_bytes: int
    below_bytes: int | None
    devices: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LeftOut:
    """One update that is not, or not fully, part of the mean it was meant for.

    Attributes:
        kind: ``quarantined`` is kept but part of no mean; ``late`` counts in a later round.
        round_number: The round its work was assigned in.
        counted_in: The round it was counted in, or would have been.
        device_id: Who sent it.
        device_name: As its owner named it: any printable text.
        staleness: Adapter versions it was behind.
        reason: Why it is in quarantine.
        accepted_at: Seconds since 1970, as all times here.
    """

    kind: LeftOutKind
    round_number: int
    counted_in: int
    device_id: str
    device_name: str
    staleness: int
    reason: str | None
    accepted_at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundSummary:
    """What one round added up to.

    Attributes:
        round_number: From 1.
        state: Of the round.
        opened_at: When it was opened.
        closed_at: When its adapter version was made.
        adapter_version: That version.
        assigned: Devices that got work, those behind relays too.
        accepted: Updates in its mean; a relay counts as its devices.
        late: Of these, how many came from an earlier round.
        quarantined: Updates that arrived and are part of no mean.
        missing: Devices with work that have sent nothing, or sent it too late for this round.
        loss: Mean of the losses in its mean, weighted by examples; None without one.
        lowest_loss: Of them.
        highest_loss: Of them.
        download_bytes: All slices its devices fetched.
        upload_bytes: All updates counted in it, quarantined ones too.
        full_download_bytes: The same devices fetching all ranks once.
        full_upload_bytes: The same updates at all ranks.
        by_k: Its devices by sketch size, smallest first.
        by_memory: Its devices by the peak memory they reported.
        left_out: The newest of its late and quarantined updates.
    """

    round_number: int
    state: RoundState
    opened_at: float
    closed_at: float | None
    adapter_version: int | None
    assigned: int
    accepted: int
    late: int
    quarantined: int
    missing: int
    loss: float | None
    lowest_loss: float | None
    highest_loss: float | None
    download_bytes: int
    upload_bytes: int
    full_download_bytes: int
    full_upload_bytes: int
    by_k: list[SketchClass]
    by_memory: list[MemoryClass]
    left_out: list[LeftOut]


@dataclass(frozen=True, slots=True, kw_only=True)
class WaitingDevice:
    """A device with work of which no update has come yet; ``since_s`` seconds ago it got it."""

    device_id: str
    device_name: str
    k: int
    since_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class RunningRound:
    """The round that is open, or being aggregated.

    Attributes:
        round_number: From 1.
        state: ``open`` or ``closing``.
        assigned: Devices that got work, those behind relays too.
        accepted: Updates in its mean so far; a relay counts as its devices.
        quorum: Updates that close it at once.
        min_updates: Updates it needs at its deadline.
        deadline_s: Seconds left; 0 once it is not open.
        is_prolonged: Whether it passed a deadline with too few updates.
        waiting: The devices that have been training for longest.
        waiting_total: How many there are.
    """

    round_number: int
    state: RoundState
    assigned: int
    accepted: int
    quorum: int
    min_updates: int
    deadline_s: float
    is_prolonged: bool
    waiting: list[WaitingDevice]
    waiting_total: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Coverage:
    """How often each rank was trained, round by round.

    Attributes:
        group: Neighbouring ranks that share one column; 1 up to 64 ranks.
        rounds: Numbers of the closed rounds shown, oldest first.
        updates: For each of them and each column, how many updates of its mean trained a rank
            there: mean over layers and the ranks of the column. None where that is still to be
            worked out, or too much.
        ages: For each column, closed rounds since its longest untrained rank was trained.
        oldest_rank: The rank that was not trained for longest, from 0; the first of several.
        oldest_age: Its age.
    """

    group: int
    rounds: list[int]
    updates: list[list[float] | None]
    ages: list[int]
    oldest_rank: int
    oldest_age: int


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionLine:
    """One version of the adapter, and how it did on devices if enough have reported."""

    version: int
    round_number: int
    size_bytes: int
    created_at: float
    digest: str
    evaluation: Evaluation | None


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskLine:
    """One task in the list.

    Attributes:
        name: Of the task.
        model: Of the base model.
        state: ``new`` before its first round, ``between`` rounds until a device asks for work.
        rounds: Until it is finished.
        closed: Of them, closed.
    """

    name: str
    model: str
    state: TaskState
    rounds: int
    closed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskView:
    """Everything about one task.

    Attributes:
        line: As in the list.
        r: Global rank.
        layers: Adapted layers.
        sketch_sizes: The ladder of k.
        cohort_size: Devices that get work in one round, at most.
        sketching: How ranks are drawn.
        stragglers: What happens to late updates.
        weighting: How updates are weighed.
        combination: How they are combined.
        running: The round that is not closed, if any.
        rounds: The newest rounds, oldest of them first.
        coverage: Of the closed ones among them; None before the first, and where the newest is
            too large to work out.
        versions: The newest adapter versions, newest first.
        versions_total: How many there are.
        stable_version: The version devices use; None where none is signed.
        canary_version: The version a share of them tries; None without a canary.
        canary_share: That share, 0 to 1.
    """

    line: TaskLine
    r: int
    layers: int
    sketch_sizes: list[int]
    cohort_size: int
    sketching: Sketching
    stragglers: Stragglers
    weighting: Weighting
    combination: Combination
    running: RunningRound | None
    rounds: list[RoundSummary]
    coverage: Coverage | None
    versions: list[VersionLine]
    versions_total: int
    stable_version: int | None
    canary_version: int | None
    canary_share: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """Check-ins and updates that this server process refused for one reason.

    Attributes:
        code: Stable name of the error.
        count: How many.
        task: Of the latest, as the request named it.
        detail: Of the latest.
        at: When that was.
    """

    code: str
    count: int
    task: str
    detail: str
    at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Overview:
    """What the dashboard shows.

    Attributes:
        now: Clock of the server.
        started_at: When this server process started.
        tasks: The tasks by name, the first hundred.
        tasks_total: How many there are.
        task: The one asked for, or the first that runs, or is not finished; None without tasks.
        refusals: Of this server process, most frequent first.
    """

    now: float
    started_at: float
    tasks: list[TaskLine]
    tasks_total: int
    task: TaskView | None
    refusals: list[Refusal]
