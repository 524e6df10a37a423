"""Use a trained adapter: load it onto its base model, generate text, classify text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from edge_sdk.compute.execution import Quantization
from edge_sdk.errors import AdapterError, ConfigError, DataError, WrongBaseModel
from edge_sdk.general.base_model import LoadedBase, load_base, verify_layers
from edge_sdk.general.lora import attach, check_slices
from edge_sdk.model.model_folder import class_names, weights_digest
from edge_sdk.model.peft_folder import read_labels, read_peft_config, read_peft_tensors
from edge_sdk.sketch import lora_scaling
from edge_sdk.text.tokenization import prompt_ids
from edge_sdk.wire.payload import Arrays
from edge_sdk.wire.task import AdapterSpec, BaseModel, DenseSpec, LayerSpec

_UNFINISHED = "\N{REPLACEMENT CHARACTER}"  # what an incomplete UTF-8 sequence decodes to


def load_with_adapter(
    folder: Path,
    adapter_folder: Path,
    quantization: Quantization = "nf4",
    threads: int | None = None,
) -> LoadedBase:
    """Load a base model and put a rank-r PEFT adapter on it, to use it, not to train it.

    Args:
        folder: Of the base model.
        adapter_folder: Of the adapter, as PEFT writes it.
        quantization: Number format of the base.
        threads: CPU threads of the whole process; None leaves them as they are.

    Raises:
        AdapterError: The adapter cannot be read or does not fit the base model.
        ModelError: The base model cannot be loaded.
    """
    config, tensors = read_peft_config(adapter_folder), read_peft_tensors(adapter_folder)
    adapter = _read_adapter(adapter_folder, config, tensors)
    labels = read_labels(adapter_folder)
    spec = _read_base(folder, config, adapter, labels)
    base = load_base(folder, spec, quantization, threads)
    try:
        verify_layers(base, adapter)
    except WrongBaseModel as error:
        raise AdapterError(f"the adapter in {adapter_folder} is for another model: {error}") from (
            error
        )
    scale = lora_scaling(adapter.lora_alpha, adapter.r, adapter.use_rslora)
    attach(base.model, adapter, tensors, scale)
    return base


def generate(
    base: LoadedBase, prompt: str, max_new_tokens: int = 128, chat: bool = False
) -> Iterator[str]:
    """Continue a prompt with the most probable tokens, piece by piece as they come.

    Args:
        base: A causal LM, adapter attached or not.
        prompt: What to continue; with ``chat``, what the user says.
        max_new_tokens: Upper limit; an end token ends earlier.
        chat: Put the prompt into the model's chat template.

    Raises:
        ConfigError: The model is a classifier, or ``max_new_tokens`` is below 1.
        DataError: The prompt has no token.
    """
    if base.spec.task_type != "CAUSAL_LM":
        raise ConfigError("a sequence classifier does not generate text: classify with it")
    if max_new_tokens < 1:
        raise ConfigError(f"max_new_tokens={max_new_tokens} must be at least 1")
    return _stream(base, prompt_ids(base.tokenizer, prompt, chat=chat), max_new_tokens)


def classify(base: LoadedBase, text: str) -> dict[str, float]:
    """Return the probability of each class of a text, by label.

    Raises:
        ConfigError: The model is not a sequence classifier.
        DataError: The text has no token.
    """
    if base.spec.task_type != "SEQ_CLS":
        raise ConfigError("a causal LM has no classes: generate with it")
    ids = list(base.tokenizer(text, truncation=True)["input_ids"])
    if not ids:
        raise DataError("the text has no token to classify")
    with torch.inference_mode():
        logits = base.model(input_ids=torch.tensor([ids], device=base.device)).logits
    probabilities = logits[0].float().softmax(dim=-1).tolist()
    return dict(zip(base.spec.labels, probabilities, strict=True))


def _stream(base: LoadedBase, ids: list[int], max_new_tokens: int) -> Iterator[str]:
    ends, cache, new, shown = _end_ids(base), None, list[int](), ""
    given = torch.tensor([ids], device=base.device)
    for _ in range(max_new_tokens):
        with torch.inference_mode():
            output = base.model(input_ids=given, past_key_values=cache, use_cache=True)
            given = output.logits[:, -1:].argmax(dim=-1)
        cache = output.past_key_values
        if int(given) in ends:
            break
        new.append(int(given))
        text = base.tokenizer.decode(new, skip_special_tokens=True)
        if not text.endswith(_UNFINISHED) and text != shown:
            yield text.removeprefix(shown)
            shown = text
    rest = base.tokenizer.decode(new, skip_special_tokens=True).removeprefix(shown)
    if rest:
        yield rest


def _end_ids(base: LoadedBase) -> set[int]:
    configured = base.model.generation_config.eos_token_id
    ends = configured if isinstance(configured, list) else [configured]
    return {end for end in [*ends, base.tokenizer.eos_token_id] if end is not None}


def _read_adapter(folder: Path, config: dict[str, Any], tensors: Arrays) -> AdapterSpec:
    """Derive the layers of an adapter from the names and shapes of its tensors."""
    names = [x.removesuffix(".lora_A") for x in tensors if x.endswith(".lora_A")]
    dense = sorted(x for x in tensors if not x.endswith((".lora_A", ".lora_B")))
    try:
        adapter = AdapterSpec(
            r=config["r"],
            lora_alpha=float(config["lora_alpha"]),
            use_rslora=bool(config.get("use_rslora")),
            target_modules=sorted({name.rsplit(".", 1)[-1] for name in names}),
            layers=[
                LayerSpec(
                    name=name,
                    d_in=tensors[f"{name}.lora_A"].shape[-1],
                    d_out=tensors[f"{name}.lora_B"].shape[0],
                )
                for name in names
            ],
            dense=[DenseSpec(name=name, shape=list(tensors[name].shape)) for name in dense],
        )
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise AdapterError(f"the adapter in {folder} cannot be used: {error}") from error
    check_slices(adapter, tensors, adapter.r)
    return adapter


def _read_base(
    folder: Path, config: dict[str, Any], adapter: AdapterSpec, labels: Sequence[str]
) -> BaseModel:
    task_type = config.get("task_type")
    if task_type not in ("CAUSAL_LM", "SEQ_CLS"):
        raise AdapterError(f"the adapter is for task type {task_type!r}, not CAUSAL_LM or SEQ_CLS")
    if task_type == "SEQ_CLS":
        labels = _labels(folder, adapter, labels)
    return BaseModel(
        model=str(folder),
        digest=weights_digest(folder),
        task_type=task_type,
        labels=list(labels),
    )


def _labels(folder: Path, adapter: AdapterSpec, labels: Sequence[str]) -> Sequence[str]:
    """Return as many class names as the head has: the task's, the base model's, or numbers."""
    if not adapter.dense:
        raise AdapterError("the adapter is for a sequence classifier but holds no head")
    classes = adapter.dense[-1].shape[0]  # by name, a head's output layer comes last
    if labels:
        if len(labels) != classes:
            raise AdapterError(f"the adapter's task names {len(labels)} labels for {classes}")
        return labels
    return class_names(folder, classes)
