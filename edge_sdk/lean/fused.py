"""One-pass operations on rows: native where ``fused.c`` was compiled, plain torch elsewhere.

The native kernels take contiguous fp32 on a CPU; everything else takes the plain way, which gives
the same numbers up to rounding.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor
from torch.nn import functional

_WIDEST = 16
_QUERIES = 6  # that attention computes together
_WIDTHS = {"SSE41": 1, "AVX": 1, "AVX2": 8, "AVX2_VNNI": 8}
_CHUNK = 1 << 12  # numbers of a flat tensor that one thread takes at once
_SMALL = 1 << 15  # numbers for which waking another thread takes longer than computing
GROUP = 128
"""Numbers of a row of activations that share a scale."""
_PANEL = 64  # columns of an integer product that are computed together
_HELD = {torch.int8: 0, torch.bfloat16: 2}
_HELD_NF4 = 1
NF4_BLOCK = 64
"""Consecutive weights that share a scale in NF4."""


class _Arguments(ctypes.Structure):
    _fields_ = (
        ("p", ctypes.c_void_p * 10),
        ("n", ctypes.c_int64 * 6),
        ("f", ctypes.c_float * 6),
    )


class _Library:
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
        kernel: int,
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
        threads = torch.get_num_threads() if size > _SMALL else 1
        self._run(kernel, ctypes.byref(given), rows, threads)


(
    _NORM_FORWARD,
    _NORM_BACKWARD,
    _ROTATE,
    _GATE_FORWARD,
    _GATE_BACKWARD,
    _QUANTIZE_ROWS,
    _ADD_PRODUCT,
    _ADAMW,
    _EXPONENTIALS,
    _WIDEN_NF4,
    _INTEGER_FORWARD,
    _INTEGER_BACKWARD,
    _ATTEND,
    _ATTEND_BACK,
) = range(14)


@cache
def library() -> _Library | None:
    """Return the compiled kernels, or None where they were not compiled or cannot be used."""
    found = importlib.util.find_spec("edge_sdk.lean._fused")
    if found is None or not found.origin:
        return None
    try:
        loaded = _Library(found.origin)
    except (OSError, AttributeError):  # of another machine, or half a file
        return None
    return loaded if loaded.has_threads or torch.get_num_threads() == 1 else None


def norm_forward(x: Tensor, weight: Tensor, epsilon: float, y: Tensor, inverse: Tensor) -> None:
    """Write ``y = x / rms(x) * weight`` and ``inverse = 1 / rms(x)``.

    Args:
        x: ``(rows, d)``.
        weight: ``(d,)``.
        epsilon: Added to the mean square.
        y: ``(rows, d)``, written.
        inverse: ``(rows,)``, written.
    """
    native = _native(x, weight, y, inverse)
    if native is not None:
        tensors = (x, weight, y, inverse)
        native.run(_NORM_FORWARD, len(x), tensors, (x.shape[1],), (epsilon,), x.numel())
        return
    wide = torch.promote_types(x.dtype, torch.float32)
    mean = x.to(wide).square().mean(dim=1)
    inverse.copy_(torch.rsqrt(mean + epsilon))
    y.copy_(x * inverse[:, None] * weight)


def norm_backward(dy: Tensor, x: Tensor, weight: Tensor, inverse: Tensor, dx: Tensor) -> None:
    """Add the gradient of :func:`norm_forward` with respect to ``x`` to ``dx``.

    Args:
        dy: ``(rows, d)`` gradient of its output.
        x: ``(rows, d)`` its input.
        weight: ``(d,)``.
        inverse: ``(rows,)`` as it was written.
        dx: ``(rows, d)``, added to.
    """
    native = _native(dy, x, weight, inverse, dx)
    if native is not None:
        tensors = (dy, x, weight, inverse, dx)
        native.run(_NORM_BACKWARD, len(x), tensors, (x.shape[1],), (), x.numel())
        return
    scaled = dy * weight
    along = (scaled * x).mean(dim=1) * inverse**3
    dx.add_(scaled * inverse[:, None]).sub_(x * along[:, None])


def rotate(x: Tensor, table: tuple[Tensor, Tensor], positions: Tensor, sign: float) -> None:
    """Rotate every head of every row by its position, in place.

    Args:
        x: ``(rows, heads, head_size)``; the halves of a head are the two coordinates.
        table: Cosine and sine, each ``(positions, head_size / 2)`` in fp32 or wider.
        positions: ``(rows,)``.
        sign: 1 rotates, -1 rotates back.
    """
    cosine, sine = table
    native = _native(x, cosine, sine)
    if native is not None:
        tensors = (x, cosine, sine, positions)
        native.run(_ROTATE, len(x), tensors, x.shape[1:], (sign,), x.numel())
        return
    cosine, sine = cosine[positions][:, None].to(x.dtype), sign * sine[positions][:, None]
    sine = sine.to(x.dtype)
    low, high = x.chunk(2, dim=-1)
    rotated = torch.cat((low * cosine - high * sine, high * cosine + low * sine), dim=-1)
    x.copy_(rotated)


def gate_forward(gate: Tensor, up: Tensor, h: Tensor) -> None:
    """Write ``h = silu(gate) * up``; all ``(rows, width)``."""
    native = _native(gate, up, h)
    if native is not None:
        native.run(_GATE_FORWARD, len(h), (gate, up, h), (h.shape[1],), (), h.numel())
        return
    torch.mul(functional.silu(gate), up, out=h)


def gate_backward(dh: Tensor, gate: Tensor, up: Tensor) -> None:
    """Turn ``gate`` and ``up`` into their gradients, and the gradient ``dh`` into ``h``."""
    native = _native(dh, gate, up)
    if native is not None:
        native.run(_GATE_BACKWARD, len(dh), (dh, gate, up), (dh.shape[1],), (), dh.numel())
        return
    sigmoid = torch.sigmoid(gate)
    silu = gate * sigmoid
    gate.copy_(dh * up * (sigmoid + silu * (1 - sigmoid)))
    h = silu * up
    up.copy_(dh * silu)
    dh.copy_(h)


@dataclass(frozen=True, slots=True)
class Integers:
    """Activations as 8-bit integers; ``GROUP`` numbers of a row share a scale.

    Attributes:
        values: ``(rows, d)`` int8 within -127..127.
        scale: ``(rows, groups)`` fp32; not finite where the numbers are not.
        excess: ``(rows, groups)`` int32: 128 times the sum of the integers.
    """

    values: Tensor
    scale: Tensor
    excess: Tensor


def quantize_rows(x: Tensor, columns: Tensor | None, out: Integers) -> None:
    """Write ``x``, or ``x * columns``, as integers.

    Args:
        x: ``(rows, d)``.
        columns: ``(d,)`` or None.
        out: Written.
    """
    native = _native(x, columns, out.values, out.scale, out.excess)
    if native is not None:
        tensors = (x, columns, out.values, out.scale, out.excess)
        native.run(_QUANTIZE_ROWS, len(x), tensors, (x.shape[1],), (), x.numel())
        return
    scaled = x if columns is None else x * columns
    for group, first in enumerate(range(0, x.shape[1], GROUP)):
        part = scaled[:, first : first + GROUP]
        largest = part.abs().amax(dim=1)
        scale = torch.where(largest == 0, 1.0, largest / 127)
        integers = torch.round(part / scale[:, None]).nan_to_num_(0.0)
        out.scale[:, group] = scale
        out.values[:, first : first + GROUP] = integers
        out.excess[:, group] = 128 * integers.sum(dim=1)


def add_product(product: Tensor, rows: Tensor, columns: Tensor | None, y: Tensor) -> None:
    """Add a product of integers to ``y``, scaled back.

    Args:
        product: ``(rows, d)`` int32.
        rows: ``(rows,)`` scales.
        columns: ``(d,)`` scales, or None.
        y: ``(rows, d)``, added to.
    """
    native = _native(product, rows, columns, y)
    if native is not None:
        tensors = (product, rows, columns, y)
        native.run(_ADD_PRODUCT, len(y), tensors, (y.shape[1],), (), y.numel())
        return
    scaled = product.to(y.dtype) * rows[:, None].to(y.dtype)
    y.add_(scaled if columns is None else scaled * columns.to(y.dtype))


def adamw_step(
    value: Tensor, gradient: Tensor, mean: Tensor, square: Tensor, numbers: Sequence[float]
) -> bool:
    """Take one step of AdamW in place, and return True; False if it must be done plain.

    Args:
        value: Parameter.
        gradient: Of the same shape, as the others.
        mean: Moving mean of the gradients.
        square: Moving mean of their squares.
        numbers: Factor of the values, ``1 - beta1``, ``beta2``, step size, square root of the
            correction of the squares, epsilon.
    """
    native = _native(value, gradient, mean, square)
    if native is None:
        return False
    count = value.numel()
    tensors, rows = (value, gradient, mean, square), -(-count // _CHUNK)
    native.run(_ADAMW, rows, tensors, (_CHUNK, count), numbers, count)
    return True


def exponentials(logits: Tensor, largest: Tensor, shrinkage: Tensor, sums: Tensor) -> None:
    """Turn logits into exponentials relative to the largest one so far, in place.

    Args:
        logits: ``(rows, columns)``.
        largest: ``(rows,)`` of the columns before; raised where these have a larger one.
        shrinkage: ``(rows,)``, written: by what exponentials of before are to be multiplied.
        sums: ``(rows,)``, written: of these exponentials.
    """
    native = _native(logits, largest, shrinkage, sums)
    if native is not None:
        tensors = (logits, largest, shrinkage, sums)
        native.run(_EXPONENTIALS, len(logits), tensors, (logits.shape[1],), (), logits.numel())
        return
    raised = torch.maximum(largest, logits.amax(1))
    shrinkage.copy_(torch.exp(largest - raised))
    largest.copy_(raised)
    sums.copy_(logits.sub_(largest[:, None]).exp_().sum(1))


def widen_nf4(packed: Tensor, absmax: Tensor, out: Tensor, first: int) -> bool:
    """Write whole blocks of NF4 weights as fp32, and return True; False if it must be done plain.

    Args:
        packed: ``(blocks * 32,)`` uint8.
        absmax: ``(blocks,)`` fp32.
        out: Of a multiple of 64 numbers.
        first: Block to begin with.
    """
    native = _native(packed, absmax, out)
    if native is None or out.dtype != torch.float32 or out.numel() % NF4_BLOCK:
        return False
    tensors, blocks = (packed, absmax, out), out.numel() // NF4_BLOCK
    native.run(_WIDEN_NF4, blocks, tensors, (first,), (), out.numel())
    return True


@dataclass(frozen=True, slots=True)
class IntegerWeight:
    """A frozen weight ``(d_out, d_in)`` that is read as 8-bit integers with one scale per row.

    Attributes:
        values: As they are held: int8, packed NF4, or bf16.
        scale: ``(d_out,)`` fp32: a weight is about its integer times this.
        absmax: Of NF4, else None.
        d_out: Rows.
        d_in: Columns.
    """

    values: Tensor
    scale: Tensor
    absmax: Tensor | None
    d_out: int
    d_in: int

    def part(self, start: int, stop: int) -> IntegerWeight:
        """Return some rows as a weight of their own; not of NF4."""
        rows = slice(start, stop)
        return IntegerWeight(self.values[rows], self.scale[rows], None, stop - start, self.d_in)


def multiplies_integers(weight: IntegerWeight) -> bool:
    """Tell whether :func:`integer_product` can run here with such a weight."""
    found = library()
    is_whole = weight.d_in % _PANEL == 0 and weight.d_out % _PANEL == 0
    is_known = weight.absmax is not None or weight.values.dtype in _HELD
    return found is not None and found.multiplies_integers and is_whole and is_known


def integer_product(
    x: Integers,
    weight: IntegerWeight,
    y: Tensor,
    scratch: Tensor,
    *,
    is_forward: bool,
    is_added: bool,
) -> None:
    """Write, or add, ``x W^T`` or, going back, ``x W`` to ``y``, from integers.

    Args:
        x: Activations ``(m, d_in)``; going back ``(m, d_out)``, with the weight's scale put in
            before they were rounded.
        weight: For which :func:`multiplies_integers` holds.
        y: ``(m, d_out)``, or ``(m, d_in)`` going back, fp32.
        scratch: Of :func:`scratch_bytes`.
        is_forward: Which of the two.
        is_added: To what ``y`` held.
    """
    native = library()
    assert native is not None  # noqa: S101 - multiplies_integers() said so
    (rows, depth), threads = x.values.shape, torch.get_num_threads()
    held = _HELD_NF4 if weight.absmax is not None else _HELD[weight.values.dtype]
    sizes = (rows, y.shape[1], depth, held, threads, scratch.numel() // threads)
    weights = (weight.values, weight.scale, weight.absmax)
    tensors = (x.values, x.scale, *weights, y, scratch, x.excess)
    kernel = _INTEGER_FORWARD if is_forward else _INTEGER_BACKWARD
    native.run(
        kernel, y.shape[1] // _PANEL * threads, tensors, sizes, (float(is_added),), _SMALL + 1
    )


def scratch_bytes(weight: IntegerWeight) -> int:
    """Return the bytes :func:`integer_product` lays weights out in, for all threads."""
    return torch.get_num_threads() * _PANEL * max(weight.d_out, weight.d_in)


@dataclass(frozen=True, slots=True)
class PackedHeads:
    """How the rows of packed examples divide into examples, and their columns into heads.

    Attributes:
        starts: ``(examples + 1,)`` int64: first row of each, and the end of the last.
        longest: Rows of the longest example.
        heads: Query heads.
        key_heads: Key heads.
        head_size: Of one head.
    """

    starts: Tensor
    longest: int
    heads: int
    key_heads: int
    head_size: int

    @property
    def padded(self) -> int:
        """Rows of the longest example, up to a whole panel."""
        return -(-self.longest // _PANEL) * _PANEL

    @property
    def scratch_bytes(self) -> int:
        """Bytes of what one thread needs: keys and values laid across, and six queries' scores."""
        return 4 * self.padded * 2 * (self.head_size + _QUERIES)


