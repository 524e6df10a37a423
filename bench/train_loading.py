"""A base larger than the memory there is, and a second start: under a limit the kernel enforces."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from bench.cgroup import MemoryCgroup
from bench.fresh_process import measure_fresh
from bench.loading_once import Loaded, Loading
from bench.report import Claim
from bench.train_methods import OURS_LEAN, OURS_NF4, QWEN, SMOLLM2, Method
from bench.train_speed import Plan
from demo.assets import CACHE_VARIABLE, cache_folder

LIMIT_OF_BF16 = 0.9
STEPS = 2
MOST_START_S = 3.0
MOST_ADDED = 1.15
_LARGE = replace(QWEN, batch_size=1, length=128)
_SECOND_STARTS = (OURS_NF4, OURS_LEAN)


@dataclass(frozen=True, slots=True, kw_only=True)
class Squeezed:
    """Preparing and training under a limit.

    Attributes:
        bf16_bytes: Of the model's weights.
        limit_bytes: Of the control group.
        charged_bytes: Most that was charged to it, file cache included.
        run: What it took; None if the kernel killed it.
    """

    bf16_bytes: int
    limit_bytes: int
    charged_bytes: int
    run: Loaded | None


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadingRows:
    """Everything measured.

    Attributes:
        squeezed: Under the limit; None where no control group can be made.
        starts: Second starts by the method's name.
    """

    squeezed: Squeezed | None
    starts: dict[str, Loaded]


def measure_loading(console: Console, plan: Plan) -> LoadingRows:
    """Prepare a large base under a limit, start a small one again, and print both."""
    with tempfile.TemporaryDirectory() as cache:
        squeezed = _squeeze(console, cache, plan.threads)
        starts = {x.name: _start_again(x, cache, plan.threads) for x in _SECOND_STARTS}
    found = LoadingRows(squeezed=squeezed, starts=starts)
    if squeezed is not None:
        console.print(_squeezed_text(squeezed))
    console.print(_table(found))
    return found


def loading_claims(found: LoadingRows) -> Iterator[Claim]:
    """Yield what must hold."""
    squeezed = found.squeezed
    if squeezed is not None:
        losses = [] if squeezed.run is None else squeezed.run.losses
        yield Claim(
            claim=(
                f"{_LARGE.model} prepared and trained under a limit of {LIMIT_OF_BF16:g} of its "
                "bf16 size: steps taken"
            ),
            target=f">= {STEPS}",
            measured=len(losses),
            holds=len(losses) >= STEPS,
        )
    slowest = max(start.seconds for start in found.starts.values())
    yield Claim(
        claim=f"{SMOLLM2.model}, second start, every byte read, imports not counted: seconds",
        target=f"< {MOST_START_S:g}",
        measured=slowest,
        holds=slowest < MOST_START_S,
    )
    added = max(start.added_bytes / start.file_bytes for start in found.starts.values())
    yield Claim(
        claim=f"{SMOLLM2.model}, second start: memory added over the size of the prepared file",
        target=f"<= {MOST_ADDED:g}",
        measured=added,
        holds=added <= MOST_ADDED,
    )


def json_rows(found: LoadingRows) -> list[dict[str, Any]]:
    """Return everything, for the JSON file."""
    return [asdict(found)]


def _squeeze(console: Console, cache: str, threads: int) -> Squeezed | None:
    """Prepare, save and train within a limit below the model's bf16 size, in one process."""
    bf16_bytes = 2 * (_LARGE.shape.linear_parameters + _LARGE.shape.embedding_parameters)
    group = MemoryCgroup(int(LIMIT_OF_BF16 * bf16_bytes))
    try:
        group.__enter__()
    except SystemExit as reason:
        console.print(f"not measured under a limit: {reason}")
        return None
    try:
        loading = Loading(method=OURS_LEAN, work=_LARGE, steps=STEPS, threads=threads)
        try:
            run = _fresh(loading, cache, group)
        except SystemExit:
            if not group.kills():
                raise
            run = None
        charged_bytes = group.peak_bytes()
    finally:
        group.__exit__(None, None, None)
    return Squeezed(
        bf16_bytes=bf16_bytes,
        limit_bytes=int(LIMIT_OF_BF16 * bf16_bytes),
        charged_bytes=charged_bytes,
        run=run,
    )


def _start_again(method: Method, cache: str, threads: int) -> Loaded:
    """Open a base that an earlier process prepared; its file is read from the disk again."""
    loading = Loading(method=method, work=SMOLLM2, steps=0, threads=threads)
    _drop_from_cache(Path(_fresh(loading, cache).path))
    return _fresh(loading, cache)


def _fresh(loading: Loading, cache: str, group: MemoryCgroup | None = None) -> Loaded:
    return measure_fresh(
        "bench.loading_once",
        loading,
        Loaded,
        loading.threads,
        environment={"XDG_CACHE_HOME": cache, CACHE_VARIABLE: str(cache_folder())},
        enter=None if group is None else group.enter,
    )


def _drop_from_cache(path: Path) -> None:
    """Ask the kernel to forget what it keeps of a file."""
    with path.open("rb+") as stream:
        os.fsync(stream.fileno())
        os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _squeezed_text(squeezed: Squeezed) -> str:
    how = "killed" if squeezed.run is None else f"peak {squeezed.run.peak_bytes / 1e6:.0f} MB"
    return (
        f"{_LARGE.model}, {squeezed.bf16_bytes / 1e6:.0f} MB in bf16, prepared and trained under a "
        f"limit of {squeezed.limit_bytes / 1e6:.0f} MB: {how}, "
        f"{squeezed.charged_bytes / 1e6:.0f} MB charged with file cache"
    )


def _table(found: LoadingRows) -> Table:
    table = Table("method", title=f"{SMOLLM2.model}: second start from the prepared base")
    for name in ("file MB", "seconds", "memory added MB", "of the file"):
        table.add_column(name, justify="right")
    for name, start in found.starts.items():
        table.add_row(
            name,
            f"{start.file_bytes / 1e6:.0f}",
            f"{start.seconds:.2f}",
            f"{start.added_bytes / 1e6:.0f}",
            f"{start.added_bytes / start.file_bytes:.2f}",
        )
    return table
