"""Prepare, open or train a base in a process of its own: prints what it took as JSON."""

from __future__ import annotations

import dataclasses
import gc
import json
import sys
import time
from dataclasses import dataclass

import msgspec
import numpy as np
import psutil
import torch
from numpy.typing import NDArray
from torch import Tensor

from bench.lean_methods import build, lean_base
from bench.train_methods import Method, Work
from edge_sdk.device import peak_rss_bytes
from edge_sdk.lean.base import LeanBase
from edge_sdk.lean.frozen import Int8Matrix, Nf4Matrix, PlainMatrix


@dataclass(frozen=True, slots=True, kw_only=True)
class Loading:
    """What to do.

    Attributes:
        method: Number formats; one of ours.
        work: Model and tokens per step.
        steps: Optimizer steps to train; 0 opens the base and reads every byte of it.
        threads: CPU threads.
    """

    method: Method
    work: Work
    steps: int
    threads: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """What it took.

    Attributes:
        seconds: Wall time of opening and reading, or of everything if there were steps.
        added_bytes: Resident memory on top of what it was before.
        peak_bytes: Peak resident memory of the process, imports included.
        file_bytes: Size of the prepared file.
        path: The prepared file.
        losses: Of every step.
    """

    seconds: float
    added_bytes: int
    peak_bytes: int
    file_bytes: int
    path: str
    losses: list[float]


def main() -> int:
    """Do what the first argument says."""
    loading = msgspec.json.decode(sys.argv[1], type=Loading)
    sys.stdout.write(json.dumps(dataclasses.asdict(measure(loading))) + "\n")
    return 0


def measure(loading: Loading) -> Loaded:
    """Train if there are steps, then open the base; only opening and reading without."""
    gc.collect()
    before, started = _resident_bytes(), time.perf_counter()
    losses = list[float]()
    if loading.steps:
        trainer = build(loading.method, loading.work, loading.threads)
        losses = [trainer.step() for _ in range(loading.steps)]
    base = lean_base(loading.method, loading.work, loading.threads)
    if not loading.steps:
        _read(base)
    seconds, added_bytes = time.perf_counter() - started, _resident_bytes() - before
    return Loaded(
        seconds=seconds,
        added_bytes=added_bytes,
        peak_bytes=peak_rss_bytes(),
        file_bytes=base.prepared.path.stat().st_size,
        path=str(base.prepared.path),
        losses=losses,
    )


def _read(base: LeanBase) -> None:
    """Read every byte of every tensor."""
    vectors = list(base.prepared.vectors.values())
    for matrix in base.prepared.matrices.values():
        vectors += _tensors(matrix)
    for tensor in vectors:
        _bytes_of(tensor).max()


def _tensors(matrix: object) -> list[Tensor]:
    if isinstance(matrix, Nf4Matrix):
        return [matrix.packed, matrix.absmax]
    if isinstance(matrix, Int8Matrix):
        return [matrix.values, matrix.scale]
    if isinstance(matrix, PlainMatrix):
        return [matrix.values]
    raise TypeError(f"{type(matrix).__name__} is no matrix of a prepared base")


def _bytes_of(tensor: Tensor) -> NDArray[np.uint8]:
    view: NDArray[np.uint8] = tensor.reshape(-1).view(torch.uint8).numpy()
    return view


def _resident_bytes() -> int:
    return int(psutil.Process().memory_info().rss)


if __name__ == "__main__":
    sys.exit(main())
