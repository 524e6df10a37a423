"""Recomputed blocks: the same numbers from less memory, and the model as it was."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from edge_sdk.general.base_model import LoadedBase, load_base
from edge_sdk.general.checkpointing import checkpointed_blocks
from edge_sdk.general.lora import attach
from edge_sdk.general.predictions import predict
from edge_sdk.model.model_folder import read_model_shape
from edge_sdk.text.batches import collate
from edge_sdk.text.data import load_examples
from edge_sdk.training.local_steps import LocalResult, train_round
from edge_sdk.wire.task import AdapterSpec, BaseModel, TrainingSpec
from tests.sdk.parts import QUESTIONS, TEXTS, causal_spec, classifier_spec, random_arrays
from tests.tiny_model import save_tiny_bert, save_tiny_llama, save_tiny_neox, write_jsonl

FAMILIES: dict[str, tuple[Callable[..., Path], BaseModel, tuple[str, ...]]] = {
    "llama": (save_tiny_llama, causal_spec(), ()),
    "bert": (save_tiny_bert, classifier_spec(), ()),
    "neox": (save_tiny_neox, causal_spec(), ("query_key_value", "dense_h_to_4h")),
}
LAYERS = 4


class Trainee:
    """A tiny model of one family with all that training it takes."""

    def __init__(self, folder: Path, family: str, quantization: str) -> None:
        save, spec, targets = FAMILIES[family]
        model = save(folder / "model", hidden=64, layers=LAYERS)
        shape = read_model_shape(model, spec.task_type, len(spec.labels))
        targets = targets or shape.default_targets
        records = QUESTIONS if spec.task_type == "CAUSAL_LM" else TEXTS
        data = write_jsonl(folder / "data.jsonl", records)
        self.base: LoadedBase = load_base(model, spec, quantization, threads=1)
        self.examples = load_examples(data, self.base.tokenizer, spec, max_length=32)
        self.adapter = AdapterSpec(
            r=8,
            lora_alpha=16.0,
            target_modules=list(targets),
            layers=shape.target_layers(targets),
            dense=list(shape.dense),
        )
        self.slices = random_arrays(self.adapter, k=4)

    def train(self, on_step=None, **how: object) -> LocalResult:
        training = TrainingSpec(local_steps=3, batch_size=4, local_lr=1e-2)
        return train_round(
            self.base, self.adapter, 4, self.slices, training, self.examples, 7, on_step, **how
        )


@pytest.fixture(params=FAMILIES)
def trainee(request, tmp_path) -> Trainee:
    return Trainee(tmp_path, request.param, "fp32")


@pytest.fixture
def llama(tmp_path) -> Trainee:
    return Trainee(tmp_path, "llama", "fp32")


def forwards(model: nn.Module) -> list[object]:
    """What each module answers a call with, where it is not its class that decides."""
    return [vars(module).get("forward") for module in model.modules()]


def check_same(one: LocalResult, other: LocalResult) -> None:
    assert one.losses == other.losses
    for name, array in one.update.items():
        np.testing.assert_array_equal(array, other.update[name])
        assert np.abs(array).max() > 0


@pytest.mark.parametrize("count", [1, LAYERS, LAYERS + 1])
def test_a_checkpointed_update_is_the_plain_one_bit_for_bit(trainee, count):
    check_same(trainee.train(recomputed_blocks=count), trainee.train())


@pytest.mark.parametrize("quantization", ["nf4", "bf16"])
def test_a_checkpointed_narrow_base_gives_the_plain_update(tmp_path, quantization):
    trainee = Trainee(tmp_path, "llama", quantization)
    check_same(trainee.train(recomputed_blocks=LAYERS), trainee.train())


def test_micro_batches_and_checkpoints_go_together(trainee):
    both = trainee.train(recomputed_blocks=LAYERS, micro_batch=3)
    check_same(both, trainee.train(micro_batch=3))


@pytest.mark.parametrize("count", [0, 1, 3, LAYERS])
def test_the_first_blocks_are_computed_once_more_and_only_then(llama, count):
    calls = [0] * LAYERS
    for i, block in enumerate(llama.base.model.model.layers):
        block.mlp.register_forward_pre_hook(lambda *_, i=i: calls.__setitem__(i, calls[i] + 1))
    llama.train(recomputed_blocks=count)
    assert calls == [2 * 3] * count + [3] * (LAYERS - count)


def test_the_model_is_as_before_after_training_and_after_an_error(trainee):
    model = trainee.base.model
    modules, before = list(model.modules()), forwards(model)
    assert not any(before)
    during = []

    def fail(step: int, loss: float) -> None:
        during.extend(forwards(model))
        raise RuntimeError("in the middle")

    trainee.train(recomputed_blocks=LAYERS)
    assert forwards(model) == before
    with pytest.raises(RuntimeError, match="in the middle"):
        trainee.train(fail, recomputed_blocks=LAYERS)
    assert sum(forward is not None for forward in during) == LAYERS
    assert forwards(model) == before
    assert all(a is b for a, b in zip(model.modules(), modules, strict=True))


def test_blocks_keep_nothing_but_their_input_for_the_backward_pass(trainee):
    """What autograd saves outside the blocks is what a model without blocks would save."""
    plain = kept_bytes(trainee)
    found = [plain]
    for count in (1, LAYERS):
        with checkpointed_blocks(trainee.base.model, count):
            found.append(kept_bytes(trainee))
    assert 0 < found[2] < plain / LAYERS
    assert found[2] < found[1] < plain


def kept_bytes(trainee: Trainee) -> int:
    """Return the bytes that one forward pass saves where a hook can see it, weights aside."""
    attached = attach(trainee.base.model, trainee.adapter, trainee.slices, 1.0)
    weights = {x.untyped_storage().data_ptr() for x in trainee.base.model.parameters()}
    kept: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    batch = collate(trainee.examples, trainee.base.tokenizer.pad_token_id)
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        loss = predict(trainee.base, batch).summed_loss()
    assert loss.requires_grad
    attached.detach()
    return sum(kept.values())
