"""Tiny random models of the lean trainer's families, and their gradients two ways."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import peft
import torch
import transformers
from numpy.typing import NDArray
from torch.nn import functional

from edge_sdk.lean.base import LeanBase, open_lean_base
from edge_sdk.lean.llama import Frozen, Llama, input_groups
from edge_sdk.lean.packing import pack
from edge_sdk.lean.ranks import Ranks
from edge_sdk.text.example import Example
from edge_sdk.training.local_steps import TrainableBase, train_round
from edge_sdk.wire.payload import Arrays
from edge_sdk.wire.task import AdapterSpec, TrainingSpec
from tests.sdk.parts import adapter_spec, causal_spec

K = 4
VOCABULARY = 96
EVERY = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
STEP = 2.0**14
"""So large that what the ranks were before is lost in the update: it is the gradient."""
GRADIENT = TrainingSpec(local_steps=1, batch_size=100, optimizer="sgd", local_lr=STEP)

LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
FAMILIES: dict[str, tuple[str, dict[str, object]]] = {
    "llama": ("Llama", {}),
    "llama with everything": (
        "Llama",
        {"tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True, "head_dim": 32},
    ),
    "llama 3": ("Llama", {"rope_scaling": LLAMA3, "rope_theta": 500.0}),
    "one key head": ("Llama", {"num_key_value_heads": 1, "rms_norm_eps": 1e-2}),
    "mistral": ("Mistral", {"sliding_window": None}),
    "qwen2": ("Qwen2", {"tie_word_embeddings": True}),
    "qwen3": ("Qwen3", {"head_dim": 32}),
}

Gradients = dict[str, NDArray[np.float64]]


def save_family(folder: Path, family: str, layers: int = 3) -> Path:
    """Save a random model; its norms and biases are random too."""
    name, options = FAMILIES[family]
    sizes: dict[str, object] = {
        "vocab_size": VOCABULARY,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
        "tie_word_embeddings": False,
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": 0,
        "initializer_range": 0.1,
    }
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**(sizes | options))
    model = getattr(transformers, f"{name}ForCausalLM")(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.2 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    return folder


def examples_of(lengths: Sequence[int] = (7, 19, 2, 33, 12)) -> list[Example]:
    """Random texts, of each a random part learned and at least its last token."""
    rng = np.random.default_rng(5)
    found = []
    for length in lengths:
        is_learned = rng.random(length) < 0.5
        is_learned[-1] = True
        found.append(Example(rng.integers(1, VOCABULARY, length), is_learned))
    return found


def adapter_of(folder: Path, targets: tuple[str, ...] = EVERY) -> AdapterSpec:
    return adapter_spec(folder, causal_spec(), r=K, targets=targets)


def lean_gradients(
    base: TrainableBase,
    adapter: AdapterSpec,
    slices: Arrays,
    examples: Sequence[Example],
    **how: object,
) -> Gradients:
    """What one step of plain descent goes against."""
    update = train_round(base, adapter, K, slices, GRADIENT, examples, 0, **how).update
    return {name: -x.astype(np.float64) / STEP for name, x in update.items()}


def double_gradients(
    base: LeanBase, adapter: AdapterSpec, slices: Arrays, examples: Sequence[Example]
) -> Gradients:
    """The gradients of the same weights by the same passes in fp64, where nothing is narrow."""
    llama = Llama(
        base.architecture,
        Frozen(matrices=base.prepared.matrices, vectors=base.prepared.vectors),
        dtype=torch.float64,
        kept=torch.float64,
        products="wide",
        length=max(len(example.tokens) for example in examples),
    )
    wide = {name: x.astype(np.float64) for name, x in slices.items()}
    groups = input_groups(base.architecture.shape.num_layers)
    ranks = Ranks(adapter, wide, adapter.lora_alpha / K, None, groups)
    batch = pack(examples)
    llama.add_gradients(batch, ranks, 1 / len(batch.targets))
    found = {}
    for group in ranks.groups.values():
        for name, A, B in zip(group.names, group.A_of, group.B_of, strict=True):
            found[f"{name}.lora_A"] = A.grad.numpy()
            found[f"{name}.lora_B"] = B.grad.numpy().T
    return found


def peft_gradients(
    model: torch.nn.Module, adapter: AdapterSpec, slices: Arrays, examples: Sequence[Example]
) -> Gradients:
    """The same from PEFT, one example at a time; the model is used up."""
    config = peft.LoraConfig(
        r=K,
        lora_alpha=adapter.lora_alpha,
        target_modules=[layer.name for layer in adapter.layers],
        task_type="CAUSAL_LM",
    )
    device = peft.get_peft_model(model, config).eval()
    factors = {
        name.removeprefix("base_model.model.").removesuffix(".default.weight"): parameter
        for name, parameter in device.named_parameters()
        if parameter.requires_grad
    }
    assert factors.keys() == slices.keys()
    with torch.no_grad():
        for name, parameter in factors.items():
            parameter.copy_(torch.from_numpy(slices[name]))
    count = sum(int(example.is_learned[1:].sum()) for example in examples)
    for example in examples:
        tokens = torch.from_numpy(example.tokens.astype(np.int64))
        learned = torch.from_numpy(example.is_learned[1:])
        logits = device(input_ids=tokens[None]).logits[0, :-1]
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        loss = functional.cross_entropy(logits[learned], tokens[1:][learned], reduction="sum")
        (loss / count).backward()
    return {name: x.grad.double().numpy() for name, x in factors.items()}


def hugging_face(folder: Path, dtype: torch.dtype) -> torch.nn.Module:
    return transformers.AutoModelForCausalLM.from_pretrained(folder).to(dtype)


def open_base(folder: Path, quantization: str = "fp32", products: str = "wide") -> LeanBase:
    return open_lean_base(folder, quantization, products, threads=1)


def distance(found: Gradients, expected: Gradients) -> float:
    """Norm of the difference over that of what is expected, of all tensors together."""
    assert found.keys() == expected.keys()
    apart = sum(float(np.square(found[name] - x).sum()) for name, x in expected.items())
    return (apart / sum(float(np.square(x).sum()) for x in expected.values())) ** 0.5


def check_close(found: Gradients, expected: Gradients, tolerance: float) -> None:
    """Each tensor by itself, relative to its largest number."""
    assert found.keys() == expected.keys()
    for name, x in expected.items():
        largest = np.abs(x).max()
        assert largest > 0, name
        assert np.abs(found[name] - x).max() <= tolerance * largest, name
