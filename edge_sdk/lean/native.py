"""The compiled kernels of ``fused.c``: found, started for this machine, and called."""

from __future__ import annotations

import ctypes
import importlib.util
import os
from collections.abc import Sequence
from enum import IntEnum
from functools import cache

import torch
from torch import Tensor

WIDEST = 16
"""Numbers that the widest instruction set computes at once (AVX-512)."""
PANEL = 64
"""Columns of an integer product, and of a head, that are computed together."""
SMALL = 1 << 15
"""Numbers for which waking another thread takes longer than computing."""
_WIDTHS = {"SSE41": 1, "AVX": 1, "AVX2": 8, "AVX2_VNNI": 8}


class Kernel(IntEnum):
    """One kernel of ``fused.c``, by its place in the table there."""

    NORM_FORWARD = 0
    NORM_BACKWARD = 1
    ROTATE = 2
    GATE_FORWARD = 3
    GATE_BACKWARD = 4
    QUANTIZE_ROWS = 5
    ADD_PRODUCT = 6
    ADAMW = 7
    EXPONENTIALS = 8
    WIDEN_NF4 = 9
    INTEGER_FORWARD = 10
    INTEGER_BACKWARD = 11
    ATTEND = 12
    ATTEND_BACK = 13


class _Arguments(ctypes.Structure):
    _fields_ = (
        ("p", ctypes.c_void_p * 10),
        ("n", ctypes.c_int64 * 6),
        ("f", ctypes.c_float * 6),
    )


class Kernels:
    """The compiled kernels, started for this machine.

    Args:
        path: Shared library made from ``fused.c``.
    """

    def __init__(self, path: str) -> None:
        self._library = ctypes.CDLL(path)
        pool = _torch_threads()
        self.has_threads = all(pool)
        self.width: int = self._library.fused_start(_widest(), *(ctypes.c_void_p(x) for x in pool))
        self.multiplies_integers = bool(self._library.fused_multiplies_integers())
        self._run = self._library.fused_run
        self._run.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int)
        self._run.restype = None

    def run(
        self,
        kernel: Kernel,
        rows: int,
        tensors: Sequence[Tensor | None],
        sizes: Sequence[int],
        numbers: Sequence[float] = (),
        size: int = 0,
    ) -> None:
        """Run one kernel; ``size`` is how many numbers it touches, roughly."""
        given = _Arguments()
        for i, tensor in enumerate(tensors):
            given.p[i] = None if tensor is None else tensor.data_ptr()
        for i, value in enumerate(sizes):
            given.n[i] = value
        for i, number in enumerate(numbers):
            given.f[i] = number
        threads = torch.get_num_threads() if size > SMALL else 1
        self._run(kernel, ctypes.byref(given), rows, threads)


@cache
def library() -> Kernels | None:
    """Return the compiled kernels, or None where they were not compiled or cannot be used."""
    found = importlib.util.find_spec("edge_sdk.lean._fused")
    if found is None or not found.origin:
        return None
    try:
        loaded = Kernels(found.origin)
    except (OSError, AttributeError):  # of another machine, or half a file
        return None
    return loaded if loaded.has_threads or torch.get_num_threads() == 1 else None


def taking(*tensors: Tensor | None) -> Kernels | None:
    """Return the kernels if they can take all of these: on a CPU, contiguous, not fp64 or bf16."""
    found = library()
    if found is None:
        return None
    for x in tensors:
        if x is not None and not (
            x.device.type == "cpu"
            and x.is_contiguous()
            and x.dtype in (torch.float32, torch.int32, torch.int8, torch.uint8)
        ):
            return None
    return found


def _widest() -> int:
    """Return the widest instruction set wanted, in numbers: oneDNN's own switch counts here too."""
    return _WIDTHS.get(os.environ.get("ONEDNN_MAX_CPU_ISA", "").upper(), WIDEST)


def _torch_threads() -> tuple[int | None, int | None, int | None]:
    """Return the addresses with which torch's own threads can be used, or Nones."""
    if not hasattr(os, "RTLD_NOLOAD"):
        return None, None, None
    for name in ("libgomp.so.1", "libomp.so", "libiomp5.so"):
        try:
            pool = ctypes.CDLL(name, mode=os.RTLD_NOLOAD | ctypes.RTLD_LOCAL)
            found = [
                ctypes.cast(getattr(pool, symbol), ctypes.c_void_p).value
                for symbol in ("GOMP_parallel", "omp_get_thread_num", "omp_get_num_threads")
            ]
        except (OSError, AttributeError):
            continue
        return found[0], found[1], found[2]
    return None, None, None
