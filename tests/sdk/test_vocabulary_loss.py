"""The blocked loss against torch's cross-entropy on whole logits, and what memory it takes."""

from __future__ import annotations

import json
import math

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.profiler import ProfilerActivity, profile

from edge_sdk.errors import DataError
from edge_sdk.lean.frozen import FrozenMatrix, Int8Matrix, PlainMatrix
from edge_sdk.lean.vocabulary_loss import CHUNK, vocabulary_loss
from edge_sdk.lean.workspace import Workspace

SIZES = [
    pytest.param(7, 12, 64, 16, id="whole-blocks"),
    pytest.param(9, 12, 61, 16, id="last-block-short"),
    pytest.param(5, 12, 65, 64, id="last-block-of-one"),
    pytest.param(6, 8, 33, 4096, id="one-block"),
    pytest.param(1, 6, 10, 1, id="one-row-and-blocks-of-one"),
    pytest.param(5, 40, 30, 8, id="wider-than-a-block"),
    pytest.param(2 * CHUNK + 3, 4, 21, 8, id="more-rows-than-a-chunk"),
]
FORMATS = [
    pytest.param(torch.float64, 1e-12, id="fp64"),
    pytest.param(torch.float32, 1e-5, id="fp32"),
]


def random_case(n: int, d: int, vocabulary: int, dtype: torch.dtype, spread: float = 1.0):
    """Return hidden states, a head and targets; the logits have about this standard deviation."""
    generator = torch.Generator().manual_seed(n + d + vocabulary)
    hidden = torch.randn(n, d, generator=generator, dtype=torch.float64) * spread / math.sqrt(d)
    head = torch.randn(vocabulary, d, generator=generator, dtype=torch.float64)
    targets = torch.randint(vocabulary, (n,), generator=generator)
    return hidden.to(dtype), head.to(dtype), targets


def int8_head(vocabulary: int, d: int) -> Int8Matrix:
    generator = torch.Generator().manual_seed(vocabulary)
    values = torch.randint(-127, 128, (vocabulary, d), generator=generator, dtype=torch.int8)
    return Int8Matrix(values, torch.rand(vocabulary, generator=generator) / 50)


def reference(hidden: Tensor, head: Tensor, targets: Tensor) -> tuple[float, Tensor]:
    """Return the summed loss and its gradient as torch computes them, in fp64."""
    leaf = hidden.double().requires_grad_()
    loss = cross_entropy(leaf @ head.double().T, targets, reduction="sum")
    loss.backward()
    return loss.item(), leaf.grad


def blocked(
    hidden: Tensor, head: FrozenMatrix, targets: Tensor, **settings
) -> tuple[float, Tensor]:
    gradient = torch.full_like(hidden, torch.nan)
    loss = vocabulary_loss(hidden, head, targets, Workspace(), gradient=gradient, **settings)
    return loss, gradient


def assert_near(ours: tuple[float, Tensor], theirs: tuple[float, Tensor], tolerance: float):
    """The gradient's error is relative to its largest entry."""
    assert ours[0] == pytest.approx(theirs[0], rel=tolerance)
    error = (ours[1].double() - theirs[1]).abs().max()
    assert error <= tolerance * theirs[1].abs().max()


@pytest.mark.parametrize(("n", "d", "vocabulary", "block"), SIZES)
@pytest.mark.parametrize(("dtype", "tolerance"), FORMATS)
def test_loss_and_gradient_are_those_of_whole_logits(n, d, vocabulary, block, dtype, tolerance):
    hidden, head, targets = random_case(n, d, vocabulary, dtype, spread=3.0)
    ours = blocked(hidden, PlainMatrix(head), targets, block=block)
    assert_near(ours, reference(hidden, head, targets), tolerance)


@pytest.mark.parametrize(("dtype", "tolerance"), FORMATS)
def test_loss_and_gradient_hold_with_logits_of_ten_thousand(dtype, tolerance):
    hidden, head, targets = random_case(40, 8, 50, dtype, spread=1e4)
    assert (hidden @ head.T).abs().max() > 1e4
    ours = blocked(hidden, PlainMatrix(head), targets, block=7)
    assert_near(ours, reference(hidden, head, targets), tolerance)


@pytest.mark.parametrize("descending", [False, True], ids=["rising", "falling"])
def test_loss_and_gradient_hold_when_every_block_outgrows_or_none_does(descending):
    head = torch.arange(-10.0, 11.0, dtype=torch.float64).sort(descending=descending).values
    head = head[:, None] * torch.tensor([1.0, 1e3], dtype=torch.float64)
    hidden = torch.tensor([[1.0, 1.0], [0.5, 0.0]], dtype=torch.float64)
    targets = torch.tensor([0, 20])
    ours = blocked(hidden, PlainMatrix(head), targets, block=2)
    assert_near(ours, reference(hidden, head, targets), 1e-12)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_an_int8_head_gives_what_its_widened_rows_give(dtype):
    head = int8_head(61, 12)
    hidden, _, targets = random_case(9, 12, 61, dtype)
    ours = blocked(hidden, head, targets, block=16)
    widened = head.values.double() * head.scale.double()[:, None]
    assert_near(ours, reference(hidden, widened, targets), 1e-12 if dtype.itemsize == 8 else 1e-5)


def test_a_bf16_head_is_widened_to_fp32_hidden_states():
    hidden, head, targets = random_case(9, 12, 61, torch.float32)
    head = head.bfloat16()
    ours = blocked(hidden, PlainMatrix(head), targets, block=16)
    assert_near(ours, reference(hidden, head, targets), 1e-5)


