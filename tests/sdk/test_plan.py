"""The plan takes the largest sketch that fits every budget, and says by how much nothing does."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import asdict, replace
from itertools import product

import pytest
from hypothesis import Phase, assume, given, settings
from hypothesis import strategies as st

from edge_sdk.compute.execution import Execution
from edge_sdk.compute.rates import assumed_rates, profile_rates
from edge_sdk.errors import ConfigError, EdgeError, NotFeasible, SketchError
from edge_sdk.model.model_shape import read_shape
from edge_sdk.planning.cost import TIME_MARGIN, Budget, Correction, Cost, Machine, Workload, cost_of
from edge_sdk.planning.plan import (
    NEGLIGIBLE,
    SHARE_OF_FREE_MEMORY,
    SHORTEST_LENGTH,
    Plan,
    make_plan,
    memory_budget,
    smaller_plan,
)
from tests.sdk.workloads import (
    BERT,
    INTEGER_MACHINE,
    MACHINE,
    RATES,
    execution,
    generic_shape,
    llama_shape,
    workload,
)

SMALL = {"num_hidden_layers": 3, "vocab_size": 8000}
SHAPE = llama_shape(**SMALL)
WORK = workload(SHAPE, r=64, sketch_sizes=(4, 16, 64), length=512, learned=64)
GENERIC_WORK = workload(
    generic_shape(**SMALL), r=64, sketch_sizes=(4, 16, 64), length=512, learned=64
)
MB = 10**6
every_trainer = pytest.mark.parametrize(
    ("work", "machine"),
    [(WORK, MACHINE), (WORK, INTEGER_MACHINE), (GENERIC_WORK, MACHINE)],
    ids=["hand-written", "products of integers", "general"],
)

memory = st.integers(min_value=380 * MB, max_value=760 * MB)
seconds = st.none() | st.floats(min_value=2, max_value=200)
transfer = st.none() | st.integers(min_value=MB // 2, max_value=20 * MB)
budgets = st.builds(Budget, memory_bytes=memory, round_s=seconds, transfer_bytes=transfer)
# One failure is enough, as it was found: making it small would take minutes of planning.
examples = settings(max_examples=12, phases=[Phase.generate], report_multiple_bugs=False)


def k_of(work: Workload, budget: Budget, machine: Machine = MACHINE) -> int:
    """The planned sketch size; 0 if nothing fits."""
    try:
        return make_plan(work, machine, budget).k
    except NotFeasible:
        return 0


def every_way(work: Workload, k: int, machine: Machine = MACHINE) -> Iterator[Execution]:
    """All ways to train k ranks of every target on whole examples, listed independently."""
    halves = {work.batch_size}
    while min(halves) > 1:
        halves.add(math.ceil(min(halves) / 2))
    blocks = work.shape.num_layers
    for quantization, products, micro_batch, again in product(
        work.quantizations, ("wide", "int8"), halves, range(blocks + 1)
    ):
        is_integer = products == "int8"
        if is_integer and not (
            machine.rates.lean.int8_flops_per_s and quantization in ("nf4", "int8")
        ):
            continue
        if not work.shape.is_lean and (
            is_integer
            or quantization in {"int8", *machine.rates.unusable}
            or again not in (0, blocks)
        ):
            continue
        yield execution(
            work.shape,
            quantization=quantization,
            products=products,
            micro_batch=micro_batch,
            recomputed_blocks=again,
            length=work.length,
            trained_targets=tuple(dict.fromkeys(layer.ending for layer in work.layers)),
            k=k,
        )


def fitting(work: Workload, k: int, budget: Budget, machine: Machine = MACHINE) -> list[Cost]:
    costs = [cost_of(work, machine, budget, way) for way in every_way(work, k, machine)]
    return [cost for cost in costs if is_within(cost, budget)]


def is_within(cost: Cost, budget: Budget) -> bool:
    return (
        cost.memory_bytes <= budget.memory_bytes
        and cost.round_s <= (math.inf if budget.round_s is None else budget.round_s)
        and cost.transfer_bytes
        <= (math.inf if budget.transfer_bytes is None else budget.transfer_bytes)
    )


@every_trainer
@examples
@given(budgets)
def test_plan_is_within_its_budgets_by_its_own_numbers(work, machine, budget):
    try:
        plan = make_plan(work, machine, budget)
    except NotFeasible:
        assert not fitting(work, 4, budget, machine)
        return
    assert plan.cost.limits(budget) == []
    assert is_within(plan.cost, budget)
    assert plan.cost == cost_of(work, machine, budget, plan.execution)


@every_trainer
@examples
@given(budgets, st.integers(min_value=0, max_value=400 * MB))
def test_more_memory_never_lowers_k(work, machine, budget, more):
    larger = replace(budget, memory_bytes=budget.memory_bytes + more)
    assert k_of(work, budget, machine) <= k_of(work, larger, machine)


@every_trainer
@examples
@given(budgets, st.none() | st.floats(min_value=0, max_value=100))
def test_more_time_never_lowers_k(work, machine, budget, more):
    assume(budget.round_s is not None)
    larger = replace(budget, round_s=None if more is None else budget.round_s + more)
    assert k_of(work, budget, machine) <= k_of(work, larger, machine)


@examples
@given(budgets, st.none() | st.integers(min_value=0, max_value=20 * MB))
def test_more_transfer_never_lowers_k(budget, more):
    assume(budget.transfer_bytes is not None)
    allowed = None if more is None else budget.transfer_bytes + more
    assert k_of(WORK, budget) <= k_of(WORK, replace(budget, transfer_bytes=allowed))


@every_trainer
@examples
@given(
    budgets,
    st.sampled_from(
        [
            {"num_hidden_layers": 4},
            {"num_hidden_layers": 9},
            {"intermediate_size": 1600},
            {"hidden_size": 1152, "num_attention_heads": 18},
            {"vocab_size": 8001},
            {"vocab_size": 50_000},
            {"tie_word_embeddings": False},
        ]
    ),
)
def test_larger_model_never_raises_k(work, machine, budget, larger):
    shape = llama_shape(**{**SMALL, "model_type": work.shape.model_type, **larger})
    layers = tuple(shape.target_layers(shape.default_targets))
    more = replace(work, shape=shape, layers=layers)
    assert k_of(more, budget, machine) <= k_of(work, budget, machine)


@every_trainer
@examples
@given(
    budgets,
    st.sampled_from([{"length": 600}, {"batch_size": 12}, {"local_steps": 11}, {"learned": 90}]),
)
def test_more_work_never_raises_k(work, machine, budget, more):
    assert k_of(replace(work, **more), budget, machine) <= k_of(work, budget, machine)


@every_trainer
@examples
@given(budgets)
def test_smaller_sketch_is_taken_only_when_no_way_to_train_the_next_fits(work, machine, budget):
    """Micro-batches, blocks computed again and number format are spent before k."""
    try:
        plan = make_plan(work, machine, budget)
    except NotFeasible:
        return
    larger = [k for k in (4, 16, 64) if k > plan.k]
    if not larger:
        assert plan.next_sketch is None
        assert plan.limited_by == "rank"
        return
    assert not fitting(work, larger[0], budget, machine)
    assert plan.next_sketch is not None
    assert plan.next_sketch.k == larger[0]
    needed = Budget(
        memory_bytes=max(plan.next_sketch.memory_bytes, budget.memory_bytes),
        round_s=max(plan.next_sketch.round_s, budget.round_s or 0),
        transfer_bytes=max(plan.next_sketch.transfer_bytes, budget.transfer_bytes or 0),
    )
    assert k_of(work, needed, machine) >= larger[0], "what the next sketch needs is enough for it"
    assert plan.limited_by in ("memory", "time", "transfer")


@every_trainer
@examples
@given(budgets)
def test_examples_are_cut_and_targets_dropped_only_at_the_smallest_sketch(work, machine, budget):
    try:
        plan = make_plan(work, machine, budget)
    except NotFeasible:
        return
    is_cut = plan.execution.length < work.length
    is_dropped = len(plan.execution.trained_targets) < 7
    if is_cut or is_dropped:
        assert plan.k == 4
        assert not fitting(work, 4, budget, machine)
    if is_dropped:
        assert plan.execution.length == SHORTEST_LENGTH, "examples are cut first"
    assert plan.execution.length >= SHORTEST_LENGTH


@every_trainer
@examples
@given(budgets)
def test_preferred_number_format_is_kept_as_long_as_it_fits_and_then_time_decides(
    work, machine, budget
):
    try:
        plan = make_plan(work, machine, budget)
    except NotFeasible:
        return
    ways = fitting(work, plan.k, budget, machine)
    if not ways:
        return  # examples were cut
    first = next(
        x for x in work.quantizations if any(cost.execution.quantization == x for cost in ways)
    )
    assert plan.execution.quantization == first
    same = _with_fewest_blocks_again(x for x in ways if x.execution.quantization == first)
    fast = min(cost.step_s for cost in same) * (1 + NEGLIGIBLE)
    assert plan.cost.step_s <= fast
    assert plan.cost.memory_bytes == min(x.memory_bytes for x in same if x.step_s <= fast)


def _with_fewest_blocks_again(costs: Iterable[Cost]) -> list[Cost]:
    """Of ways that differ in nothing else, the one that computes fewest blocks again."""
    fewest: dict[Execution, Cost] = {}
    for cost in sorted(costs, key=lambda cost: cost.execution.recomputed_blocks):
        fewest.setdefault(replace(cost.execution, recomputed_blocks=0), cost)
    return list(fewest.values())


tight_budgets = st.builds(
    Budget,
    memory_bytes=st.integers(min_value=0, max_value=600 * MB),
    round_s=st.none() | st.floats(min_value=0, max_value=20),
    transfer_bytes=st.none() | st.integers(min_value=0, max_value=3 * MB),
    uplink_bytes_per_s=st.none() | st.floats(min_value=1e4, max_value=1e7),
)


@every_trainer
@examples
@given(tight_budgets)
def test_shortfalls_added_to_the_budgets_make_a_plan_feasible(work, machine, budget):
    try:
        make_plan(work, machine, budget)
    except NotFeasible as refused:
        short = refused
    else:
        return
    found = (short.shortfall_bytes, short.shortfall_s, short.shortfall_transfer_bytes)
    assert max(found) > 0
    assert min(found) >= 0
    for amount, word in zip(found, ("of memory", "of time", "of transfer"), strict=True):
        assert (word in str(short)) == (amount > 0)
    enough = replace(
        budget,
        memory_bytes=budget.memory_bytes + short.shortfall_bytes,
        round_s=(
            None if budget.round_s is None else (budget.round_s + short.shortfall_s) * (1 + 1e-9)
        ),
        transfer_bytes=(
            None
            if budget.transfer_bytes is None
            else budget.transfer_bytes + short.shortfall_transfer_bytes
        ),
    )
    assert k_of(work, enough, machine) >= 4


@pytest.mark.parametrize(
    ("limit", "word"),
    [
        ({"memory_bytes": 100 * MB}, "memory"),
        ({"round_s": 0.01}, "time"),
        ({"transfer_bytes": 1000}, "transfer"),
    ],
)
def test_refusal_names_what_is_short_and_the_budget_that_would_do(limit, word):
    budget = replace(Budget(memory_bytes=2000 * MB), **limit)
    with pytest.raises(NotFeasible, match=rf"not even k = 4 on 32 tokens.*of {word};") as refused:
        make_plan(WORK, MACHINE, budget)
    assert "it would fit with" in str(refused.value)
    assert "\n" not in str(refused.value)


@every_trainer
@examples
@given(budgets)
def test_plan_after_memory_ran_out_is_smaller_until_nothing_is(work, machine, budget):
    """A device that steps down again and again ends: with a plan that works, or refused."""
    try:
        plan = make_plan(work, machine, budget)
    except NotFeasible:
        return
    for _ in range(30):
        try:
            smaller = smaller_plan(work, machine, plan)
        except NotFeasible:
            return
        assert smaller.k < plan.k or smaller.k == plan.k == 4
        assert smaller.cost.memory_bytes < 0.98 * plan.cost.memory_bytes
        assert smaller.cost.limits(budget) == []
        plan = smaller
    pytest.fail("stepping down never ends")


def test_stepping_down_ends_in_a_refusal():
    plan = make_plan(WORK, MACHINE, Budget(memory_bytes=2000 * MB))
    sizes, refusal = [plan.k], None
    while refusal is None:
        try:
            plan = smaller_plan(WORK, MACHINE, plan)
            sizes.append(plan.k)
        except NotFeasible as error:
            refusal = error
    assert sizes[:2] == [64, 16]
    assert sizes == sorted(sizes, reverse=True)
    assert refusal.shortfall_bytes > 0


def test_unusable_number_formats_are_avoided_by_the_general_trainer():
    broken = replace(MACHINE, rates=replace(RATES, unusable={"nf4": "no kernel"}))
    plan = make_plan(GENERIC_WORK, broken, Budget(memory_bytes=2000 * MB))
    assert plan.execution.quantization == "bf16"
    assert "bf16 instead of nf4" in plan.concessions
    plan = make_plan(WORK, broken, Budget(memory_bytes=2000 * MB))
    assert plan.execution.quantization == "nf4", "the hand-written passes have their own kernel"


def test_int8_is_a_number_format_of_the_hand_written_passes_alone():
    budget = Budget(memory_bytes=2000 * MB)
    alone = ("int8",)
    plan = make_plan(replace(WORK, quantizations=alone), MACHINE, budget)
    assert plan.execution.quantization == "int8"
    with pytest.raises(NotFeasible, match="int8: a smollm3 model is not trained in it"):
        make_plan(replace(GENERIC_WORK, quantizations=alone), MACHINE, budget)


@pytest.mark.parametrize("work", [WORK, GENERIC_WORK])
def test_hand_written_passes_never_compute_in_bf16(work):
    fast = replace(RATES, bf16_flops_per_s=5 * RATES.fp32_flops_per_s)
    machine = replace(MACHINE, has_native_bf16=True, rates=fast)
    work = replace(work, quantizations=("bf16",))
    plan = make_plan(work, machine, Budget(memory_bytes=2000 * MB))
    assert plan.execution.computes_in_bf16 != work.shape.is_lean


@pytest.mark.parametrize("quantization", ["nf4", "int8", "bf16", "fp32"])
def test_integers_are_multiplied_where_that_is_faster_and_weights_are_of_few_bits(quantization):
    work, budget = replace(WORK, quantizations=(quantization,)), Budget(memory_bytes=2000 * MB)
    is_few = quantization in ("nf4", "int8")
    fast, slow = (make_plan(work, x, budget) for x in (INTEGER_MACHINE, MACHINE))
    assert fast.execution.products == ("int8" if is_few else "wide")
    assert slow.execution.products == "wide"
    assert (fast.cost.step_s < slow.cost.step_s) == is_few


def test_as_few_blocks_are_computed_again_as_fit_the_memory():
    work = workload(llama_shape(), sketch_sizes=(8,), length=512, quantizations=("nf4",))
    works = Budget(memory_bytes=8000 * MB)
    again = []
    while True:
        try:
            plan = make_plan(work, MACHINE, works)
        except NotFeasible:
            break
        way = plan.execution
        if way.length < 512:
            break
        fewer = replace(way, recomputed_blocks=max(0, way.recomputed_blocks - 1))
        less = cost_of(work, MACHINE, works, fewer)
        assert way.recomputed_blocks == 0 or less.memory_bytes > works.memory_bytes
        again.append(way.recomputed_blocks)
        works = replace(works, memory_bytes=plan.cost.memory_bytes - 10 * MB)
    assert len(set(again)) > 5, "not all or nothing"
    assert max(again) >= 29


def test_unusable_number_formats_are_named_when_none_is_left():
    reasons = {"nf4": "no kernel for this processor", "bf16": "its kernel gives wrong numbers"}
    broken = replace(MACHINE, rates=replace(RATES, unusable=reasons))
    work = replace(GENERIC_WORK, quantizations=("nf4", "bf16"))
    with pytest.raises(NotFeasible) as refused:
        make_plan(work, broken, Budget(memory_bytes=2000 * MB))
    for text in ("nf4: no kernel for this processor", "bf16: its kernel gives wrong", "allow"):
        assert text in str(refused.value)


def test_refusal_does_not_blame_a_format_that_was_not_asked_for():
    broken = replace(MACHINE, rates=replace(RATES, unusable={"nf4": "no kernel", "bf16": "slow"}))
    work = replace(GENERIC_WORK, quantizations=("nf4",))
    with pytest.raises(NotFeasible) as refused:
        make_plan(work, broken, Budget(memory_bytes=2000 * MB))
    assert "bf16" not in str(refused.value)


@pytest.mark.parametrize("quantization", ["nf4", "int8", "bf16", "fp32"])
def test_correction_shifts_memory_scales_time_and_narrows_both_margins(quantization):
    way = execution(SHAPE, quantization=quantization)
    taught = replace(
        MACHINE,
        corrections={quantization: Correction(memory_bytes=50 * MB, time_factor=1.5, runs=1)},
    )
    budget = Budget(memory_bytes=2000 * MB)
    plain, corrected = (cost_of(WORK, x, budget, way) for x in (MACHINE, taught))
    assert (plain.is_calibrated, corrected.is_calibrated) == (False, True)
    assert plain.need == corrected.need
    assert plain.peak_bytes == plain.need.total
    assert corrected.peak_bytes == plain.peak_bytes + 50 * MB
    assert corrected.step_s == pytest.approx(1.5 * plain.step_s)
    margins = [(x.memory_bytes - x.peak_bytes) / x.peak_bytes for x in (plain, corrected)]
    assert margins[0] > margins[1] > 0
    time_margins = [x.round_s / (10 * x.step_s) for x in (plain, corrected)]
    assert time_margins[0] > time_margins[1] > 1


def test_correction_of_one_number_format_leaves_the_others_alone():
    taught = replace(MACHINE, corrections={"nf4": Correction(memory_bytes=50 * MB, runs=3)})
    budget = Budget(memory_bytes=2000 * MB)
    way = execution(SHAPE, quantization="bf16")
    assert cost_of(WORK, taught, budget, way) == cost_of(WORK, MACHINE, budget, way)


def test_transfer_and_round_time_over_stated_links_by_hand():
    """k = 4 on one Llama block of 576 x 1536: 40,704 numbers of fp32 each way."""
    shape = llama_shape(num_hidden_layers=1)
    per_rank = 2 * (576 + 576) + 2 * (576 + 192) + 3 * (576 + 1536)
    one_way = 4 * 4 * per_rank
    assert one_way == 4 * 40_704
    work = workload(shape)
    budget = Budget(
        memory_bytes=2000 * MB, uplink_bytes_per_s=10_000.0, downlink_bytes_per_s=40_000.0
    )
    cost = cost_of(work, MACHINE, budget, execution(shape))
    assert cost.transfer_bytes == 2 * one_way
    seconds = one_way / 10_000 + one_way / 40_000
    unlinked = cost_of(work, MACHINE, Budget(memory_bytes=1), execution(shape))
    assert cost.round_s == pytest.approx(unlinked.round_s + seconds)
    assert unlinked.round_s == pytest.approx(10 * cost.step_s * (1 + TIME_MARGIN))
    halved = cost_of(replace(work, wire_bytes=2), MACHINE, budget, execution(shape))
    assert halved.transfer_bytes == one_way


def test_dense_parameters_travel_whole():
    shape = read_shape(BERT, "SEQ_CLS", 3)
    work = workload(shape, layers=tuple(shape.target_layers(shape.default_targets)))
    cost = cost_of(work, MACHINE, Budget(memory_bytes=1), execution(shape))
    assert cost.transfer_bytes == 2 * 4 * (4 * 6 * 3 * 768 + 3 * 384 + 3)


def test_slow_link_costs_sketch_size_when_time_is_short():
    slow = Budget(memory_bytes=2000 * MB, uplink_bytes_per_s=100_000.0)
    assert k_of(WORK, slow) == 64
    quickest = min(cost_of(WORK, MACHINE, slow, way).round_s for way in every_way(WORK, 64))
    hurried = make_plan(WORK, MACHINE, replace(slow, round_s=quickest - 1))
    assert hurried.k == 16
    assert hurried.limited_by == "time"
    fast = replace(hurried.budget, uplink_bytes_per_s=1_000_000.0)
    assert k_of(WORK, fast) == 64


def _thriftiest(k: int) -> Cost:
    budget = Budget(memory_bytes=1)
    costs = [cost_of(WORK, MACHINE, budget, way) for way in every_way(WORK, k)]
    return min(costs, key=lambda cost: cost.memory_bytes)


@pytest.mark.parametrize(
    ("limit", "word"),
    [
        ({"memory_bytes": _thriftiest(64).memory_bytes - 1}, "memory"),
        ({"transfer_bytes": _thriftiest(64).transfer_bytes - 1}, "transfer"),
        ({"uplink_bytes_per_s": 10_000.0, "round_s": 700.0}, "time"),
    ],
    ids=["memory", "transfer", "time"],
)
def test_plan_names_the_budget_that_keeps_k_from_being_larger(limit, word):
    plan = make_plan(WORK, MACHINE, replace(Budget(memory_bytes=4000 * MB), **limit))
    assert plan.k == 16
    assert plan.limited_by == word
    if word == "memory":
        assert plan.next_sketch is not None
        assert plan.next_sketch.memory_bytes == _thriftiest(64).memory_bytes


def test_shortfall_is_that_of_the_thriftiest_way():
    """All of memory that is missing, and not a byte more."""
    with pytest.raises(NotFeasible) as refused:
        make_plan(WORK, MACHINE, Budget(memory_bytes=300 * MB))
    short = refused.value.shortfall_bytes
    enough = Budget(memory_bytes=300 * MB + short)
    assert k_of(WORK, enough) >= 4
    assert k_of(WORK, replace(enough, memory_bytes=enough.memory_bytes - 1)) == 0


@pytest.mark.parametrize(
    ("make_shape", "formats"),
    [(generic_shape, ("bf16", "fp32")), (llama_shape, ("fp32", "nf4"))],
    ids=["general", "hand-written"],
)
def test_every_concession_is_told(make_shape, formats):
    """With one byte less each time, a plan gives up one thing after the other."""
    shape = make_shape(num_hidden_layers=6, dtype="float32")
    work = workload(shape, r=64, sketch_sizes=(4,), length=512, quantizations=formats)
    told: list[tuple[str, ...]] = []
    budget = Budget(memory_bytes=8000 * MB)
    while True:
        try:
            plan = make_plan(work, MACHINE, budget)
        except NotFeasible:
            break
        _check_concessions(work, plan)
        told.append(plan.concessions)
        budget = replace(budget, memory_bytes=plan.cost.memory_bytes - 1)
    every = " | ".join(text for concessions in told for text in concessions)
    instead = f"{formats[1]} instead of {formats[0]}"
    for given_up in (instead, "micro-batches of 1", "computed twice", "cut to 32", "not tr"):
        assert given_up in every


def _check_concessions(work: Workload, plan: Plan) -> None:
    text, way = " | ".join(plan.concessions), plan.execution
    first = work.quantizations[0]
    assert (f"instead of {first}" in text) == (way.quantization != first)
    assert (f"micro-batches of {way.micro_batch} instead of 8" in text) == (way.micro_batch < 8)
    assert ("computed twice" in text) == bool(way.recomputed_blocks)
    assert (f"examples cut to {way.length} of 512 tokens" in text) == (way.length < 512)
    dropped = [x for x in work.shape.default_targets if x not in way.trained_targets]
    assert (f"not trained: {', '.join(dropped)}" in text) == bool(dropped)
    sizes = {x.ending: x.d_in + x.d_out for x in work.layers}
    kept = [sizes[x] for x in way.trained_targets]
    assert not dropped or min(sizes[x] for x in dropped) >= max(kept), "the largest first"


def test_generous_budgets_concede_nothing():
    work = replace(WORK, quantizations=("fp32",), batch_size=1)
    plan = make_plan(work, MACHINE, Budget(memory_bytes=8000 * MB))
    assert (plan.k, plan.concessions, plan.accumulation) == (64, (), 1)


def test_micro_batches_add_up_to_the_batch():
    tight = Budget(memory_bytes=_thriftiest(64).memory_bytes)
    plan = make_plan(replace(WORK, batch_size=10), MACHINE, tight)
    assert plan.execution.micro_batch < 10
    assert plan.accumulation == math.ceil(10 / plan.execution.micro_batch)
    assert plan.execution.micro_batch in (1, 2, 3, 5)


def test_budget_is_a_share_of_free_memory_unless_the_owner_states_one():
    def budget(free: int, stated: int | None, reserved: int, floor: int = 0) -> int:
        return memory_budget(free, stated, reserved, floor)[0]

    assert budget(1000, None, 0) == int(1000 * SHARE_OF_FREE_MEMORY)
    assert budget(1000, None, 500) == 500
    assert budget(1000, None, 0, floor=400) == 600
    assert budget(1000, 400, 0) == 400
    assert budget(1000, 4000, 0) == 1000, "never what is not free"
    assert budget(1000, 4000, 100) == 900
    assert budget(1000, 400, 5000) == 0, "never a negative budget"
    assert budget(1000, None, 0, floor=5000) == 0


@given(*[st.integers(min_value=0, max_value=10**10)] * 4, st.booleans())
def test_memory_that_stays_free_is_no_more_than_the_plan_leaves(
    free, stated, reserved, floor, is_stated
):
    budget, kept_free = memory_budget(free, stated if is_stated else None, reserved, floor)
    assert 0 <= budget <= max(0, free - reserved)
    assert 0 <= kept_free <= floor
    assert budget + kept_free <= free


@pytest.mark.parametrize(
    "wrong",
    [
        {"sketch_sizes": (0,)},
        {"sketch_sizes": (65,)},
        {"sketch_sizes": ()},
        {"quantizations": ()},
        {"batch_size": 0},
        {"local_steps": 0},
        {"length": 0},
        {"learned": -1},
    ],
    ids=str,
)
def test_work_that_cannot_be_is_refused(wrong):
    with pytest.raises((SketchError, ConfigError)):
        replace(WORK, **wrong)


@pytest.mark.parametrize("cores", [1, 4])
def test_device_that_was_never_measured_gets_a_plan_too(cores):
    machine = Machine(has_native_bf16=False, rates=assumed_rates(cores))
    plan = make_plan(WORK, machine, Budget(memory_bytes=2000 * MB))
    assert plan.k == 64
    assert not plan.cost.is_calibrated


def test_plan_is_numbers_and_text_that_json_can_hold():
    plan = make_plan(WORK, MACHINE, Budget(memory_bytes=600 * MB))
    assert asdict(plan)["cost"]["execution"]["k"] == plan.k
    assert isinstance(plan, Plan)


def test_every_refusal_is_of_the_one_tree():
    assert issubclass(NotFeasible, EdgeError)
    slow = profile_rates(1e9, None, 1e9, 1, ("fp32",))
    machine = Machine(has_native_bf16=False, rates=slow)
    with pytest.raises(NotFeasible):
        make_plan(WORK, machine, Budget(memory_bytes=4000 * MB, round_s=0.001))
