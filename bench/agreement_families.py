"""Every family and flag the hand-written passes know, in fp32: gradients beside PEFT's, as JSON."""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import peft
import torch
import transformers

from bench.example_file import padded
from bench.gradients import Gradients, lean_gradients, peft_gradients, worst_difference
from edge_sdk.lean.base import open_lean_base
from edge_sdk.model.model_folder import read_model_shape
from edge_sdk.sketch import sketched_scaling
from edge_sdk.text.example import Example
from edge_sdk.wire.payload import adapter_shapes
from edge_sdk.wire.task import AdapterSpec

_K, _ALPHA, _VOCABULARY = 4, 8.0, 96
_SIZES = {
    "vocab_size": _VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.2,  # of such small layers; it keeps every gradient away from zero
    "tie_word_embeddings": True,
}
_LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {}),
    "llama, own head": ("Llama", {"tie_word_embeddings": False}),
    "llama, biases": ("Llama", {"attention_bias": True, "mlp_bias": True}),
    "llama, a head for each query": ("Llama", {"num_key_value_heads": 4}),
    "llama, wide heads": ("Llama", {"head_dim": 32}),
    "llama, stretched rotation": ("Llama", {"rope_parameters": _LLAMA3}),
    "mistral": ("Mistral", {"sliding_window": None}),
    "qwen2": ("Qwen2", {}),
    "qwen2, own head": ("Qwen2", {"tie_word_embeddings": False}),
    "qwen3": ("Qwen3", {"head_dim": 16}),
    "qwen3, biases, own head": (
        "Qwen3",
        {"head_dim": 32, "attention_bias": True, "tie_word_embeddings": False},
    ),
}


def main() -> int:
    """Compare every family on the threads the first argument says."""
    torch.set_num_threads(msgspec.json.decode(sys.argv[1], type=int))
    found = {}
    for name, (family, flags) in FAMILIES.items():
        with tempfile.TemporaryDirectory() as scratch:
            found[name] = compare(Path(scratch), family, flags)
    sys.stdout.write(json.dumps(found) + "\n")
    return 0


def compare(folder: Path, family: str, flags: dict[str, Any]) -> float:
    """Return the worst relative difference of the gradient of any A or B."""
    _save(folder, family, flags)
    shape = read_model_shape(folder, "CAUSAL_LM", 0)
    adapter = AdapterSpec(
        r=_K,
        lora_alpha=_ALPHA,
        target_modules=list(shape.default_targets),
        layers=shape.target_layers(shape.default_targets),
    )
    rng = np.random.default_rng(0)
    ranks = {
        name: (0.1 * rng.standard_normal(size)).astype(np.float32)
        for name, size in adapter_shapes(adapter, _K).items()
    }
    examples = [
        Example(rng.integers(1, _VOCABULARY, n), rng.random(n) < share)
        for n, share in ((19, 1.0), (7, 0.5), (12, 0.4))
    ]
    base = open_lean_base(folder, "fp32")
    scale = sketched_scaling(_ALPHA, _K, _K)
    ours = lean_gradients(base, adapter, ranks, scale, examples)
    return worst_difference(ours, _theirs(folder, adapter, ranks, examples))


def _save(folder: Path, family: str, flags: dict[str, Any]) -> None:
    """Save a random model whose norms and biases are not what they are made as."""
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(**(_SIZES | flags))
    model = getattr(transformers, f"{family}ForCausalLM")(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 1:
                center = 0.0 if name.endswith("bias") else 1.0
                parameter.copy_(center + 0.2 * torch.randn_like(parameter))
    model.save_pretrained(folder)


def _theirs(
    folder: Path, adapter: AdapterSpec, ranks: dict[str, Any], examples: list[Example]
) -> Gradients:
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    lora = peft.LoraConfig(
        r=_K, lora_alpha=_ALPHA, target_modules=list(adapter.target_modules), task_type="CAUSAL_LM"
    )
    model = peft.get_peft_model(model, lora)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                plain = name.removeprefix("base_model.model.").removesuffix(".default.weight")
                parameter.copy_(torch.from_numpy(ranks[plain]))
    model(**padded(examples)).loss.backward()
    return peft_gradients(model)


if __name__ == "__main__":
    sys.exit(main())