@pytest.mark.parametrize("held", ["bf16", "int8"])
def test_bf16_hidden_states_cost_no_more_than_bf16_rounding(held):
    hidden, head, targets = random_case(9, 64, 500, torch.bfloat16)
    matrix = PlainMatrix(head) if held == "bf16" else int8_head(500, 64)
    loss, gradient = blocked(hidden, matrix, targets, block=16)
    widened = matrix.rows(torch.arange(500), torch.float64)
    assert gradient.dtype == torch.bfloat16
    assert_near((loss, gradient), reference(hidden, widened, targets), 1e-2)


def test_bf16_sums_do_not_drift_with_the_number_of_blocks():
    """Five hundred additions in bf16 would lose the gradient; an fp32 accumulator does not."""
    hidden, _, targets = random_case(4, 8, 512, torch.bfloat16, spread=0.1)
    head = 1 + torch.rand(512, 8, generator=torch.Generator().manual_seed(0)).bfloat16()
    _, exact = reference(hidden, head, targets)
    _, gradient = blocked(hidden, PlainMatrix(head), targets, block=1)
    assert (gradient.double() - exact).abs().max() < 0.02


def test_share_scales_loss_and_gradient_alike():
    hidden, head, targets = random_case(9, 12, 61, torch.float64)
    loss, gradient = blocked(hidden, PlainMatrix(head), targets, share=0.125, block=16)
    whole_loss, whole_gradient = reference(hidden, head, targets)
    assert_near((loss, gradient), (whole_loss * 0.125, whole_gradient * 0.125), 1e-12)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_loss_is_the_same_without_a_gradient(dtype):
    hidden, head, targets = random_case(CHUNK + 5, 12, 61, dtype)
    loss, _ = blocked(hidden, PlainMatrix(head), targets, share=0.5, block=16)
    alone = vocabulary_loss(
        hidden, PlainMatrix(head), targets, Workspace(), gradient=None, share=0.5, block=16
    )
    assert alone == loss


def test_a_used_workspace_changes_nothing():
    workspace, results = Workspace(), []
    hidden, head, targets = random_case(9, 12, 61, torch.float32)
    for other in (5, 40):
        gradient = torch.empty_like(hidden)
        loss = vocabulary_loss(
            hidden, PlainMatrix(head), targets, workspace, gradient=gradient, block=16
        )
        results.append((loss, gradient))
        wide_hidden, wide_head, wide_targets = random_case(30, other, 99, torch.float32)
        vocabulary_loss(
            wide_hidden,
            PlainMatrix(wide_head),
            wide_targets,
            workspace,
            gradient=torch.empty_like(wide_hidden),
        )
    torch.testing.assert_close(results[0], results[1], rtol=0, atol=0)


def test_no_position_is_no_loss():
    head = PlainMatrix(torch.ones(5, 3))
    loss, gradient = blocked(torch.empty(0, 3), head, torch.empty(0, dtype=torch.int64))
    assert loss == 0.0
    assert gradient.shape == (0, 3)


@pytest.mark.parametrize("bad", [-100, -1, 61])
def test_a_target_outside_the_vocabulary_is_refused(bad):
    hidden, head, targets = random_case(9, 12, 61, torch.float32)
    targets[4] = bad
    with pytest.raises(DataError, match=rf"token id {bad} is outside 0\.\.60"):
        blocked(hidden, PlainMatrix(head), targets)


def test_a_hidden_state_that_is_no_number_gives_a_loss_that_is_none():
    hidden, head, targets = random_case(9, 12, 61, torch.float32)
    hidden[3, 2] = torch.nan
    loss, _ = blocked(hidden, PlainMatrix(head), targets, block=16)
    assert math.isnan(loss)


@pytest.mark.parametrize("held", ["fp32", "int8"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_memory_grows_neither_with_the_positions_nor_with_the_vocabulary(dtype, held):
    d, block, vocabulary = 24, 32, 1000
    hidden, head, targets = random_case(3 * CHUNK, d, vocabulary, dtype)
    matrix = PlainMatrix(head.float()) if held == "fp32" else int8_head(vocabulary, d)
    workspace = Workspace()
    gradient = torch.empty_like(hidden)
    vocabulary_loss(hidden, matrix, targets, workspace, gradient=gradient, block=block)
    wide = 4 * CHUNK * (block + d)
    narrow = dtype.itemsize * (CHUNK * d + block * d)
    if dtype == torch.bfloat16:
        narrow += dtype.itemsize * CHUNK * (block + d)
    assert workspace.held_bytes <= wide + narrow


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_a_call_allocates_nothing_larger_than_a_number_per_position(dtype, tmp_path):
    """Measured in torch's allocator, so that temporaries inside of an operation count too."""
    n, d, block = 200, 64, 128
    hidden, head, targets = random_case(n, d, 1000, dtype)
    workspace, gradient = Workspace(), torch.empty_like(hidden)

    def call() -> None:
        vocabulary_loss(
            hidden, PlainMatrix(head), targets, workspace, gradient=gradient, block=block
        )

    call()
    held_bytes = workspace.held_bytes
    # Where a CPU has no bf16 units, torch takes fp32 memory within a bf16 product.
    excused = "aten::mm" if dtype == torch.bfloat16 else None
    assert 0 < largest_allocation(call, tmp_path / "trace.json", excused) <= 16 * n
    assert workspace.held_bytes == held_bytes


def largest_allocation(call, trace, excused: str | None) -> int:
    """Return bytes; what an excused operation takes within itself is not counted."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        call()
    profiler.export_chrome_trace(str(trace))
    events = json.loads(trace.read_text())["traceEvents"]
    spans = [(e["ts"], e["ts"] + e["dur"]) for e in events if e["name"] == excused]
    return max(
        event["args"]["Bytes"]
        for event in events
        if event["name"] == "[memory]"
        and not any(start <= event["ts"] <= end for start, end in spans)
    )
