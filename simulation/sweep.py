"""Many runs at once: in processes of this machine, or on a Ray cluster, with the same results."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from edge_sdk.errors import ConfigError
from simulation.config import RunConfig, read_runs
from simulation.run import run_simulation


def run_apart(
    file: Path, runs: Mapping[str, RunConfig], out: Path, jobs: int, on_ray: bool = False
) -> None:
    """Run what is not finished, some at once, each in a process of its own with one thread.

    Raises:
        ConfigError: A run failed; the others are finished, and so is what a next call leaves out.
    """
    missing = [name for name in runs if not (out / f"{name}.json").exists()]
    if on_ray:
        _on_ray(file, missing, out)
        return
    with ThreadPoolExecutor(jobs) as pool:
        failed = [x for x in pool.map(lambda name: _in_process(file, name, out), missing) if x]
    if failed:
        raise ConfigError(failed[0])


def _in_process(file: Path, name: str, out: Path) -> str | None:
    """Run one; return what went wrong."""
    command = [sys.executable, "-m", "simulation.sweep", str(file), name, str(out)]
    done = subprocess.run(  # noqa: S603 - our own module
        command,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    if done.returncode == 0:
        return None
    said = done.stderr.strip().splitlines() or ["it said nothing"]
    return f"run {name} failed: {said[-1]}"


def _on_ray(file: Path, names: Iterable[str], out: Path) -> None:
    try:
        import ray
    except ImportError:
        raise ConfigError("a Ray cluster needs Ray: pip install 'edge-sdk[cluster]'") from None

    @ray.remote(num_cpus=1)  # type: ignore[untyped-decorator]
    def one(name: str) -> None:
        _one(file, name, out)

    ray.get([one.remote(name) for name in names])


def _one(file: Path, name: str, out: Path) -> None:
    run_simulation(read_runs(file)[name], out / f"{name}.json")


if __name__ == "__main__":
    _one(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]))
