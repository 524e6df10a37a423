"""Attention of packed examples: no example sees another, natively or by torch's kernel."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from edge_sdk.lean import attention
from edge_sdk.lean.attention import PackedAttention
from edge_sdk.lean.packed_attention import PackedHeads, attends
from edge_sdk.lean.workspace import Workspace

LENGTHS = [[1], [5, 1, 7], [6, 64, 65], [130], [33, 200]]
HEADS = [(2, 2, 64), (4, 2, 64), (3, 1, 128)]


@pytest.fixture(params=[1, 2], autouse=True)
def threads(request):
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(1)


def inputs(lengths: list[int], heads: tuple[int, int, int]) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    query_heads, key_heads, size = heads
    widths = (query_heads, key_heads, key_heads, query_heads)
    return tuple(torch.randn(sum(lengths), x * size, generator=generator) for x in widths)


def run(lengths: list[int], heads: tuple[int, int, int]) -> list[Tensor]:
    """Return the output and the gradients of queries, keys and values."""
    q, k, v, gradient = inputs(lengths, heads)
    packed = PackedAttention(lengths, *heads, Workspace())
    out, found = torch.empty_like(q), tuple(torch.empty_like(x) for x in (q, k, v))
    statistics = packed.forward(q, k, v, out)
    packed.backward(gradient, (q, k, v), out, statistics, found)
    return [out, *found]


def expected(lengths: list[int], heads: tuple[int, int, int]) -> list[Tensor]:
    """Each example alone, in fp64, by autograd."""
    query_heads, key_heads, size = heads
    found = list[list[Tensor]]()
    parts = zip(*(x.double().split(lengths) for x in inputs(lengths, heads)), strict=True)
    for q, k, v, gradient in parts:
        leaves = [x.clone().requires_grad_() for x in (q, k, v)]
        split = [x.view(len(x), -1, size).transpose(0, 1) for x in leaves]
        split[1:] = [x.repeat_interleave(query_heads // key_heads, 0) for x in split[1:]]
        out = functional.scaled_dot_product_attention(*split, is_causal=True)
        out = out.transpose(0, 1).flatten(1)
        out.backward(gradient)
        found.append([out.detach(), *(x.grad for x in leaves if x.grad is not None)])
    return [torch.cat(x) for x in zip(*found, strict=True)]


@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize("is_native", [True, False])
def test_attention_and_its_gradients_are_those_of_each_example_alone(
    lengths, heads, is_native, monkeypatch
):
    if not is_native:
        monkeypatch.setattr(attention, "attends", lambda *_: False)
    for found, wanted in zip(run(lengths, heads), expected(lengths, heads), strict=True):
        torch.testing.assert_close(found.double(), wanted, rtol=1e-4, atol=2e-5)


def test_scores_far_apart_neither_overflow_nor_vanish(monkeypatch):
    q = torch.full((70, 64), 60.0)
    k = torch.linspace(-60, 60, 70)[:, None].repeat(1, 64)
    packed = PackedAttention([70], 1, 1, 64, Workspace())
    native, plain = torch.empty_like(q), torch.empty_like(q)
    packed.forward(q, k, k, native)
    monkeypatch.setattr(attention, "attends", lambda *_: False)
    packed.forward(q, k, k, plain)
    torch.testing.assert_close(native, plain, rtol=1e-4, atol=1e-4)


def test_the_number_of_threads_changes_no_bit():
    found = []
    for count in (1, 2):
        torch.set_num_threads(count)
        found.append(run([33, 200], (4, 2, 64)))
    assert all(map(torch.equal, *found))


def test_heads_of_other_sizes_and_formats_take_torchs_kernel():
    starts = torch.tensor([0, 4, 8])
    assert not attends(PackedHeads(starts, 4, 2, 2, 32), torch.float32)
    assert not attends(PackedHeads(starts, 4, 2, 2, 64), torch.bfloat16)
    assert not attends(PackedHeads(starts, 4, 2, 2, 64), torch.float64)
