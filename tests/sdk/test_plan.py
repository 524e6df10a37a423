"""The plan takes the largest sketch that fits, and says by how much nothing does."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_sdk.errors import NotFeasible
from edge_sdk.model_shape import read_shape
from edge_sdk.plan import SHARE_OF_FREE_MEMORY, Workload, make_plan, memory_budget

LLAMA = {
    "model_type": "llama",
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "vocab_size": 49152,
    "tie_word_embeddings": True,
}


def workload(**changes: object) -> Workload:
    shape = read_shape({**LLAMA, **{k: v for k, v in changes.items() if k in LLAMA}})
    work = Workload(
        shape=shape,
        layers=shape.target_layers(shape.default_targets),
        r=16,
        quantization="nf4",
        compute_bytes=4,
        batch_size=8,
        length=64,
        predicted=16,
    )
    return replace(work, **{k: v for k, v in changes.items() if k not in LLAMA})


budgets = st.integers(min_value=10**8, max_value=4 * 10**9)


@given(budgets)
def test_plan_is_within_its_budget_and_the_next_sketch_is_not(budget):
    work = workload()
    if work.need(1).total > budget:
        with pytest.raises(NotFeasible) as refused:
            make_plan(work, budget)
        assert work.need(1).total == budget + refused.value.shortfall_bytes
        return
    plan = make_plan(work, budget)
    assert plan.need.total <= budget
    assert plan.k == work.r or plan.next_k_bytes > budget


@given(budgets, st.integers(min_value=0, max_value=10**9))
def test_larger_budget_never_lowers_k(budget, more):
    assert _k(workload(), budget) <= _k(workload(), budget + more)


@given(budgets, st.integers(min_value=30, max_value=60))
def test_larger_model_never_raises_k(budget, layers):
    assert _k(workload(num_hidden_layers=layers), budget) <= _k(workload(), budget)


def test_every_term_counts():
    """Each part of the workload that costs memory raises the prediction."""
    base = workload().need(4).total
    assert workload(batch_size=16).need(4).total > base
    assert workload(predicted=17).need(4).total > base
    assert workload(length=128).need(4).total > base
    assert workload(quantization="fp32").need(4).total > base
    assert workload(vocab_size=100_000).need(4).total > base
    assert workload().need(5).total > base


def test_one_more_rank_costs_28_bytes_per_adapter_number():
    shape = workload().shape
    per_rank = sum(layer.d_in + layer.d_out for layer in shape.linears)
    assert per_rank == 305_280
    assert workload().need(5).adapter - workload().need(4).adapter == 28 * per_rank


def test_budget_is_a_share_of_free_memory_unless_the_owner_states_one():
    assert memory_budget(1000, None) == int(1000 * SHARE_OF_FREE_MEMORY)
    assert memory_budget(1000, 400) == 400
    assert memory_budget(1000, 4000) == 1000


def _k(work: Workload, budget: int) -> int:
    try:
        return make_plan(work, budget).k
    except NotFeasible:
        return 0
