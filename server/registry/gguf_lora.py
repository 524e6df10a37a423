"""An adapter version as a GGUF file that llama.cpp applies to a base model of the same family.

The layout is that of llama.cpp's ``convert_lora_to_gguf.py``: ``<tensor>.lora_a (r, d_in)`` and
``<tensor>.lora_b (d_out, r)`` in fp32. Where llama.cpp stores the rows of a query or key
projection in its own order, the rows of ``lora_b`` follow.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_sdk.errors import ConfigError, StorageError
from edge_sdk.model.model_shape import read_shape
from edge_sdk.wire.manifest import Manifest
from edge_sdk.wire.payload import Arrays
from edge_sdk.wire.task import TaskSpec

Matrix = NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Family:
    """What llama.cpp calls a family, and whether it reorders query and key rows."""

    arch: str
    has_paired_rows: bool


_FAMILIES: Mapping[str, _Family] = {
    "llama": _Family(arch="llama", has_paired_rows=True),
    "mistral": _Family(arch="llama", has_paired_rows=True),
    "qwen2": _Family(arch="qwen2", has_paired_rows=False),
    "qwen3": _Family(arch="qwen3", has_paired_rows=False),
}


def write_gguf_lora(
    path: Path, task: TaskSpec, adapter: Arrays, manifest: Manifest, config: Mapping[str, Any]
) -> None:
    """Write a rank-r adapter as llama.cpp reads it.

    llama.cpp scales by ``alpha / r``; the scaling of rank-stabilized LoRA is folded into alpha.

    Args:
        path: File to write; replaced whole.
        task: Where rank and scaling come from.
        adapter: Every tensor of ``adapter_shapes(task.adapter, r)``, float32.
        manifest: Of the version; goes into the file's metadata.
        config: ``config.json`` of the base model.

    Raises:
        ConfigError: A classifier, a family without a known layout, the configuration of another
            model, or the package ``gguf`` is missing.
        StorageError: The file cannot be written.
    """
    family = _family(task, config)
    tensors = _tensors(task, adapter, config, family)
    partial = path.with_name(f"{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _write(partial, family, _alpha(task), manifest, tensors)
        partial.replace(path)
    except OSError as error:
        raise StorageError(f"the adapter cannot be written to {path}: {error}") from error
    finally:
        with suppress(OSError):  # there may be no folder either
            partial.unlink(missing_ok=True)


def _family(task: TaskSpec, config: Mapping[str, Any]) -> _Family:
    if task.adapter.dense or task.base.task_type != "CAUSAL_LM":
        raise ConfigError(
            f"task {task.name!r} trains a classifier head, which a GGUF adapter cannot carry: "
            "export it as PEFT"
        )
    family = _FAMILIES.get(str(config.get("model_type")))
    if family is None:
        raise ConfigError(
            f"no GGUF layout is known for model type {config.get('model_type')!r}; known: "
            f"{', '.join(_FAMILIES)}. Export it as PEFT"
        )
    if read_shape(config).target_layers(task.adapter.target_modules) != task.adapter.layers:
        raise ConfigError(
            f"config.json has other layers than the base model of task {task.name!r}: name the "
            "folder of that model with --base"
        )
    return family


def _alpha(task: TaskSpec) -> float:
    adapter = task.adapter
    return float(adapter.lora_alpha * (math.sqrt(adapter.r) if adapter.use_rslora else 1.0))


def _tensors(
    task: TaskSpec, adapter: Arrays, config: Mapping[str, Any], family: _Family
) -> dict[str, Matrix]:
    gguf = _gguf()
    arch = next(x for x, name in gguf.MODEL_ARCH_NAMES.items() if name == family.arch)
    names = gguf.get_tensor_name_map(arch, int(config["num_hidden_layers"]))
    heads = int(config["num_attention_heads"])
    key_heads = int(config.get("num_key_value_heads") or heads)
    paired = {"q_proj": heads, "k_proj": key_heads} if family.has_paired_rows else {}
    tensors: dict[str, Matrix] = {}
    for layer in task.adapter.layers:
        name = names.get_name(layer.name)
        if name is None:
            raise ConfigError(f"GGUF has no name for layer {layer.name}: export it as PEFT")
        b = adapter[f"{layer.name}.lora_B"]
        if layer.ending in paired:
            b = pair_rows(b, paired[layer.ending])
        tensors[f"{name}.weight.lora_a"] = np.ascontiguousarray(adapter[f"{layer.name}.lora_A"])
        tensors[f"{name}.weight.lora_b"] = np.ascontiguousarray(b)
    return tensors


def pair_rows(rows: Matrix, heads: int) -> Matrix:
    """Put the rows that rotary embeddings turn together side by side, as llama.cpp wants them.

    Hugging Face turns row ``j`` of a head with row ``j + size / 2``, llama.cpp with the next one:
    ``(heads, 2, size / 2) -> (heads, size / 2, 2)`` on the rows.
    """
    halves = rows.reshape(heads, 2, len(rows) // heads // 2, rows.shape[1])
    return halves.swapaxes(1, 2).reshape(rows.shape)


def _write(
    path: Path, family: _Family, alpha: float, manifest: Manifest, tensors: dict[str, Matrix]
) -> None:
    gguf = _gguf()
    writer = gguf.GGUFWriter(path, family.arch)
    try:
        writer.add_type(gguf.GGUFType.ADAPTER)
        writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
        writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, alpha)
        writer.add_name(f"{manifest.task} version {manifest.version}")
        writer.add_file_type(gguf.LlamaFileType.ALL_F32)
        writer.add_string("edge_sdk.task", manifest.task)
        writer.add_uint32("edge_sdk.version", manifest.version)
        writer.add_uint32("edge_sdk.round_number", manifest.round_number)
        writer.add_string("edge_sdk.digest", manifest.digest)
        writer.add_string("edge_sdk.base_digest", manifest.base_digest)
        for name, array in tensors.items():
            writer.add_tensor(name, array)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    finally:
        writer.close()


def _gguf() -> Any:
    try:
        import gguf
    except ImportError as error:
        raise ConfigError(f"{error.name} is not installed: pip install 'edge-sdk[gguf]'") from error
    return gguf
