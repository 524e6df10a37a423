"""Many runs at once: in processes of this machine, or on a Ray cluster, with the same results."""

from __future__ import annotations

import multiprocessing
import os
import sys
import threading
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from edge_sdk.errors import ConfigError
from simulation.config import RunConfig, read_runs
from simulation.run import run_simulation

_THREADS = "OMP_NUM_THREADS"


def run_apart(
    file: Path, runs: Mapping[str, RunConfig], out: Path, jobs: int, on_ray: bool = False
) -> None:
    """Run what is not finished, some at once, in as many processes with one thread each.

    Raises:
        ConfigError: A run failed; the others are finished, and so is what a next call leaves out.
    """
    missing = [name for name in runs if not (out / f"{name}.json").exists()]
    if on_ray:
        failed = _on_ray(file.resolve(), missing, out.resolve())
    else:
        failed = _in_processes(file, missing, out, jobs)
    for name, reason in failed.items():
        raise ConfigError(f"run {name} failed: {reason}")


def _in_processes(file: Path, names: Iterable[str], out: Path, jobs: int) -> dict[str, str]:
    """Return why runs failed, by their names."""
    context = multiprocessing.get_context("spawn")
    with (
        _one_thread(),
        ProcessPoolExecutor(jobs, mp_context=context, initializer=_end_with_parent) as pool,
    ):
        ends = {name: pool.submit(_one, file, name, out) for name in names}
    return {
        name: str(error) or "its process ended"
        for name, end in ends.items()
        if (error := end.exception())
    }


def _end_with_parent() -> None:
    """End this worker as soon as the process that gives it work has ended, even killed."""
    parent = multiprocessing.parent_process()

    def watch() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


@contextmanager
def _one_thread() -> Iterator[None]:
    """Let processes that are started meanwhile compute with one thread."""
    before = os.environ.get(_THREADS)
    os.environ[_THREADS] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[_THREADS]
        else:
            os.environ[_THREADS] = before


def _on_ray(file: Path, names: Iterable[str], out: Path) -> dict[str, str]:
    """Return why runs failed, by their names; paths are absolute, and the same on all machines."""
    try:
        import ray
    except ImportError:
        raise ConfigError("a Ray cluster needs Ray: pip install 'edge-sdk[cluster]'") from None

    @ray.remote(num_cpus=1, max_retries=0)  # type: ignore[untyped-decorator]
    def one(name: str) -> None:
        _one(file, name, out)

    ends = {name: one.remote(name) for name in names}
    failed = {}
    for name, end in ends.items():
        try:
            ray.get(end)
        except ray.exceptions.RayError as error:
            failed[name] = str(getattr(error, "cause", None) or error)
    return failed


def _one(file: Path, name: str, out: Path) -> None:
    run_simulation(read_runs(file)[name], out / f"{name}.json")


if __name__ == "__main__":
    _one(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]))
