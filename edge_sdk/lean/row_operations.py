"""One-pass operations on rows: native where ``fused.c`` was compiled, plain torch elsewhere.

The native kernels take contiguous fp32 on a CPU; everything else takes the plain way, which gives
the same numbers up to rounding.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from edge_sdk.lean import native
from edge_sdk.lean.native import Kernel

NF4_BLOCK = 64
"""Consecutive weights that share a scale in NF4."""
_CHUNK = 1 << 12  # numbers of a flat tensor that one thread takes at once


def norm_forward(x: Tensor, weight: Tensor, epsilon: float, y: Tensor, inverse: Tensor) -> None:
    """Write ``y = x / rms(x) * weight`` and ``inverse = 1 / rms(x)``.

    Args:
        x: ``(rows, d)``.
        weight: ``(d,)``.
        epsilon: Added to the mean square.
        y: ``(rows, d)``, written.
        inverse: ``(rows,)``, written.
    """
    kernels = native.taking(x, weight, y, inverse)
    if kernels is not None:
        tensors = (x, weight, y, inverse)
        kernels.run(Kernel.NORM_FORWARD, len(x), tensors, (x.shape[1],), (epsilon,), x.numel())
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
    kernels = native.taking(dy, x, weight, inverse, dx)
    if kernels is not None:
        tensors = (dy, x, weight, inverse, dx)
        kernels.run(Kernel.NORM_BACKWARD, len(x), tensors, (x.shape[1],), (), x.numel())
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
    kernels = native.taking(x, cosine, sine)
    if kernels is not None:
        tensors = (x, cosine, sine, positions)
        kernels.run(Kernel.ROTATE, len(x), tensors, x.shape[1:], (sign,), x.numel())
        return
    cosine, sine = cosine[positions][:, None].to(x.dtype), sign * sine[positions][:, None]
    sine = sine.to(x.dtype)
    low, high = x.chunk(2, dim=-1)
    rotated = torch.cat((low * cosine - high * sine, high * cosine + low * sine), dim=-1)
    x.copy_(rotated)


def gate_forward(gate: Tensor, up: Tensor, h: Tensor) -> None:
    """Write ``h = silu(gate) * up``; all ``(rows, width)``."""
    kernels = native.taking(gate, up, h)
    if kernels is not None:
        kernels.run(Kernel.GATE_FORWARD, len(h), (gate, up, h), (h.shape[1],), (), h.numel())
        return
    torch.mul(functional.silu(gate), up, out=h)


def gate_backward(dh: Tensor, gate: Tensor, up: Tensor) -> None:
    """Turn ``gate`` and ``up`` into their gradients, and the gradient ``dh`` into ``h``."""
    kernels = native.taking(dh, gate, up)
    if kernels is not None:
        kernels.run(Kernel.GATE_BACKWARD, len(dh), (dh, gate, up), (dh.shape[1],), (), dh.numel())
        return
    sigmoid = torch.sigmoid(gate)
    silu = gate * sigmoid
    gate.copy_(dh * up * (sigmoid + silu * (1 - sigmoid)))
    h = silu * up
    up.copy_(dh * silu)
    dh.copy_(h)


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
    kernels = native.taking(value, gradient, mean, square)
    if kernels is None:
        return False
    count = value.numel()
    tensors, rows = (value, gradient, mean, square), -(-count // _CHUNK)
    kernels.run(Kernel.ADAMW, rows, tensors, (_CHUNK, count), numbers, count)
    return True


def exponentials(logits: Tensor, largest: Tensor, shrinkage: Tensor, sums: Tensor) -> None:
    """Turn logits into exponentials relative to the largest one so far, in place.

    Args:
        logits: ``(rows, columns)``.
        largest: ``(rows,)`` of the columns before; raised where these have a larger one.
        shrinkage: ``(rows,)``, written: by what exponentials of before are to be multiplied.
        sums: ``(rows,)``, written: of these exponentials.
    """
    kernels = native.taking(logits, largest, shrinkage, sums)
    if kernels is not None:
        tensors = (logits, largest, shrinkage, sums)
        sizes = (logits.shape[1],)
        kernels.run(Kernel.EXPONENTIALS, len(logits), tensors, sizes, (), logits.numel())
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
    kernels = native.taking(packed, absmax, out)
    if kernels is None or out.dtype != torch.float32 or out.numel() % NF4_BLOCK:
        return False
    tensors, blocks = (packed, absmax, out), out.numel() // NF4_BLOCK
    kernels.run(Kernel.WIDEN_NF4, blocks, tensors, (first,), (), out.numel())
    return True
