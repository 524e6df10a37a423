"""Products of integers are exact, in every format a weight is held in and on every path."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from edge_sdk.lean import native, products
from edge_sdk.lean.frozen import FrozenMatrix, Int8Matrix, Nf4Matrix, PlainMatrix
from edge_sdk.lean.integer_products import GROUP, multiplies_integers
from edge_sdk.lean.products import IntegerProducts, Operand, WideProducts
from edge_sdk.lean.workspace import Workspace

HELD = ["int8", "bf16", "nf4"]
WHOLE = [(64, 64), (128, 192), (64, 448)]
ODD = [(48, 96), (64, 96), (96, 64), (8, 40)]
ROWS = [1, 2, 5, 6, 7, 13, 18, 61]
needs_native = pytest.mark.skipif(
    native.library() is None or not native.library().multiplies_integers,
    reason="no kernels for this machine",
)


@pytest.fixture(autouse=True)
def one_thread():
    yield
    torch.set_num_threads(1)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def integers(*shape: int, seed: int = 0) -> Tensor:
    """Random ones, int64, of which each group of a row holds a 127 or -127."""
    found = torch.randint(-127, 128, shape, generator=generator(seed))
    found[:, ::GROUP] = torch.where(torch.arange(shape[0]) % 2 == 0, 127, -127)[:, None]
    return found


def held(kind: str, d_out: int, d_in: int) -> tuple[FrozenMatrix, Tensor, Tensor]:
    """Return a matrix, its integers and their scales, which are powers of two: all is exact."""
    scale = 2.0 ** -torch.randint(3, 8, (d_out,), generator=generator(1)).float()
    if kind == "nf4":
        packed = torch.randint(0, 256, (d_out * d_in // 2,), generator=generator(2))
        absmax = 2.0 ** -torch.randint(0, 3, (d_out, d_in // 64), generator=generator(3)).float()
        absmax[:, 0] = 1.0
        absmax *= 127 * scale[:, None]
        matrix = Nf4Matrix(packed.to(torch.uint8), absmax.flatten(), d_out, d_in)
        wide = matrix.widen(torch.empty(d_out, d_in, dtype=torch.float64))
        return matrix, (wide / scale[:, None]).round().long(), scale
    values = integers(d_out, d_in, seed=4)
    if kind == "int8":
        return Int8Matrix(values.to(torch.int8), scale), values, scale
    wide = values.float() * scale[:, None]
    return PlainMatrix(wide.to(torch.bfloat16)), values, scale


def multiply(x: Tensor, g: Tensor, weight: FrozenMatrix) -> tuple[Tensor, Tensor]:
    how = IntegerProducts(Workspace())
    d_out, d_in = weight.shape
    y, dx = torch.full((len(x), d_out), 3.0), torch.full((len(g), d_in), 5.0)
    how.forward(Operand(x, Workspace()), weight, y, False)
    how.backward(g, weight, dx, False)
    return y, dx


def exact(x: Tensor, g: Tensor, values: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """From integers ``x`` and ``g``, the latter over the scales."""
    return (x @ values.T).double() * scale.double(), (g @ values).double()


@needs_native
@pytest.mark.parametrize("kind", HELD)
@pytest.mark.parametrize(("d_out", "d_in"), WHOLE)
@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("threads", [1, 2])
def test_products_are_those_of_64_bit_integers(kind, d_out, d_in, rows, threads):
    torch.set_num_threads(threads)
    weight, values, scale = held(kind, d_out, d_in)
    assert multiplies_integers(weight.as_integers())
    torch.testing.assert_close(weight.as_integers().scale, scale, rtol=0, atol=0)
    x, g = integers(rows, d_in, seed=5), integers(rows, d_out, seed=6)
    y, dx = multiply(x.float(), g.float() / scale, weight)
    expected = exact(x, g, values, scale)
    torch.testing.assert_close(y.double(), expected[0], rtol=0, atol=0)
    torch.testing.assert_close(dx.double(), expected[1], rtol=0, atol=0)


@pytest.mark.parametrize("kind", ["int8", "bf16"])
@pytest.mark.parametrize(("d_out", "d_in"), ODD)
@pytest.mark.parametrize("rows", [1, 7, 18, 61])
def test_sizes_of_no_whole_panels_take_another_way_to_the_same_numbers(kind, d_out, d_in, rows):
    weight, values, scale = held(kind, d_out, d_in)
    assert not multiplies_integers(weight.as_integers())
    x, g = integers(rows, d_in, seed=5), integers(rows, d_out, seed=6)
    y, dx = multiply(x.float(), g.float() / scale, weight)
    expected = exact(x, g, values, scale)
    torch.testing.assert_close(y.double(), expected[0], rtol=1e-6, atol=0)
    torch.testing.assert_close(dx.double(), expected[1], rtol=1e-6, atol=0)


def test_a_weight_in_fp32_is_multiplied_as_integers_too():
    narrow, values, scale = held("bf16", 64, 128)
    weight = PlainMatrix(narrow.widen(torch.empty(64, 128)))
    x, g = integers(7, 128, seed=5), integers(7, 64, seed=6)
    expected = exact(x, g, values, scale)
    for found, wanted in zip(multiply(x.float(), g.float() / scale, weight), expected, strict=True):
        torch.testing.assert_close(found.double(), wanted, rtol=1e-6, atol=0)


@needs_native
@pytest.mark.parametrize("kind", HELD)
def test_both_ways_agree_on_numbers_as_they_come(kind, monkeypatch):
    weight, _, _ = held(kind, 128, 192)
    x, g = torch.randn(13, 192, generator=generator()), torch.randn(13, 128, generator=generator(1))
    native = multiply(x, g, weight)
    monkeypatch.setattr(products, "multiplies_integers", lambda weight: False)
    for found, expected in zip(native, multiply(x, g, weight), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    wide = WideProducts(Workspace())
    y = torch.empty(13, 128)
    wide.forward(Operand(x, Workspace()), weight, y, False)
    assert torch.cosine_similarity(y.flatten(), native[0].flatten(), dim=0) > 0.999


@pytest.mark.parametrize("kind", HELD)
def test_the_number_of_threads_changes_no_bit(kind):
    weight, _, _ = held(kind, 192, 448)
    x, g = torch.randn(61, 448, generator=generator()), torch.randn(61, 192, generator=generator(1))
    found = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        found.append(multiply(x, g, weight))
    assert torch.equal(found[0][0], found[1][0])
    assert torch.equal(found[0][1], found[1][1])


@pytest.mark.parametrize(("d_out", "d_in"), [(64, 64), (64, 8192), (8192, 64), (48, 8200)])
@pytest.mark.parametrize(("sign_x", "sign_w"), [(1, 1), (1, -1), (-1, 1), (-1, -1)])
@pytest.mark.parametrize("rows", [1, 18])
def test_the_largest_integers_do_not_overflow(d_out, d_in, sign_x, sign_w, rows):
    values = torch.full((d_out, d_in), 127 * sign_w, dtype=torch.int8)
    weight = Int8Matrix(values, torch.ones(d_out))
    x, g = torch.full((rows, d_in), 127.0 * sign_x), torch.full((rows, d_out), 127.0 * sign_x)
    y, dx = multiply(x, g, weight)
    sign = sign_x * sign_w
    assert torch.equal(y, torch.full_like(y, float(sign * 127 * 127 * d_in)))
    assert torch.equal(dx, torch.full_like(dx, float(sign * 127 * 127 * d_out)))


@pytest.mark.parametrize(("d_out", "d_in"), [(64, 128), (48, 96)])
def test_a_product_is_added_only_when_asked_for(d_out, d_in):
    weight, _, _ = held("int8", d_out, d_in)
    x, g = torch.randn(7, d_in, generator=generator()), torch.randn(7, d_out, generator=generator())
    how, (y, dx) = IntegerProducts(Workspace()), multiply(x, g, weight)
    more_y, more_dx = torch.full_like(y, 3.0), torch.full_like(dx, 5.0)
    how.forward(Operand(x, Workspace()), weight, more_y, True)
    how.backward(g, weight, more_dx, True)
    torch.testing.assert_close(more_y, y + 3)
    torch.testing.assert_close(more_dx, dx + 5)


@pytest.mark.parametrize(("d_out", "d_in"), [(64, 128), (48, 96)])
def test_numbers_that_are_not_finite_come_out_not_finite(d_out, d_in):
    weight, _, _ = held("int8", d_out, d_in)
    x, g = torch.ones(7, d_in), torch.ones(7, d_out)
    x[2, 5], g[4, 3] = float("nan"), float("inf")
    y, dx = multiply(x, g, weight)
    assert y.isfinite().all(dim=1).tolist() == [i != 2 for i in range(7)]
    assert dx.isfinite().all(dim=1).tolist() == [i != 4 for i in range(7)]


@pytest.mark.parametrize(("d_out", "d_in"), [(64, 128), (48, 96)])
def test_rows_of_zeros_give_zeros(d_out, d_in):
    matrix = Int8Matrix(torch.zeros(d_out, d_in, dtype=torch.int8), torch.ones(d_out))
    plain = PlainMatrix(torch.zeros(d_out, d_in, dtype=torch.bfloat16))
    for weight in (matrix, plain):
        y, dx = multiply(torch.zeros(3, d_in), torch.ones(3, d_out), weight)
        assert not y.any()
        assert not dx.any()
