"""Load the frozen base model of a task from a local folder; alone knows bitsandbytes."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
import transformers
from torch import nn

from edge_sdk.compute.execution import Quantization
from edge_sdk.device import has_native_bf16
from edge_sdk.errors import ModelError, WrongBaseModel
from edge_sdk.general.loaded_model import LoadedModel
from edge_sdk.general.narrow_linear import store_as_bf16
from edge_sdk.general.trainee import GenericTrainee
from edge_sdk.memory.heap import allocate_exactly, release_freed_memory
from edge_sdk.model.model_folder import read_config
from edge_sdk.text.example import Example
from edge_sdk.text.tokenizer import LOAD_ERRORS, load_tokenizer, quiet_libraries
from edge_sdk.wire.payload import Arrays
from edge_sdk.wire.task import AdapterSpec, BaseModel

_LOAD_IN_ORDER = "HF_DEACTIVATE_ASYNC_LOAD"


class LoadedBase(LoadedModel):
    """A frozen base model that any sketch can be trained on, by autograd."""

    def verify_layers(self, adapter: AdapterSpec) -> None:
        """Check that the model has every layer and dense parameter of an adapter, in its size.

        Raises:
            WrongBaseModel: Says the first one that is missing or differs.
        """
        verify_layers(self, adapter)

    def trainee(
        self,
        adapter: AdapterSpec,
        slices: Arrays,
        scale: float,
        trained_targets: Collection[str] | None,
        examples: Sequence[Example],
        micro_batch: int | None,
        recomputed_blocks: int,
    ) -> GenericTrainee:
        """Put the ranks of one sketch on this base."""
        return GenericTrainee(
            self, adapter, slices, scale, trained_targets, micro_batch, recomputed_blocks
        )


def load_base(
    folder: Path,
    spec: BaseModel,
    quantization: Quantization,
    threads: int | None = None,
    *,
    computes_in_bf16: bool | None = None,
) -> LoadedBase:
    """Load a base model, frozen and in evaluation mode, from safetensors files alone.

    Evaluation mode also holds while training: dropout would make a round irreproducible, and
    the sketch is noise enough. The output head and a classifier's head are never quantized. A
    classifier head that the folder does not have starts random; the task sends its values.

    Args:
        folder: Hugging Face folder with ``config.json``, tokenizer and ``*.safetensors``.
        spec: Task type and labels decide the model class and its head.
        quantization: ``nf4`` (4 bits, double quantization), ``bf16`` or ``fp32``.
        threads: CPU threads of the whole process; None leaves them as they are.
        computes_in_bf16: On a CPU, activations are bf16 unless the base is fp32; None asks the
            CPU's flags.

    Raises:
        ModelError: Missing, damaged, incomplete or unknown; or NF4 does not work here.
    """
    if "quantization_config" in read_config(folder):
        raise ModelError(
            f"{folder} is already quantized; name the folder of the unquantized model, it is "
            "quantized while it loads"
        )
    allocate_exactly()
    if threads is not None:
        torch.set_num_threads(threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = choose_compute_dtype(device, computes_in_bf16)
    dtype = torch.float32 if quantization == "fp32" else dtype
    tokenizer = load_tokenizer(folder)
    with quiet_libraries(), _one_tensor_at_a_time():
        try:
            model = _load_model(folder, spec, quantization, dtype, device)
        except LOAD_ERRORS as error:
            raise ModelError(
                f"the base model in {folder} cannot be loaded as {quantization}: {error}"
            ) from error
    release_freed_memory()
    model.config.pad_token_id = tokenizer.pad_token_id
    model.config.use_cache = False
    model.requires_grad_(False)
    model.eval()
    return LoadedBase(model, tokenizer, spec, quantization, dtype)


def choose_compute_dtype(device: torch.device, computes_in_bf16: bool | None = None) -> torch.dtype:
    """Return bf16 where the hardware multiplies bf16, else fp32.

    Emulated, a bf16 multiplication on a CPU is several times slower than one in fp32, and fp16
    overflows without loss scaling.
    """
    if device.type == "cuda":
        is_native = torch.cuda.get_device_capability(device) >= (8, 0)
    else:
        is_native = has_native_bf16() if computes_in_bf16 is None else computes_in_bf16
    return torch.bfloat16 if is_native else torch.float32


def verify_layers(loaded: LoadedBase, adapter: AdapterSpec) -> None:
    """Check that a model has every layer and dense parameter of an adapter, in its size.

    Raises:
        WrongBaseModel: Says the first one that is missing or differs.
    """
    modules = dict(loaded.model.named_modules())
    for layer in adapter.layers:
        module = modules.get(layer.name)
        # 4-bit layers pack their weight into another shape, so only these two are to be trusted.
        found = (getattr(module, "in_features", None), getattr(module, "out_features", None))
        if found != (layer.d_in, layer.d_out):
            raise WrongBaseModel(
                f"the task adapts the linear layer {layer.name} ({layer.d_in} -> {layer.d_out}), "
                f"this base model has {_describe(module, found)} there: hold the base model "
                "that the task names"
            )
    parameters = dict(loaded.model.named_parameters(remove_duplicate=False))
    for dense in adapter.dense:
        parameter = parameters.get(dense.name)
        if parameter is None or list(parameter.shape) != dense.shape:
            shape = "nothing" if parameter is None else f"shape {list(parameter.shape)}"
            raise WrongBaseModel(
                f"the task trains {dense.name} of shape {dense.shape}, this base model has "
                f"{shape} there: hold the base model that the task names"
            )


def _describe(module: nn.Module | None, found: tuple[int | None, int | None]) -> str:
    if module is None:
        return "nothing"
    return f"a {type(module).__name__}" + (f" ({found[0]} -> {found[1]})" if found[0] else "")


def _load_model(
    folder: Path,
    spec: BaseModel,
    quantization: Quantization,
    dtype: torch.dtype,
    device: torch.device,
) -> Any:
    config = transformers.AutoConfig.from_pretrained(
        folder, local_files_only=True, trust_remote_code=False
    )
    if spec.task_type == "SEQ_CLS":
        config.num_labels = len(spec.labels)
        config.id2label = dict(enumerate(spec.labels))
        config.label2id = {label: i for i, label in enumerate(spec.labels)}
        model_class: Any = transformers.AutoModelForSequenceClassification
    else:
        model_class = transformers.AutoModelForCausalLM
    settings = _nf4_config(model_class, config, dtype) if quantization == "nf4" else None
    model, report = model_class.from_pretrained(
        folder,
        config=config,
        dtype=torch.bfloat16 if quantization == "bf16" else dtype,
        quantization_config=settings,
        device_map={"": device},
        use_safetensors=True,
        local_files_only=True,
        trust_remote_code=False,
        output_loading_info=True,
    )
    _refuse_missing(model, report["missing_keys"], spec)
    if quantization == "nf4":
        _check_nf4(model)
    elif quantization == "bf16" and dtype != torch.bfloat16:
        store_as_bf16(model, _block_linears(model), dtype)
        model.config.dtype = dtype
    return model


def _block_linears(model: nn.Module) -> list[str]:
    """Return the linear layers inside the repeated blocks: all but heads and poolers."""
    blocks = tuple(f"{n}." for n, m in model.named_modules() if isinstance(m, nn.ModuleList))
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and name.startswith(blocks)
    ]


def _nf4_config(model_class: Any, config: Any, dtype: torch.dtype) -> Any:
    try:
        import bitsandbytes  # noqa: F401 - transformers reports its absence less clearly
    except (ImportError, OSError, RuntimeError) as error:
        raise ModelError(
            f"NF4 needs bitsandbytes, which cannot be imported here ({error}): install it or "
            "choose bf16 or fp32"
        ) from error
    with torch.device("meta"):
        skeleton = model_class.from_config(config)
    quantized = set(_block_linears(skeleton))
    return transformers.BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
        llm_int8_skip_modules=[
            name
            for name, module in skeleton.named_modules()
            if isinstance(module, nn.Linear) and name not in quantized
        ],
    )


def _check_nf4(model: nn.Module) -> None:
    """Run one 4-bit multiplication forward and backward, and keep the layers trainable through.

    Raises:
        ModelError: A block has a layer that is not 4-bit, or the kernel fails.
    """
    from bitsandbytes.nn import Linear4bit

    names = _block_linears(model)
    layers = [model.get_submodule(name) for name in names]
    odd = [n for n, layer in zip(names, layers, strict=True) if not isinstance(layer, Linear4bit)]
    if odd or not layers:
        raise ModelError(f"NF4 quantized no layer {odd[0] if odd else 'of a block'}: choose bf16")
    for layer in layers:
        # On CPUs with AVX512-BF16 an evaluation would repack the weights for inference, for good,
        # and no gradient passes through the repacked ones.
        cast(Any, layer).support_avx512bf16_for_cpu = False
    first = cast(nn.Linear, layers[0])
    x = torch.ones(1, first.in_features, device=first.weight.device, requires_grad=True)
    try:
        first(x).sum().backward()
    except (RuntimeError, OSError, AttributeError, NotImplementedError) as error:
        raise ModelError(
            f"bitsandbytes cannot compute in NF4 on this machine ({error}): choose bf16 or fp32"
        ) from error
    if x.grad is None or not torch.isfinite(x.grad).all():
        raise ModelError("bitsandbytes gives no usable gradient here: choose bf16 or fp32")


def _refuse_missing(model: Any, missing: set[str], spec: BaseModel) -> None:
    """Refuse weights made up at random, which would differ on every device."""
    inside = f"{model.base_model_prefix}."
    may_miss_head = spec.task_type == "SEQ_CLS"
    lost = sorted(x for x in missing if x.startswith(inside) or not may_miss_head)
    if lost:
        raise ModelError(
            f"the base model's files lack {len(lost)} of its tensors, the first is {lost[0]}: "
            "use a complete copy, made for this kind of task"
        )


@contextmanager
def _one_tensor_at_a_time() -> Iterator[None]:
    """Keep transformers 5 from loading in threads: their stacks count against a memory limit."""
    before = os.environ.get(_LOAD_IN_ORDER)
    os.environ[_LOAD_IN_ORDER] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[_LOAD_IN_ORDER]
        else:
            os.environ[_LOAD_IN_ORDER] = before