def attends(packed: PackedHeads, dtype: torch.dtype) -> bool:
    """Tell whether :func:`attend` can run here, and has work for all threads."""
    found = library()
    tasks = (len(packed.starts) - 1) * packed.key_heads
    return (
        found is not None
        and found.width == _WIDEST
        and dtype == torch.float32
        and packed.head_size % _PANEL == 0
        and tasks >= torch.get_num_threads()
    )


def attend(
    q: Tensor, k: Tensor, v: Tensor, packed: PackedHeads, out: Tensor, scratch: Tensor
) -> None:
    """Write causal attention of each example by itself; all ``(rows, columns)`` fp32.

    Args:
        q: Queries.
        k: Keys.
        v: Values.
        packed: For which :func:`attends` holds.
        out: Written.
        scratch: ``packed.scratch_bytes`` for each thread.
    """
    _attend(_ATTEND, (q, k, v, out, packed.starts, scratch), packed)


def attend_back(
    inputs: tuple[Tensor, Tensor, Tensor],
    gradient: Tensor,
    packed: PackedHeads,
    gradients: tuple[Tensor, Tensor, Tensor],
    scratch: Tensor,
) -> None:
    """Write the gradients of queries, keys and values; the way :func:`attend` went is gone again.

    Args:
        inputs: Queries, keys and values.
        gradient: Of the output.
        packed: As before.
        gradients: Written.
        scratch: As before.
    """
    tensors = (*inputs, gradient, packed.starts, scratch, *gradients)
    _attend(_ATTEND_BACK, tensors, packed)


def _attend(kernel: int, tensors: Sequence[Tensor], packed: PackedHeads) -> None:
    native = library()
    assert native is not None  # noqa: S101 - attends() said so
    tasks = (len(packed.starts) - 1) * packed.key_heads
    sizes = (packed.heads, packed.key_heads, packed.head_size, packed.scratch_bytes, packed.padded)
    scale = packed.head_size**-0.5
    native.run(kernel, tasks, tensors, sizes, (scale,), len(tensors[0]) * packed.padded)


def _native(*tensors: Tensor | None) -> _Library | None:
    """Return the library if it can take all of these: on a CPU, contiguous, not fp64 or bf16."""
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
    return _WIDTHS.get(os.environ.get("ONEDNN_MAX_CPU_ISA", "").upper(), _WIDEST)


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
