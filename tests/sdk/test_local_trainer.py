"""A device's trainer does what its plan says, within the budget of the plan."""

from __future__ import annotations

import resource
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edge_sdk.compute.rates import assumed_rates
from edge_sdk.errors import ModelError, OutOfMemory, WrongBaseModel
from edge_sdk.model.model_folder import read_model_shape
from edge_sdk.planning.cost import Budget, Machine, Workload
from edge_sdk.planning.plan import Plan, make_plan
from edge_sdk.training.local_steps import train_round
from edge_sdk.training.local_trainer import LocalTrainer, describe
from edge_sdk.training.trainable_base import load_trainable
from edge_sdk.wire.messages import Assignment
from edge_sdk.wire.task import TaskSpec, TrainingSpec
from tests.sdk.parts import QUESTIONS, adapter_spec, causal_spec, random_arrays, task_spec
from tests.tiny_model import write_jsonl

PLENTY = 1 << 50
K = 4
TRAINING = TrainingSpec(local_steps=2, batch_size=4, local_lr=1e-2)


@pytest.fixture
def task(tiny_llama) -> TaskSpec:
    return task_spec(causal_spec(), adapter_spec(tiny_llama, causal_spec()))


@pytest.fixture
def data(tmp_path) -> Path:
    return write_jsonl(tmp_path / "data.jsonl", QUESTIONS)


@pytest.fixture
def trainer(task, tiny_llama, data) -> LocalTrainer:
    return LocalTrainer(task, tiny_llama, data, threads=1)


@pytest.fixture
def plan(task, tiny_llama) -> Plan:
    """For the whole batch at once, in fp32."""
    work = Workload(
        shape=read_model_shape(tiny_llama),
        layers=tuple(task.adapter.layers),
        r=task.adapter.r,
        sketch_sizes=(K,),
        quantizations=("fp32",),
        batch_size=TRAINING.batch_size,
        local_steps=TRAINING.local_steps,
        length=32,
        learned=8,
    )
    machine = Machine(has_native_bf16=False, rates=assumed_rates(1))
    return with_execution(
        make_plan(work, machine, Budget(memory_bytes=PLENTY)),
        micro_batch=4,
        products="wide",
        recomputed_blocks=0,
    )


def with_execution(plan: Plan, **changes: object) -> Plan:
    execution = replace(plan.execution, **changes)
    return replace(plan, cost=replace(plan.cost, execution=execution))


def assignment() -> Assignment:
    return Assignment(
        task="tiny",
        round_number=1,
        adapter_version=0,
        seed=3,
        deadline_s=60.0,
        k=K,
        training=TRAINING,
    )


def test_what_it_trains_is_what_the_plan_says(trainer, plan, task, tiny_llama):
    planned = with_execution(plan, micro_batch=3, recomputed_blocks=1, trained_targets=("q_proj",))
    slices = random_arrays(task.adapter, K)
    result = trainer.train(planned, assignment(), slices)
    expected = train_round(
        load_trainable(tiny_llama, task.base, planned.execution, threads=1),
        task.adapter,
        K,
        slices,
        TRAINING,
        trainer.examples,
        seed=3,
        micro_batch=3,
        recomputed_blocks=1,
        trained_targets=("q_proj",),
    )
    assert result.losses == expected.losses
    for name, array in expected.update.items():
        np.testing.assert_array_equal(result.update[name], array)
        assert np.any(array) == ("q_proj" in name)


def test_each_part_of_an_execution_reaches_training(trainer, plan, task, monkeypatch):
    """Recomputed blocks and micro-batches change no number, so that is not where it would show."""
    asked = []

    def noted(*arguments, **how):
        asked.append((how["micro_batch"], how["recomputed_blocks"], how["trained_targets"]))
        return train_round(*arguments, **how)

    monkeypatch.setattr("edge_sdk.training.local_trainer.train_round", noted)
    slices = random_arrays(task.adapter, K)
    ways = [(4, 0, ("q_proj",)), (1, 0, ("v_proj",)), (2, 2, ("v_proj", "q_proj"))]
    for micro_batch, recomputed, targets in ways:
        way = with_execution(
            plan, micro_batch=micro_batch, recomputed_blocks=recomputed, trained_targets=targets
        )
        trainer.train(way, assignment(), slices)
    assert asked == ways


def test_the_base_is_loaded_once_and_anew_only_in_another_number_format(
    trainer, plan, task, monkeypatch
):
    loaded = []

    def noted(folder, spec, execution, threads):
        loaded.append((execution.quantization, execution.products))
        return load_trainable(folder, spec, execution, threads)

    monkeypatch.setattr("edge_sdk.training.local_trainer.load_trainable", noted)
    slices = random_arrays(task.adapter, K)
    trainer.prepare(plan)
    trainer.prepare(with_execution(plan, micro_batch=1))
    trainer.train(plan, assignment(), slices)
    trainer.train(with_execution(plan, quantization="bf16"), assignment(), slices)
    integer = with_execution(plan, quantization="bf16", products="int8")
    trainer.train(integer, assignment(), slices)
    trainer.train(with_execution(integer, recomputed_blocks=2), assignment(), slices)
    assert loaded == [("fp32", "wide"), ("bf16", "wide"), ("bf16", "int8")]


