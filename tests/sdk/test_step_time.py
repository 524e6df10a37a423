"""Predicted time of the general trainer: each product counted by hand, no work for free."""

from __future__ import annotations

from dataclasses import asdict, replace

import pytest

from edge_sdk.compute.rates import Rates
from edge_sdk.general.step_time import StepTime, step_time
from edge_sdk.model.model_shape import ModelShape, read_shape
from tests.sdk.workloads import BERT, RATES, execution, llama_shape

LINEARS = 106_168_320


def time_of(
    shape: ModelShape,
    *,
    batch_size: int = 8,
    predicted: int = 16,
    computes_in_bf16: bool = False,
    rates: Rates = RATES,
    **changes: object,
) -> StepTime:
    return step_time(
        shape,
        shape.target_layers(shape.default_targets),
        execution(shape, **changes),
        batch_size=batch_size,
        predicted=predicted,
        computes_in_bf16=computes_in_bf16,
        rates=rates,
    )


def test_products_are_counted_by_hand():
    """Forward and backward through base and adapter, attention, A and B, and the output head."""
    shape, tokens = llama_shape(), 8 * 128
    flops = (
        4 * tokens * (LINEARS + 4 * 305_280 + 2 * 128 * 576 * 30)
        + 2 * tokens * 4 * 305_280
        + 4 * 8 * 16 * 576 * 49152
    )
    rate = 80e9 * tokens / (tokens + 20)
    assert time_of(shape).products == pytest.approx(flops / rate)


def test_checkpointing_computes_every_block_once_more():
    shape = llama_shape()
    once, twice = time_of(shape, predicted=1), time_of(shape, predicted=1, recomputed_blocks=30)
    assert 1.4 < twice.products / once.products < 1.55
    assert twice.overhead == pytest.approx(1.5 * once.overhead)
    assert twice.optimizer == once.optimizer


def test_weights_are_widened_in_every_pass_of_every_micro_batch():
    shape = llama_shape()
    assert time_of(shape).widening == 0
    assert time_of(shape, quantization="nf4").widening == pytest.approx(2 * LINEARS / 0.3e9)
    assert time_of(shape, quantization="nf4", micro_batch=2).widening == pytest.approx(
        4 * 2 * LINEARS / 0.3e9
    )
    assert time_of(shape, quantization="nf4", recomputed_blocks=30).widening == pytest.approx(
        3 * LINEARS / 0.3e9
    )
    assert time_of(shape, quantization="bf16").widening == pytest.approx(2 * LINEARS * 4 / 1.5e9)
    assert time_of(shape, quantization="bf16", computes_in_bf16=True).widening == 0


def test_optimizer_moves_each_trained_number_and_no_other():
    shape = llama_shape()
    assert time_of(shape).optimizer == pytest.approx(32 * 4 * 305_280 / 1.5e9)
    some = time_of(shape, trained_targets=("q_proj",))
    assert some.optimizer == pytest.approx(32 * 4 * 30 * 1152 / 1.5e9)


def test_classifier_spends_nothing_on_logits():
    shape = read_shape(BERT, "SEQ_CLS", 3)
    assert time_of(shape, predicted=1) == time_of(shape, predicted=100)


def test_bf16_products_go_at_their_own_rate_where_the_hardware_has_them():
    shape = llama_shape()
    slow, fast = (
        time_of(shape, quantization="bf16", computes_in_bf16=native) for native in (False, True)
    )
    assert fast.products == pytest.approx(slow.products * 80 / 60)
    assert fast.elementwise < slow.elementwise, "activations are half as large"


@pytest.mark.parametrize(
    "more",
    [
        {"length": 129},
        {"batch_size": 16},
        {"micro_batch": 4},
        {"recomputed_blocks": 30},
        {"quantization": "nf4"},
        {"k": 5},
        {"predicted": 17},
        {"rates": replace(RATES, fp32_flops_per_s=79e9)},
        {"rates": replace(RATES, fresh_bytes_per_s=1.4e9)},
        {"rates": replace(RATES, block_overhead_s=5e-3)},
        {"rates": replace(RATES, half_rate_rows=30.0)},
    ],
    ids=lambda more: ", ".join(more),
)
def test_everything_that_takes_time_raises_the_prediction(more):
    shape = llama_shape()
    slower = time_of(shape, **more)
    assert slower.total > time_of(shape).total
    assert slower.total == pytest.approx(sum(asdict(slower).values()))


@pytest.mark.parametrize(
    "larger",
    [
        {"num_hidden_layers": 31},
        {"intermediate_size": 1600},
        {"vocab_size": 49153},
        {"hidden_size": 585},
    ],
    ids=str,
)
def test_larger_model_takes_longer(larger):
    assert time_of(llama_shape(**larger)).total > time_of(llama_shape()).total
