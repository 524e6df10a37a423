"""A round on a model of another family goes where PEFT and autograd go."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import peft
import pytest
import torch
import transformers
from torch.nn import functional

from edge_sdk.general.base_model import LoadedBase, load_base
from edge_sdk.text.example import Example
from edge_sdk.wire.payload import Arrays
from edge_sdk.wire.task import AdapterSpec, BaseModel
from tests.sdk.lean_parts import VOCABULARY, Gradients, K, check_close, examples_of, lean_gradients
from tests.sdk.parts import adapter_spec, causal_spec, classifier_spec, random_arrays

pytestmark = pytest.mark.filterwarnings(
    "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"  # PEFT, with transformers 5
)

SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "initializer_range": 0.1,
}
ONE_KEY_PER_TWO = {"num_key_value_heads": 2, "bos_token_id": None, "eos_token_id": None}
FAMILIES = {
    "Gemma": {**ONE_KEY_PER_TWO, "head_dim": 16},
    "Gemma2": {**ONE_KEY_PER_TWO, "head_dim": 16},
    "Phi3": ONE_KEY_PER_TWO,
    "Bert": {},
    "Roberta": {},
}


def save(folder: Path, family: str, tokenizer_of: Path) -> tuple[Path, BaseModel]:
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(**(SIZES | FAMILIES[family]))
    is_encoder = family in ("Bert", "Roberta")
    name = f"{family}Model" if is_encoder else f"{family}ForCausalLM"
    getattr(transformers, name)(config).save_pretrained(folder)
    for file in tokenizer_of.glob("*token*"):
        shutil.copy(file, folder)
    return folder, classifier_spec() if is_encoder else causal_spec()


def loss_of(model: torch.nn.Module, example: Example) -> torch.Tensor:
    """Summed over what is learned of one example, by itself and without padding."""
    tokens = torch.from_numpy(example.tokens.astype(np.int64))
    logits = model(input_ids=tokens[None]).logits[0]
    if example.label is not None:
        return functional.cross_entropy(logits, torch.tensor(example.label))
    learned = torch.from_numpy(example.is_learned[1:])
    return functional.cross_entropy(logits[:-1][learned], tokens[1:][learned], reduction="sum")


def peft_gradients(
    model: torch.nn.Module, adapter: AdapterSpec, slices: Arrays, examples: list[Example]
) -> Gradients:
    config = peft.LoraConfig(
        r=K,
        lora_alpha=adapter.lora_alpha,
        target_modules=[layer.name for layer in adapter.layers],
        modules_to_save=["classifier"] if adapter.dense else None,
    )
    device = peft.get_peft_model(model, config).eval()
    trained = {
        name.removeprefix("base_model.model.")
        .replace("modules_to_save.default.", "")
        .removesuffix(".default.weight"): parameter
        for name, parameter in device.named_parameters()
        if parameter.requires_grad
    }
    assert trained.keys() == slices.keys()
    with torch.no_grad():
        for name, parameter in trained.items():
            parameter.copy_(torch.from_numpy(slices[name]))
    is_classifier = bool(adapter.dense)
    count = sum(1 if is_classifier else int(x.is_learned[1:].sum()) for x in examples)
    for example in examples:
        (loss_of(device, example) / count).backward()
    return {name: x.grad.double().numpy() for name, x in trained.items()}


@pytest.mark.parametrize("micro_batch", [None, 2])
@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_of_a_generic_model_are_those_of_peft(tmp_path, tiny_llama, family, micro_batch):
    folder, spec = save(tmp_path / "model", family, tiny_llama)
    base: LoadedBase = load_base(folder, spec, "fp32", threads=1)
    adapter = adapter_spec(folder, spec, r=K)
    slices = random_arrays(adapter, K)
    examples = examples_of()
    if adapter.dense:
        examples = [
            Example(x.tokens, np.zeros(len(x.tokens)), label=i % 3) for i, x in enumerate(examples)
        ]
    found = lean_gradients(
        base, adapter, slices, examples, micro_batch=micro_batch, recomputed_blocks=1
    )
    expected = peft_gradients(base.model.double(), adapter, slices, examples)
    check_close(found, expected, 1e-5)
