"""The compiled kernels compute what plain torch computes, whatever the size."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from edge_sdk.lean import native
from edge_sdk.lean.integer_products import GROUP, Integers, add_product, quantize_rows
from edge_sdk.lean.row_operations import (
    gate_backward,
    gate_forward,
    norm_backward,
    norm_forward,
    rotate,
)

pytestmark = pytest.mark.skipif(native.library() is None, reason="no kernels were compiled")
SIZES = [(1, 1), (1, 64), (5, 7), (3, 16), (4, 33), (7, 63), (6, 130), (300, 129)]
"""Not only of whole vectors; the last one is divided among threads."""
NEAR = {"rtol": 2e-5, "atol": 2e-6}


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def both(monkeypatch, kernel, *tensors: object) -> tuple[list[Tensor], list[Tensor]]:
    """Run a kernel on copies, native and plain; return all tensors as they are then."""
    found = []
    for is_native in (True, False):
        copies = [x.clone() if isinstance(x, Tensor) else x for x in tensors]
        with monkeypatch.context() as patch:
            if not is_native:
                patch.setattr(native, "taking", lambda *_: None)
            else:
                assert (
                    native.taking(
                        *(x for x in copies if isinstance(x, Tensor) and x.dtype != torch.int64)
                    )
                    is not None
                )
            kernel(*copies)
        found.append([x for x in copies if isinstance(x, Tensor)])
    return found[0], found[1]


def check_near(native: list[Tensor], plain: list[Tensor]) -> None:
    for a, b in zip(native, plain, strict=True):
        torch.testing.assert_close(a, b, **NEAR)


@pytest.fixture(params=[1, 2], autouse=True)
def threads(request):
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(1)


@pytest.mark.parametrize(("rows", "d"), SIZES)
def test_norm_forward_and_backward_are_those_of_autograd(monkeypatch, rows, d):
    x, weight, dy = random(rows, d), random(d, seed=1), random(rows, d, seed=2)
    y, inverse, before = torch.full((rows, d), 9.0), torch.full((rows,), 9.0), random(rows, d)
    compiled, plain = both(monkeypatch, norm_forward, x, weight, 1e-3, y, inverse)
    check_near(compiled, plain)
    wide = x.double().requires_grad_()
    expected = wide * torch.rsqrt(wide.square().mean(1, keepdim=True) + 1e-3) * weight.double()
    torch.testing.assert_close(compiled[2], expected.float(), **NEAR)
    inverse = compiled[3]
    compiled, plain = both(monkeypatch, norm_backward, dy, x, weight, inverse, before)
    check_near(compiled, plain)
    expected.backward(dy.double())
    torch.testing.assert_close(compiled[4], before + wide.grad.float(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize(
    ("rows", "heads", "size"), [(1, 1, 2), (5, 3, 6), (4, 2, 34), (7, 1, 64), (90, 3, 130)]
)
def test_rotation_is_the_plain_one_and_can_be_undone(monkeypatch, rows, heads, size, sign):
    angles = random(20, size // 2, seed=1)
    table = (angles.cos(), angles.sin())
    positions = torch.arange(rows).flip(0) % 20

    def turn(x: Tensor) -> None:
        rotate(x, table, positions, sign)

    x = random(rows, heads, size)
    (compiled,), (plain,) = both(monkeypatch, turn, x)
    check_near([compiled], [plain])
    assert not torch.allclose(compiled, x)
    rotate(compiled, table, positions, -sign)
    torch.testing.assert_close(compiled, x, **NEAR)


@pytest.mark.parametrize(("rows", "d"), SIZES)
def test_gate_forward_and_backward_are_those_of_autograd(monkeypatch, rows, d):
    gate, up, dh = 4 * random(rows, d), random(rows, d, seed=1), random(rows, d, seed=2)
    compiled, plain = both(monkeypatch, gate_forward, gate, up, torch.empty(rows, d))
    check_near(compiled, plain)
    wide = [x.double().requires_grad_() for x in (gate, up)]
    h = torch.nn.functional.silu(wide[0]) * wide[1]
    torch.testing.assert_close(compiled[2], h.float(), **NEAR)
    compiled, plain = both(monkeypatch, gate_backward, dh, gate, up)
    check_near(compiled, plain)
    h.backward(dh.double())
    check_near(compiled, [h.detach().float(), wide[0].grad.float(), wide[1].grad.float()])


@pytest.mark.parametrize("far", [-200.0, -90.0, 90.0, 200.0])
def test_gate_far_from_zero_is_finite(monkeypatch, far):
    gate, up, h = torch.full((2, 19), far), torch.ones(2, 19), torch.empty(2, 19)
    compiled, plain = both(monkeypatch, gate_forward, gate, up, h)
    check_near(compiled, plain)
    compiled, plain = both(monkeypatch, gate_backward, torch.ones(2, 19), gate, up)
    check_near(compiled, plain)
    assert all(x.isfinite().all() for x in compiled)


@pytest.mark.parametrize("has_columns", [False, True])
@pytest.mark.parametrize(("rows", "d"), SIZES)
def test_rows_become_integers_that_give_them_back(monkeypatch, rows, d, has_columns):
    x = random(rows, d) * torch.logspace(-20, 10, rows)[:, None]
    x[0, :] = 0.0 if rows > 1 else x[0, :]
    columns = random(d, seed=3).abs() + 0.1 if has_columns else None
    compiled, plain = both(monkeypatch, quantized, x, columns, *blank(rows, d))
    torch.testing.assert_close(compiled[-2], plain[-2], rtol=1e-6, atol=0)
    apart = (compiled[-3].int() - plain[-3].int()).abs()
    assert apart.max() <= 1
    assert apart.sum() <= 0.001 * rows * d, "only where a half is rounded"
    scaled = x if columns is None else x * columns
    scale = compiled[-2].repeat_interleave(GROUP, dim=1)[:, :d]
    error = (compiled[-3].float() * scale - scaled).abs()
    assert (error <= 0.51 * scale).all()
    assert compiled[-3][-1, :GROUP].int().abs().max() == 127
    assert not compiled[-3].eq(-128).any()
    for values, _, excess in (compiled[-3:], plain[-3:]):
        parts = values.int().split(GROUP, dim=1)
        assert torch.equal(excess, torch.stack([128 * x.sum(1) for x in parts], 1).int())


def blank(rows: int, d: int) -> tuple[Tensor, Tensor, Tensor]:
    groups = -(-d // GROUP)
    excess = torch.zeros(rows, groups, dtype=torch.int32)
    return torch.zeros(rows, d, dtype=torch.int8), torch.empty(rows, groups), excess


def quantized(x, columns, values, scale, excess):
    quantize_rows(x, columns, Integers(values, scale, excess))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("place", [0, 15, 16, 32, 36])
@pytest.mark.parametrize("has_columns", [False, True])
def test_a_row_that_is_not_finite_stays_visible(monkeypatch, bad, place, has_columns):
    x = random(3, 37)
    x[1, place] = bad
    columns = torch.ones(37) if has_columns else None
    for found in both(monkeypatch, quantized, x, columns, *blank(3, 37)):
        assert found[-2].isfinite().flatten().tolist() == [True, False, True]


@pytest.mark.parametrize("has_columns", [False, True])
@pytest.mark.parametrize(("rows", "d"), SIZES)
def test_an_integer_product_is_scaled_back_and_added(monkeypatch, rows, d, has_columns):
    product = torch.randint(-(2**24), 2**24, (rows, d), dtype=torch.int32)
    scales, columns = random(rows).abs(), random(d, seed=1).abs() if has_columns else None
    y = random(rows, d, seed=2)
    compiled, plain = both(monkeypatch, add_product, product, scales, columns, y)
    torch.testing.assert_close(compiled[-1], plain[-1], rtol=1e-5, atol=1e-2)
    expected = y.double() + product.double() * scales.double()[:, None] * (
        1.0 if columns is None else columns.double()
    )
    torch.testing.assert_close(compiled[-1].double(), expected, rtol=1e-5, atol=1e-2)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_formats_and_strides_take_the_plain_way(dtype):
    assert native.taking(random(4, 4)) is not None
    assert native.taking(random(4, 4).to(dtype)) is None
    assert native.taking(random(4, 4).T) is None
    assert native.taking(random(4, 4), None, random(4, 4)[:, :2]) is None