def test_examples_are_cut_to_the_length_of_the_plan_and_keep_what_is_learned(trainer, plan, task):
    longest, learned = trainer.longest, trainer.learned
    result = trainer.train(
        with_execution(plan, length=longest - 2), assignment(), random_arrays(task.adapter, K)
    )
    assert result.longest == trainer.longest == longest - 2
    assert trainer.learned == learned == 4


def test_what_is_appended_while_examples_are_cut_waits_until_they_are_read_again(
    trainer, plan, data
):
    before, longest = len(trainer.examples), trainer.longest
    with data.open("a") as file:
        file.write('{"prompt": "what is the one ? answer :", "completion": " yes"}\n')
    assert trainer.is_outdated
    trainer.prepare(with_execution(plan, length=longest - 2))
    assert (len(trainer.examples), trainer.longest) == (before, longest - 2)
    trainer.read_again()
    assert (len(trainer.examples), trainer.is_outdated) == (before + 1, False)


def test_a_budget_that_is_spent_already_is_out_of_memory_and_leaves_no_limit(trainer, plan):
    before = resource.getrlimit(resource.RLIMIT_DATA)
    spent = replace(plan, budget=Budget(memory_bytes=1 << 20))
    with pytest.raises(OutOfMemory, match="memory budget") as caught:
        trainer.prepare(spent)
    assert caught.value.needed_bytes > caught.value.budget_bytes == 1 << 20
    assert resource.getrlimit(resource.RLIMIT_DATA) == before
    trainer.prepare(plan)


def test_the_budget_is_enforced_in_every_step_and_only_there(trainer, plan, task, monkeypatch):
    limits = []

    def noted(*arguments, on_step, **how):
        def look(step: int, loss: float) -> None:
            on_step(step, loss)
            limits.append(resource.getrlimit(resource.RLIMIT_DATA)[0])

        return train_round(*arguments, on_step=look, **how)

    monkeypatch.setattr("edge_sdk.training.local_trainer.train_round", noted)
    before = resource.getrlimit(resource.RLIMIT_DATA)
    budget = Budget(memory_bytes=64 << 30)
    trainer.train(replace(plan, budget=budget), assignment(), random_arrays(task.adapter, K))
    assert len(limits) == TRAINING.local_steps
    assert all(0 < limit < 80 << 30 for limit in limits)
    assert resource.getrlimit(resource.RLIMIT_DATA) == before


def test_a_base_that_is_another_model_is_no_lack_of_memory(task, tiny_bert, data, plan):
    trainer = LocalTrainer(task, tiny_bert, data, threads=1)
    with pytest.raises(ModelError) as caught:
        trainer.prepare(plan)
    assert "memory" not in str(caught.value)


def test_a_layer_of_another_size_is_the_wrong_base_model(task, tiny_llama, data, plan):
    layers = [replace(task.adapter.layers[0], d_in=33), *task.adapter.layers[1:]]
    other = replace(task, adapter=replace(task.adapter, layers=layers))
    trainer = LocalTrainer(other, tiny_llama, data, threads=1)
    with pytest.raises(WrongBaseModel, match=r"33 -> 32"):
        trainer.prepare(plan)


def test_a_plan_is_described_with_its_sketch_and_how_it_trains(plan):
    text = describe(with_execution(plan, micro_batch=2, recomputed_blocks=1))
    assert "4 of the adapter's 8 ranks (fp32, 2 examples at once, 1 blocks computed again)" in text
    assert "again" not in describe(plan)
    assert "8-bit" not in describe(plan)
    assert "8-bit arithmetic" in describe(with_execution(plan, products="int8"))


SCRIPT = """
import sys
from pathlib import Path
from edge_sdk.training.local_trainer import LocalTrainer, tokenized_examples
from edge_sdk.training.trainable_base import load_trainable, warm_up_for
from edge_sdk.compute.execution import Execution
from edge_sdk.training.trainable_base import load_trainable
from edge_sdk.training.local_steps import train_round
from tests.sdk.parts import adapter_spec, causal_spec, random_arrays
from edge_sdk.wire.task import TrainingSpec

folder, data, products = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
examples = tokenized_examples(data, folder, causal_spec(), 32)
way = Execution(quantization="nf4", products=products, micro_batch=2, recomputed_blocks=1,
                length=32, trained_targets=("q_proj",), k=4)
warm_up_for(folder, causal_spec(), way, 1)
base = load_trainable(folder, causal_spec(), way, 1)
adapter = adapter_spec(folder, causal_spec())
train_round(base, adapter, 4, random_arrays(adapter, 4), TrainingSpec(local_steps=1), examples, 0)
print(*sorted({"transformers", "peft", "bitsandbytes"} & sys.modules.keys()))
"""


@pytest.mark.parametrize("products", ["wide", "int8"])
def test_a_round_on_a_lean_base_never_imports_transformers(tiny_llama, data, products):
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tiny_llama), str(data), products],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == []
