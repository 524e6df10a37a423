"""One method on one workload in a process of its own: prints memory and step times as JSON."""

from __future__ import annotations

import dataclasses
import gc
import importlib
import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import psutil

from bench.train_methods import Method, Trainer, Work
from edge_sdk.device import peak_rss_bytes
from edge_sdk.memory.heap import release_freed_memory

_CLEAR_REFS, _RESET_PEAK = Path("/proc/self/clear_refs"), "5"


@dataclass(frozen=True, slots=True, kw_only=True)
class Once:
    """What to measure.

    Attributes:
        method: How to train.
        work: What.
        steps: Timed steps, after one that is not.
        threads: CPU threads.
    """

    method: Method
    work: Work
    steps: int
    threads: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What it took.

    Attributes:
        import_bytes: Resident memory with every library, before any model.
        load_s: Wall time of loading and setting up.
        load_peak_bytes: Peak resident memory of that.
        loaded_bytes: Resident memory afterwards.
        peak_bytes: Peak resident memory of the steps.
        step_s: Wall time of each timed step.
        losses: Of every step, the first one included.
        tokens: Per step.
        parts_s: Seconds of the fastest timed step by part, if the method tells.
    """

    import_bytes: int
    load_s: float
    load_peak_bytes: int
    loaded_bytes: int
    peak_bytes: int
    step_s: list[float]
    losses: list[float]
    tokens: int
    parts_s: dict[str, float]

    @property
    def whole_peak_bytes(self) -> int:
        """Peak resident memory of loading and training."""
        return max(self.load_peak_bytes, self.peak_bytes)


def main() -> int:
    """Measure what the first argument says."""
    once = msgspec.json.decode(sys.argv[1], type=Once)
    sys.stdout.write(json.dumps(dataclasses.asdict(measure(once))) + "\n")
    return 0


def measure(once: Once) -> Measured:
    """Import, load, train."""
    module: Any = importlib.import_module(once.method.module)
    module.import_libraries(once.method, once.work)
    gc.collect()
    import_bytes = _resident_bytes()
    _reset_peak()
    started = time.perf_counter()
    trainer: Trainer = module.build(once.method, once.work, once.threads)
    load_s = time.perf_counter() - started
    load_peak_bytes = peak_rss_bytes()
    gc.collect()
    release_freed_memory()
    loaded_bytes = _resident_bytes()
    _reset_peak()
    losses, step_s, parts_s = [trainer.step()], list[float](), dict[str, float]()
    for _ in range(once.steps):
        started = time.perf_counter()
        losses.append(trainer.step())
        step_s.append(time.perf_counter() - started)
        if step_s[-1] == min(step_s):
            parts_s = dict(trainer.parts_s)
    return Measured(
        import_bytes=import_bytes,
        load_s=load_s,
        load_peak_bytes=load_peak_bytes,
        loaded_bytes=loaded_bytes,
        peak_bytes=peak_rss_bytes(),
        step_s=step_s,
        losses=losses,
        tokens=once.work.tokens,
        parts_s=parts_s,
    )


def _resident_bytes() -> int:
    return int(psutil.Process().memory_info().rss)


def _reset_peak() -> None:
    """Let the peak start again from what is resident now; Linux alone can."""
    _CLEAR_REFS.write_text(_RESET_PEAK, encoding="ascii")


if __name__ == "__main__":
    sys.exit(main())
