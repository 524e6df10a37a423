"""Decide the most a device can contribute within its budgets; numbers in, decision out."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache

from edge_sdk.compute.execution import Execution, ProductFormat, Quantization
from edge_sdk.errors import NotFeasible
from edge_sdk.planning.cost import Budget, Cost, Machine, Workload, cost_of
from edge_sdk.quantities import format_bytes, format_seconds

SHARE_OF_FREE_MEMORY = 0.7  # without a stated budget, the rest stays with the owner
SHORTEST_LENGTH = 32  # tokens to which examples are cut before target modules are dropped
NEGLIGIBLE = 0.05  # of a step's time, for which no memory is spent
SHARES_AFTER_FAILURE = (0.9, 0.97)  # of the memory that proved too little, as far as it goes


@dataclass(frozen=True, slots=True, kw_only=True)
class NextSketch:
    """What the next larger sketch would take, in the way that comes nearest to fitting.

    Attributes:
        k: Its size.
        memory_bytes: The budget it needs, margin included.
        round_s: The deadline it needs.
        transfer_bytes: Bytes it moves.
    """

    k: int
    memory_bytes: int
    round_s: float
    transfer_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The decision and its reasons.

    Attributes:
        r: Global rank.
        batch_size: Examples per optimizer step, as the task asks.
        budget: What it keeps within.
        cost: Of the chosen way.
        limited_by: What keeps k from being larger: ``memory``, ``time``, ``transfer``, or
            ``rank`` if it is the largest of the task.
        concessions: What was given up besides k, for people.
        next_sketch: What the next larger k would take; None if there is none.
    """

    r: int
    batch_size: int
    budget: Budget
    cost: Cost
    limited_by: str
    concessions: tuple[str, ...]
    next_sketch: NextSketch | None

    @property
    def execution(self) -> Execution:
        """The chosen way of training."""
        return self.cost.execution

    @property
    def k(self) -> int:
        """Largest sketch size that fits."""
        return self.execution.k

    @property
    def accumulation(self) -> int:
        """Micro-batches per optimizer step."""
        return math.ceil(self.batch_size / self.execution.micro_batch)


