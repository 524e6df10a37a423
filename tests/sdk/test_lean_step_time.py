"""Predicted time of the hand-written passes: each product counted by hand, no work for free."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

import pytest

from edge_sdk.compute.lean_rates import LeanRates
from edge_sdk.compute.rates import Rates
from edge_sdk.general.step_time import StepTime
from edge_sdk.lean.step_time import lean_step_time
from edge_sdk.model.model_shape import ModelShape
from tests.sdk.workloads import INTEGER_RATES, RATES, execution, llama_shape

LINEARS, PER_RANK, HEAD = 106_168_320, 305_280, 576 * 49152
TOKENS = 8 * 127


def time_of(
    shape: ModelShape,
    *,
    batch_size: int = 8,
    learned: int = 16,
    computes_in_bf16: bool = False,
    rates: Rates = INTEGER_RATES,
    **changes: Any,
) -> StepTime:
    return lean_step_time(
        shape,
        shape.target_layers(shape.default_targets),
        execution(shape, **changes),
        batch_size=batch_size,
        learned=learned,
        computes_in_bf16=computes_in_bf16,
        rates=rates,
    )


def lean(**changes: float) -> Rates:
    return replace(INTEGER_RATES, lean=replace(INTEGER_RATES.lean, **changes))


def test_products_are_counted_by_hand():
    """Body and head forward and back, causal attention, two products per rank and one again."""
    shape, k, labelled = llama_shape(), 4, 8 * 16
    inputs = 30 * (6 * 576 + 1536)
    full = 80e9 * TOKENS / (TOKENS + 20)
    body = 4 * TOKENS * LINEARS / full
    attention = 7 * TOKENS * 127 * 576 * 30 / (full * 0.5 * 127 / (127 + 170))
    ranks = 2 * TOKENS * k * (3 * PER_RANK + inputs) / (full * 0.9 * k / (k + 20))
    head = 4 * labelled * HEAD / (80e9 * labelled / (labelled + 20))
    logits = labelled * 49152 * 24 / 10e9
    found = time_of(shape).products
    assert found == pytest.approx(body + attention + ranks + head + logits)


def test_products_of_integers_speed_up_the_body_and_a_head_of_whole_panels():
    for vocabulary in (49152, 49153):
        shape, labelled = llama_shape(vocab_size=vocabulary), 8 * 16
        wide, integer = (
            time_of(shape, quantization="int8", products=products) for products in ("wide", "int8")
        )
        saved = 4 * LINEARS * (1 / 80e9 - 1 / 240e9) * (TOKENS + 20)
        if vocabulary == 49152:
            saved += 4 * HEAD * (1 / 80e9 - 1 / 240e9) * (labelled + 20)
        assert wide.products - integer.products == pytest.approx(saved)


def test_blocks_computed_again_pass_forward_once_more():
    shape = llama_shape()
    none, some, every = (
        time_of(shape, quantization="nf4", learned=1, recomputed_blocks=n) for n in (0, 15, 30)
    )
    assert 1.4 < every.products / none.products < 1.5
    for name in ("products", "widening", "elementwise", "overhead"):
        low, middle, high = (getattr(x, name) for x in (none, some, every))
        assert middle == pytest.approx((low + high) / 2)
    assert every.optimizer == none.optimizer


@pytest.mark.parametrize(
    ("quantization", "products", "computes_in_bf16", "rate"),
    [
        ("nf4", "wide", False, 4e9),
        ("nf4", "int8", False, 5e9),
        ("int8", "wide", False, 2e9),
        ("int8", "int8", False, None),
        ("bf16", "wide", False, 3e9),
        ("bf16", "wide", True, None),
        ("nf4", "wide", True, 4e9),
        ("fp32", "wide", False, None),
        ("fp32", "wide", True, None),
    ],
)
def test_weights_are_decoded_in_every_pass_and_the_head_once(
    quantization, products, computes_in_bf16, rate
):
    way = {"quantization": quantization, "products": products}
    way["computes_in_bf16"] = computes_in_bf16
    is_head_widened = quantization != "fp32" and not computes_in_bf16
    head = HEAD / 3e9 if is_head_widened else 0
    if products == "int8":
        head = 0
    body = 0 if rate is None else 2 * LINEARS / rate
    shape = llama_shape()
    assert time_of(shape, **way).widening == pytest.approx(body + head)
    parts = time_of(shape, micro_batch=2, **way).widening
    assert parts == pytest.approx(4 * (body + head))
    again = time_of(shape, recomputed_blocks=30, **way).widening
    assert again == pytest.approx(1.5 * body + head)


def test_head_is_widened_once_for_as_many_places_as_are_worked_on_together():
    shape = llama_shape()
    few, many = (
        time_of(shape, quantization="bf16", length=1025, learned=n).widening for n in (128, 129)
    )
    assert few == pytest.approx(2 * LINEARS / 3e9 + HEAD / 3e9)
    assert many == pytest.approx(2 * LINEARS / 3e9 + 2 * HEAD / 3e9)


def test_optimizer_moves_each_trained_number_and_no_other():
    shape = llama_shape()
    assert time_of(shape).optimizer == pytest.approx(32 * 4 * PER_RANK / 10e9)
    some = time_of(shape, trained_targets=("q_proj",))
    assert some.optimizer == pytest.approx(32 * 4 * 30 * 1152 / 10e9)


def test_overhead_is_that_of_blocks_in_micro_batches_and_of_examples():
    shape = llama_shape()
    assert time_of(shape).overhead == pytest.approx(30 * (2e-3 + 8 * 0.25e-3))
    assert time_of(shape, micro_batch=2).overhead == pytest.approx(30 * (4 * 2e-3 + 8 * 0.25e-3))


def test_fp32_keeps_and_moves_more_bytes_than_narrow_activations():
    shape = llama_shape()
    fp32, kept_narrow = (time_of(shape, quantization=x).elementwise for x in ("fp32", "bf16"))
    narrow = time_of(shape, quantization="bf16", computes_in_bf16=True).elementwise
    assert fp32 > kept_narrow > narrow


@pytest.mark.parametrize(
    "more",
    [
        {"length": 129},
        {"batch_size": 16},
        {"micro_batch": 4},
        {"recomputed_blocks": 1},
        {"k": 5},
        {"learned": 17},
        {"rates": replace(INTEGER_RATES, fp32_flops_per_s=79e9)},
        {"rates": replace(INTEGER_RATES, half_rate_rows=30.0)},
        {"rates": lean(moved_bytes_per_s=9e9)},
        {"rates": lean(block_overhead_s=3e-3)},
        {"rates": lean(example_overhead_s=1e-3)},
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


def test_what_the_general_trainer_alone_uses_has_no_part_in_it():
    rates = replace(RATES, fresh_bytes_per_s=1.0, nf4_elements_per_s=1.0, block_overhead_s=1e9)
    shape = llama_shape()
    assert time_of(shape, quantization="nf4", rates=rates) == time_of(
        shape, quantization="nf4", rates=RATES
    )
    assert isinstance(rates.lean, LeanRates)
