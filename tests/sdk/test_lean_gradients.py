"""The hand-written passes give the gradients that PEFT and autograd give."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from edge_sdk.lean import native
from edge_sdk.lean.base import LeanBase
from edge_sdk.text.batches import collate
from edge_sdk.text.example import Example
from edge_sdk.training.local_steps import train_round
from edge_sdk.wire.task import TrainingSpec
from tests.sdk.lean_parts import (
    EVERY,
    FAMILIES,
    K,
    adapter_of,
    check_close,
    distance,
    double_gradients,
    examples_of,
    hugging_face,
    lean_gradients,
    open_base,
    peft_gradients,
    save_family,
)
from tests.sdk.parts import random_arrays

pytestmark = pytest.mark.filterwarnings(
    "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"  # PEFT, with transformers 5
)
EXACT = 1e-5
LAYERS = 3
needs_native = pytest.mark.skipif(native.library() is None, reason="no kernels were compiled")


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory) -> Callable[[str], Path]:
    found: dict[str, Path] = {}

    def get(family: str) -> Path:
        if family not in found:
            found[family] = save_family(tmp_path_factory.mktemp("model") / "m", family, LAYERS)
        return found[family]

    return get


@pytest.fixture(scope="module")
def llama(folder_of) -> tuple[LeanBase, Path]:
    folder = folder_of("llama with everything")
    return open_base(folder), folder


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_in_fp32_are_those_of_peft(folder_of, family):
    folder, examples = folder_of(family), examples_of()
    adapter = adapter_of(folder)
    slices = random_arrays(adapter, K)
    expected = peft_gradients(hugging_face(folder, torch.float64), adapter, slices, examples)
    assert len(expected) == 2 * len(EVERY) * LAYERS
    check_close(lean_gradients(open_base(folder), adapter, slices, examples), expected, EXACT)


@pytest.mark.parametrize(
    "targets", [("q_proj", "v_proj"), ("down_proj",), ("k_proj", "up_proj"), ("o_proj",)]
)
def test_an_adapter_of_some_layers_learns_what_peft_learns(llama, targets):
    base, folder = llama
    adapter = adapter_of(folder, targets)
    slices = random_arrays(adapter, K)
    model, examples = hugging_face(folder, torch.float64), examples_of()
    expected = peft_gradients(model, adapter, slices, examples)
    check_close(lean_gradients(base, adapter, slices, examples), expected, EXACT)


def test_the_loss_of_packed_examples_is_that_of_a_padded_batch(llama):
    base, folder = llama
    adapter, examples = adapter_of(folder), examples_of()
    zeros = {name: 0 * x for name, x in random_arrays(adapter, K).items()}
    once = TrainingSpec(local_steps=1, batch_size=len(examples))
    found = train_round(base, adapter, K, zeros, once, examples, seed=0).loss
    batch = collate(examples, 0)
    with torch.no_grad():
        expected = hugging_face(folder, torch.float32)(
            input_ids=batch.input_ids, attention_mask=batch.attention_mask, labels=batch.targets
        ).loss
    assert found == pytest.approx(float(expected), rel=1e-5)


def test_what_stands_after_the_last_learned_token_changes_nothing(llama):
    base, folder = llama
    adapter, examples = adapter_of(folder), examples_of()
    slices = random_arrays(adapter, K)
    longer = [Example([*x.tokens, 3, 4], [*x.is_learned, False, False]) for x in examples]
    expected = lean_gradients(base, adapter, slices, examples)
    check_close(lean_gradients(base, adapter, slices, longer), expected, EXACT)


@pytest.mark.parametrize("micro_batch", [1, 2, 3])
def test_micro_batches_add_up_to_the_batch(llama, micro_batch):
    base, folder = llama
    adapter, examples = adapter_of(folder), examples_of()
    slices = random_arrays(adapter, K)
    whole = lean_gradients(base, adapter, slices, examples)
    parts = lean_gradients(base, adapter, slices, examples, micro_batch=micro_batch)
    check_close(parts, whole, EXACT)


@pytest.mark.parametrize("family", ["llama with everything", "qwen3"])
def test_recomputed_blocks_change_no_bit_in_fp32(folder_of, family):
    folder, examples = folder_of(family), examples_of()
    base, adapter = open_base(folder), adapter_of(folder)
    slices = random_arrays(adapter, K)
    kept = lean_gradients(base, adapter, slices, examples, micro_batch=1)
    for count in (1, LAYERS - 1, LAYERS, LAYERS + 5):
        again = lean_gradients(
            base, adapter, slices, examples, micro_batch=1, recomputed_blocks=count
        )
        for name, x in kept.items():
            np.testing.assert_array_equal(again[name], x, err_msg=f"{count} {name}")


@pytest.mark.parametrize("quantization", ["bf16", "nf4", "int8"])
def test_recomputed_blocks_of_a_narrow_base_stay_near_the_exact_gradient(folder_of, quantization):
    """What they are computed again from was rounded to bf16, so the bits are others."""
    folder, examples = folder_of("qwen3"), examples_of()
    base, adapter = open_base(folder, quantization), adapter_of(folder)
    slices = random_arrays(adapter, K)
    exact = double_gradients(base, adapter, slices, examples)
    for count in (1, LAYERS):
        again = lean_gradients(base, adapter, slices, examples, recomputed_blocks=count)
        assert distance(again, exact) < 0.01


@pytest.mark.parametrize("recomputed", [0, 1, LAYERS])
@pytest.mark.parametrize("trained", [("q_proj",), ("v_proj", "down_proj"), ("up_proj",)])
def test_targets_left_out_take_part_but_keep_their_ranks_even_with_decay(
    llama, trained, recomputed
):
    base, folder = llama
    adapter, examples = adapter_of(folder), examples_of()
    slices = random_arrays(adapter, K)
    everything = lean_gradients(base, adapter, slices, examples)
    some = lean_gradients(
        base, adapter, slices, examples, trained_targets=trained, recomputed_blocks=recomputed
    )
    for layer in adapter.layers:
        for name in (f"{layer.name}.lora_A", f"{layer.name}.lora_B"):
            expected = everything[name] if layer.ending in trained else 0 * everything[name]
            np.testing.assert_array_equal(some[name], expected, err_msg=name)
    decaying = TrainingSpec(local_steps=2, weight_decay=0.5)
    update = train_round(
        base, adapter, K, slices, decaying, examples, 0, trained_targets=trained
    ).update
    for layer in adapter.layers:
        assert np.any(update[f"{layer.name}.lora_A"]) == (layer.ending in trained)


@pytest.mark.parametrize("lowest", [0, 1, 2])
def test_blocks_below_the_first_trained_one_are_not_passed_back_and_nothing_changes(
    llama, lowest, monkeypatch
):
    base, folder = llama
    everywhere, examples = adapter_of(folder), examples_of()
    layers = [x for x in everywhere.layers if int(x.name.split(".")[2]) >= lowest]
    adapter = type(everywhere)(
        r=K, lora_alpha=16.0, target_modules=everywhere.target_modules, layers=layers, dense=[]
    )
    slices = random_arrays(adapter, K)
    expected = peft_gradients(hugging_face(folder, torch.float64), adapter, slices, examples)
    passed: list[int] = []
    backward = type(base.passes(8))._backward

    def noted(self, layer, *args, **named):
        passed.append(layer)
        return backward(self, layer, *args, **named)

    monkeypatch.setattr(type(base.passes(8)), "_backward", noted)
    for recomputed in (0, LAYERS):
        found = lean_gradients(base, adapter, slices, examples, recomputed_blocks=recomputed)
        check_close(found, expected, EXACT)
    assert passed == 2 * list(reversed(range(lowest, LAYERS)))


@pytest.mark.parametrize("family", ["llama with everything", "qwen3"])
@pytest.mark.parametrize("quantization", ["nf4", "int8", "bf16"])
def test_a_narrow_base_is_nearer_the_exact_gradient_than_peft_in_bf16(
    folder_of, family, quantization
):
    folder, examples = folder_of(family), examples_of()
    base = open_base(folder, quantization)
    adapter = adapter_of(folder)
    slices = random_arrays(adapter, K)
    exact = double_gradients(base, adapter, slices, examples)
    model = hugging_face(folder, torch.float32)
    with torch.no_grad():
        for name, matrix in base.prepared.matrices.items():
            model.get_submodule(name).weight.copy_(matrix.widen(torch.empty(matrix.shape)))
    theirs = peft_gradients(model.to(torch.bfloat16), adapter, slices, examples)
    ours = lean_gradients(base, adapter, slices, examples)
    assert distance(ours, exact) <= distance(theirs, exact) < 0.1
    assert distance(ours, exact) < 0.01


@pytest.mark.parametrize("quantization", ["nf4", "int8", "bf16"])
def test_products_of_integers_give_nearly_the_exact_gradient(folder_of, quantization):
    folder, examples = folder_of("llama"), examples_of()
    base = open_base(folder, quantization, "int8")
    adapter = adapter_of(folder)
    slices = random_arrays(adapter, K)
    found = lean_gradients(base, adapter, slices, examples)
    assert base.exempt == frozenset()
    apart = distance(found, double_gradients(base, adapter, slices, examples))
    assert 1e-4 < apart < 0.06


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_without_compiled_kernels_the_gradients_are_the_same(folder_of, family, monkeypatch):
    folder, examples = folder_of(family), examples_of()
    base, adapter = open_base(folder), adapter_of(folder)
    slices = random_arrays(adapter, K)
    monkeypatch.setattr(native, "library", lambda: None)
    expected = peft_gradients(hugging_face(folder, torch.float64), adapter, slices, examples)
    check_close(lean_gradients(base, adapter, slices, examples), expected, EXACT)


MASKED = """
import sys
from pathlib import Path
import numpy as np
from edge_sdk.lean import native
from tests.sdk.lean_parts import K, adapter_of, examples_of, lean_gradients, open_base
from tests.sdk.parts import random_arrays

folder = Path(sys.argv[1])
adapter = adapter_of(folder)
found = lean_gradients(open_base(folder), adapter, random_arrays(adapter, K), examples_of())
np.savez(sys.argv[2], **found)
print(native.library().width, native.library().multiplies_integers)
"""


@needs_native
def test_the_switch_that_masks_a_cpus_instructions_counts_here_too(folder_of, tmp_path):
    folder = folder_of("llama")
    base, adapter = open_base(folder), adapter_of(folder)
    slices = random_arrays(adapter, K)
    done = subprocess.run(
        [sys.executable, "-c", MASKED, str(folder), str(tmp_path / "g.npz")],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX2"},
    )
    width, multiplies = done.stdout.split()
    assert int(width) <= 8
    assert multiplies == "False"
    masked = dict(np.load(tmp_path / "g.npz"))
    check_close(masked, lean_gradients(base, adapter, slices, examples_of()), EXACT)