def memory_budget(
    free_bytes: int, stated_bytes: int | None, reserved_bytes: int, floor_bytes: int
) -> tuple[int, int]:
    """Return the memory a plan may use, and what then stays free at least.

    A stated budget may take all that is free and not reserved: the owner said so. Without one a
    share is taken, and the usual floor is left.

    Args:
        free_bytes: Free memory now, together with what this process holds already.
        stated_bytes: The owner's budget; None takes a share of what is free.
        reserved_bytes: Must stay free, the owner says.
        floor_bytes: What is usually left free.
    """
    if stated_bytes is None:
        usable = free_bytes - max(reserved_bytes, floor_bytes)
        budget = min(int(free_bytes * SHARE_OF_FREE_MEMORY), usable)
    else:
        budget = min(stated_bytes, free_bytes - reserved_bytes)
    budget = max(0, budget)
    # half of what the plan leaves: other programs may take the rest without a pause
    return budget, min(floor_bytes, max(0, free_bytes - budget) // 2)


def make_plan(work: Workload, machine: Machine, budget: Budget) -> Plan:
    """Choose the most that fits: first the sketch size, then the number format, then the speed.

    Smaller micro-batches and computing blocks again are tried before a smaller sketch. Only when
    the smallest sketch does not fit are examples cut, and after that target modules dropped.

    Raises:
        NotFeasible: Nothing fits; says what is missing and what would help.
    """
    ladder = sorted(set(work.sketch_sizes), reverse=True)
    targets = _endings(work)
    for k in ladder:
        chosen = _best(work, machine, budget, k, work.length, targets)
        if chosen is not None:
            return _explain(work, machine, budget, chosen)
    for length, kept in _cuts(work, targets):
        chosen = _best(work, machine, budget, ladder[-1], length, kept)
        if chosen is not None:
            return _explain(work, machine, budget, chosen)
    raise _not_feasible(work, machine, budget, ladder[-1])


def smaller_plan(work: Workload, machine: Machine, failed: Plan) -> Plan:
    """Plan again after memory ran out: a smaller sketch, in less memory, under the same budget.

    Raises:
        NotFeasible: There is nothing smaller.
    """
    smaller = tuple(k for k in work.sketch_sizes if k < failed.k) or (failed.k,)
    limited = replace(work, sketch_sizes=smaller)
    proved_too_little = min(failed.cost.memory_bytes, failed.budget.memory_bytes)
    for share in SHARES_AFTER_FAILURE:
        less = replace(failed.budget, memory_bytes=int(share * proved_too_little))
        try:
            plan = make_plan(limited, machine, less)
            return replace(plan, budget=failed.budget, limited_by="memory")
        except NotFeasible as error:
            refusal = error
    raise refusal


def _endings(work: Workload) -> tuple[str, ...]:
    return tuple(dict.fromkeys(layer.ending for layer in work.layers))


def _ways(
    work: Workload,
    machine: Machine,
    budget: Budget,
    k: int,
    length: int,
    targets: tuple[str, ...],
) -> Iterator[Cost]:
    """Yield what every way to train a sketch size costs, the preferred number format first.

    Of the numbers of blocks that are computed again only the smallest that fits the memory is
    looked at, because each of them costs time; if none does, none and all.
    """
    sizes = [math.ceil(work.batch_size / 2**i) for i in range(work.batch_size.bit_length() + 1)]
    formats = [
        (quantization, products)
        for quantization in work.quantizations
        if _refusal(work, machine, quantization) is None
        for products in _product_formats(work, machine, quantization)
    ]
    for quantization, products in formats:
        # the hand-written passes stay in fp32: oneDNN compiles and keeps a product in bf16 for
        # every length of a batch, 25 MB a step, and a step was no faster on a CPU with the units
        is_bf16 = machine.computes_in_bf16 and not work.shape.is_lean and quantization != "fp32"
        for micro_batch in dict.fromkeys(sizes):
            way = Execution(
                quantization=quantization,
                products=products,
                micro_batch=micro_batch,
                recomputed_blocks=0,
                length=length,
                trained_targets=targets,
                k=k,
                computes_in_bf16=is_bf16,
            )
            yield from _recomputing(work, machine, budget, way)


def _refusal(work: Workload, machine: Machine, quantization: Quantization) -> str | None:
    """Return why a number format cannot be used; the hand-written passes can use all of them."""
    if work.shape.is_lean:
        return None
    if quantization == "int8":
        return f"a {work.shape.model_type} model is not trained in it"
    return machine.rates.unusable.get(quantization)


def _product_formats(
    work: Workload, machine: Machine, quantization: Quantization
) -> tuple[ProductFormat, ...]:
    if not work.shape.is_lean:
        return ("wide",)
    return machine.rates.product_formats(quantization)


def _recomputing(
    work: Workload, machine: Machine, budget: Budget, way: Execution
) -> Iterator[Cost]:
    """Yield the cost of a way with as few blocks computed again as fit the memory."""

    @cache
    def cost(blocks: int) -> Cost:
        return cost_of(work, machine, budget, replace(way, recomputed_blocks=blocks))

    def fits(blocks: int) -> bool:
        return cost(blocks).memory_bytes <= budget.memory_bytes

    few, many = 0, work.shape.num_layers
    if fits(few):
        yield cost(few)
        return
    if not fits(many):
        yield from (cost(few), cost(many))
        return
    if work.shape.is_lean:
        while many - few > 1:
            middle = (few + many) // 2
            few, many = (few, middle) if fits(middle) else (middle, many)
    yield cost(many)


def _best(
    work: Workload,
    machine: Machine,
    budget: Budget,
    k: int,
    length: int,
    targets: tuple[str, ...],
) -> Cost | None:
    """Return a way that fits, in the first number format that has one.

    It is the fastest, or the one with the least memory that is hardly slower.
    """
    for quantization in work.quantizations:
        one = replace(work, quantizations=(quantization,))
        costs = _ways(one, machine, budget, k, length, targets)
        fitting = [cost for cost in costs if not cost.limits(budget)]
        if fitting:
            fastest_s = min(cost.step_s for cost in fitting)
            return min(
                (cost for cost in fitting if cost.step_s <= fastest_s * (1 + NEGLIGIBLE)),
                key=lambda cost: cost.memory_bytes,
            )
    return None


def _cuts(work: Workload, targets: tuple[str, ...]) -> Iterator[tuple[int, tuple[str, ...]]]:
    """Yield shorter lengths with all targets, then fewer and fewer targets, large ones first."""
    length = work.length
    while length > SHORTEST_LENGTH:
        length = max(SHORTEST_LENGTH, length // 2)
        yield length, targets
    sizes = {layer.ending: layer.d_in + layer.d_out for layer in work.layers}
    by_size = sorted(targets, key=lambda ending: -sizes[ending])
    for dropped in range(1, len(targets)):
        yield length, tuple(x for x in targets if x not in by_size[:dropped])


def _explain(work: Workload, machine: Machine, budget: Budget, chosen: Cost) -> Plan:
    larger = [k for k in sorted(work.sketch_sizes) if k > chosen.execution.k]
    next_sketch, limited_by = None, "rank"
    if larger:
        ways = _ways(work, machine, budget, larger[0], work.length, _endings(work))
        nearest = _nearest(list(ways), budget)
        limited_by = nearest.limits(budget)[0]
        next_sketch = NextSketch(
            k=larger[0],
            memory_bytes=nearest.memory_bytes,
            round_s=nearest.round_s,
            transfer_bytes=nearest.transfer_bytes,
        )
    return Plan(
        r=work.r,
        batch_size=work.batch_size,
        budget=budget,
        cost=chosen,
        limited_by=limited_by,
        concessions=tuple(_concessions(work, chosen.execution)),
        next_sketch=next_sketch,
    )


def _nearest(costs: list[Cost], budget: Budget) -> Cost:
    """Return the way whose worst excess over a budget is least."""
    return min(costs, key=lambda cost: (cost.excess(budget), cost.step_s))


def _concessions(work: Workload, chosen: Execution) -> Iterator[str]:
    if chosen.quantization != work.quantizations[0]:
        yield f"{chosen.quantization} instead of {work.quantizations[0]}"
    if chosen.micro_batch < work.batch_size:
        yield f"micro-batches of {chosen.micro_batch} instead of {work.batch_size} at once"
    if chosen.recomputed_blocks:
        yield f"{chosen.recomputed_blocks} of {work.shape.num_layers} blocks are computed twice"
    if chosen.length < work.length:
        yield f"examples cut to {chosen.length} of {work.length} tokens"
    dropped = [x for x in _endings(work) if x not in chosen.trained_targets]
    if dropped:
        yield f"not trained: {', '.join(dropped)}"


def _not_feasible(work: Workload, machine: Machine, budget: Budget, k: int) -> NotFeasible:
    """Say what the thriftiest way misses, and what would make it fit."""
    *_, (length, targets) = [(work.length, _endings(work)), *_cuts(work, _endings(work))]
    costs = list(_ways(work, machine, budget, k, length, targets))
    if not costs:
        reasons = "; ".join(f"{x}: {_refusal(work, machine, x)}" for x in work.quantizations)
        return NotFeasible(
            f"none of the number formats {', '.join(work.quantizations)} works here ({reasons}): "
            "allow another one"
        )
    cost = _nearest(costs, budget)
    missing, needed = [], []
    memory_short = max(0, cost.memory_bytes - budget.memory_bytes)
    if memory_short:
        missing.append(f"{format_bytes(memory_short)} of memory")
        needed.append(f"a memory budget of {format_bytes(cost.memory_bytes)}")
    time_short = max(0.0, cost.round_s - _or_infinite(budget.round_s))
    if time_short:
        missing.append(f"{format_seconds(time_short)} of time")
        needed.append(f"a deadline of {format_seconds(cost.round_s)}")
    transfer_short = int(max(0, cost.transfer_bytes - _or_infinite(budget.transfer_bytes)))
    if transfer_short:
        missing.append(f"{format_bytes(transfer_short)} of transfer")
        needed.append(f"a byte budget of {format_bytes(cost.transfer_bytes)}")
    return NotFeasible(
        f"not even k = {k} on {length} tokens fits: short of {', '.join(missing)}; it would fit "
        f"with {' and '.join(needed)}, or with a smaller base model",
        shortfall_bytes=memory_short,
        shortfall_s=time_short,
        shortfall_transfer_bytes=transfer_short,
    )


def _or_infinite(limit: float | None) -> float:
    return math.inf if limit is None else limit
