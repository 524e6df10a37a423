"""bitsandbytes' NF4 with double quantization, byte for byte, in plain torch.

Blocks of 64 weights share the largest magnitude among them; each weight is the nearest of 16
values times it. Those magnitudes are themselves quantized, in blocks of 256, to a dynamic 8-bit
code. They are kept here as the fp32 numbers that code stands for: 8 % more bytes, no second
decoding.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from edge_sdk.lean.row_operations import NF4_BLOCK, widen_nf4
from edge_sdk.model.nf4_code import NF4_CODE

_ABSMAX_BLOCK = 256
_CHUNK = 1 << 16  # numbers at once: about 1 MB of intermediate results
_SMALLEST = 1e-38  # stands in for the magnitude of a block of zeros
_GRID = 1 << 16


def quantize_nf4(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Quantize a matrix as ``bitsandbytes.functional.quantize_4bit`` does on a CPU.

    Next to the result only about a megabyte is needed, whatever the size of the matrix.

    Args:
        weight: ``(d_out, d_in)`` in a floating-point format, finite.

    Returns:
        The packed codes ``(ceil(n / 2),)`` uint8, the earlier one in the high bits, and the
        largest magnitudes ``(ceil(n / 64),)`` fp32 after their own quantization; n is the number
        of weights.
    """
    flat = weight.reshape(-1)
    n = flat.numel()
    packed = torch.empty(-(-n // 2), dtype=torch.uint8)
    absmax = torch.empty(-(-n // NF4_BLOCK))
    for start in range(0, n, _CHUNK):
        chunk = flat[start : start + _CHUNK].to(torch.float32, copy=True)
        largest = absmax[start // NF4_BLOCK : -(-(start + chunk.numel()) // NF4_BLOCK)]
        codes = _quantize_chunk(chunk, largest)
        packed[start // 2 : start // 2 + codes.numel()] = codes
    return packed, _quantize_absmax(absmax)


def decode_nf4(packed: Tensor, absmax: Tensor, out: Tensor, offset: int = 0) -> Tensor:
    """Write consecutive weights of a flattened NF4 matrix into ``out``, in its format; return it.

    Args:
        packed: Codes as :func:`quantize_nf4` returns them.
        absmax: Largest magnitudes, fp32.
        out: Contiguous; its size says how many weights.
        offset: First weight, counted along the rows of the whole matrix.
    """
    if offset % NF4_BLOCK or out.numel() % NF4_BLOCK:
        return decode_nf4_plain(packed, absmax, out, offset)
    if widen_nf4(packed, absmax, out, offset // NF4_BLOCK):
        return out
    flat, wide = out.view(-1), torch.empty(min(_CHUNK, out.numel()))
    for start in range(0, len(flat), _CHUNK):
        part = flat[start : start + _CHUNK]
        if not widen_nf4(packed, absmax, wide[: len(part)], (offset + start) // NF4_BLOCK):
            return decode_nf4_plain(packed, absmax, out, offset)
        part.copy_(wide[: len(part)])
    return out


def decode_nf4_plain(packed: Tensor, absmax: Tensor, out: Tensor, offset: int = 0) -> Tensor:
    """Do what :func:`decode_nf4` does with torch alone, in about a megabyte of its own memory."""
    flat = out.view(-1)
    end = offset + flat.numel()
    for start in range(offset - offset % NF4_BLOCK, end, _CHUNK):
        stop = min(start + _CHUNK, end)
        values = _decode_blocks(packed, absmax, start, stop)
        first = max(start, offset)
        flat[first - offset : stop - offset].copy_(values[first - start : stop - start])
    return out


@cache
def dynamic_code() -> tuple[float, ...]:
    """Return the 256 values of the signed dynamic 8-bit code, in ascending order.

    Source:
        8-Bit Approximations for Parallelism in Deep Learning, arXiv:1511.04561, as
        ``bitsandbytes.functional.create_dynamic_map()`` computes it.
    """
    values = [0.0, 1.0]
    for bits in range(7):
        steps = torch.linspace(0.1, 1, 2**bits + 1, dtype=torch.float32)
        means = 10 ** (bits - 6) * ((steps[:-1] + steps[1:]) / 2)
        values += means.tolist()
        values += (-means).tolist()
    return tuple(sorted(values))


def _quantize_chunk(weights: Tensor, absmax: Tensor) -> Tensor:
    """Return the packed codes of whole blocks, and of a last shorter one; fill in ``absmax``."""
    whole = weights.numel() // NF4_BLOCK * NF4_BLOCK
    blocks, rest = weights[:whole].view(-1, NF4_BLOCK), weights[whole:]
    largest = absmax[: len(blocks)]
    torch.amax(blocks.abs(), dim=1, out=largest)
    blocks *= (1 / largest.clamp(min=_SMALLEST))[:, None]
    if rest.numel():
        absmax[-1] = rest.abs().max().clamp(min=_SMALLEST)
        rest /= absmax[-1]
    code = torch.tensor(NF4_CODE)
    codes = torch.bucketize(weights.clamp_(-1, 1), (code[:-1] + code[1:]) / 2, out_int32=True)
    if codes.numel() % 2:
        codes = torch.cat([codes, torch.tensor([NF4_CODE.index(0.0)], dtype=codes.dtype)])
    pairs = codes.to(torch.uint8).view(-1, 2)
    return (pairs[:, 0] << 4) | pairs[:, 1]


def _quantize_absmax(absmax: Tensor) -> Tensor:
    """Replace magnitudes, in place, by what their 8-bit codes stand for."""
    mean = absmax.mean()
    code, nearest = torch.tensor(dynamic_code()), _nearest_on_grid()
    for part in torch.split(absmax, _CHUNK):
        whole = part.numel() // _ABSMAX_BLOCK * _ABSMAX_BLOCK
        for blocks in (part[:whole].view(-1, _ABSMAX_BLOCK), part[None, whole:]):
            if blocks.numel():
                blocks.copy_(_round_to_code(blocks - mean, code, nearest).add_(mean))
    return absmax


def _round_to_code(blocks: Tensor, code: Tensor, nearest: Tensor) -> Tensor:
    """Return ``(blocks, 256)`` rounded to multiples of the code by each row's magnitude."""
    largest = blocks.abs().amax(dim=1, keepdim=True)
    parts = (blocks * (1 / largest)).nan_to_num_(0).clamp_(-1, 1)
    on_grid = parts.add_(1).mul_(0.5).mul_(_GRID - 1).add_(0.5).int()
    return code[nearest[on_grid]] * largest


@cache
def _nearest_on_grid() -> Tensor:
    """Return the index of the nearest code ``(65536,)`` for each point of a grid on [-1, 1].

    bitsandbytes looks magnitudes up on this grid instead of searching for the nearest code.
    """
    code = torch.tensor(dynamic_code())
    points = -1 + 2 * torch.arange(_GRID, dtype=torch.float32) / (_GRID - 1)
    return torch.bucketize(points, (code[:-1] + code[1:]) / 2)


@cache
def _pairs() -> Tensor:
    """Return the two values ``(256, 2)`` that every byte stands for."""
    code = torch.tensor(NF4_CODE)
    return torch.stack([code.repeat_interleave(16), code.repeat(16)], dim=1)


def _decode_blocks(packed: Tensor, absmax: Tensor, start: int, stop: int) -> Tensor:
    """Return the weights from ``start``, the first of a block, in fp32 and at least to ``stop``."""
    codes = packed[start // 2 : -(-stop // 2)].int()
    values = _pairs().index_select(0, codes).view(-1)
    whole = values.numel() // NF4_BLOCK * NF4_BLOCK
    first = start // NF4_BLOCK
    blocks = values[:whole].view(-1, NF4_BLOCK)
    blocks *= absmax[first : first + len(blocks), None]
    if whole < values.numel():
        values[whole:] *= absmax[first + len(blocks)]
    return values
