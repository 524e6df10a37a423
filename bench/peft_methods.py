"""The baselines: ``transformers``, ``peft`` and ``bitsandbytes`` as their manuals use them."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from itertools import cycle
from typing import Any

import peft
import torch
import transformers
from torch import Tensor

from bench.train_methods import (
    LEARNING_RATE,
    LORA_ALPHA,
    Method,
    Trainer,
    Work,
    first_ranks,
    token_ids,
)

_DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
_TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def import_libraries(method: Method, work: Work) -> None:
    """Import what the libraries import on first use."""
    family = work.shape.model_type
    importlib.import_module(f"transformers.models.{family}.modeling_{family}")
    if method.held == "nf4":
        importlib.import_module("bitsandbytes")
        importlib.import_module("transformers.integrations.bitsandbytes")
        importlib.import_module("peft.tuners.lora.bnb")


def build(method: Method, work: Work, threads: int) -> Trainer:
    """Load the base, put LoRA on all seven linear layers, and AdamW on that."""
    ids = torch.from_numpy(token_ids(work))
    batch = {"input_ids": ids, "labels": ids}
    return Trainer(step=stepper(adapted_model(method, work, threads), method, cycle([batch])))


def adapted_model(method: Method, work: Work, threads: int) -> Any:
    """Load the base, and put LoRA on all seven linear layers."""
    torch.set_num_threads(threads)
    dtype = _DTYPES[method.products]
    model = _base(method, work, dtype)
    if method.is_prepared:
        model = peft.prepare_model_for_kbit_training(
            model,
            use_gradient_checkpointing=method.checkpointing,
            gradient_checkpointing_kwargs={"use_reentrant": False},
        )
    lora = peft.LoraConfig(
        r=work.k,
        lora_alpha=LORA_ALPHA,
        lora_dropout=0.0,
        target_modules=_TARGETS,
        task_type="CAUSAL_LM",
    )
    model = peft.get_peft_model(model, lora, autocast_adapter_dtype=method.is_prepared)
    _set_adapter(model, work)
    model.train()
    return model


def precision(method: Method) -> AbstractContextManager[Any]:
    """Return what a method computes its forward pass in."""
    # after preparation every activation is fp32, so only autocast brings bf16 products back
    is_mixed = method.is_prepared and _DTYPES[method.products] == torch.bfloat16
    return torch.autocast("cpu", dtype=torch.bfloat16) if is_mixed else nullcontext()


def _base(method: Method, work: Work, dtype: torch.dtype) -> Any:
    settings = None
    if method.held == "nf4":
        settings = transformers.BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
        )
    model = transformers.AutoModelForCausalLM.from_pretrained(
        work.folder,
        dtype=dtype,
        quantization_config=settings,
        attn_implementation="sdpa",
        local_files_only=True,
    )
    model.config.use_cache = False
    return model


def _set_adapter(model: Any, work: Work) -> None:
    """Start where every other method starts.

    Raises:
        RuntimeError: PEFT put the adapter on other layers.
    """
    own = {name: p for name, p in model.named_parameters() if p.requires_grad}
    given = {f"base_model.model.{n}.default.weight": a for n, a in first_ranks(work).items()}
    if own.keys() != given.keys():
        odd = sorted(own.keys() ^ given.keys())
        raise RuntimeError(f"PEFT trains other parameters than expected, the first is {odd[0]}")
    with torch.no_grad():
        for name, parameter in own.items():
            parameter.copy_(torch.from_numpy(given[name]))


def stepper(
    model: Any, method: Method, batches: Iterator[dict[str, Tensor]]
) -> Callable[[], float]:
    """Return what takes a step on the next batch, and returns the loss before it."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=LEARNING_RATE, weight_decay=0.0, fused=True)

    def step() -> float:
        optimizer.zero_grad()
        with precision(method):
            loss = model(**next(batches)).loss
        loss.backward()
        optimizer.step()
        return float(loss.detach())

    return step
