"""An adapter as a standard PEFT folder: written by the server, read back on the device."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from edge_sdk.errors import AdapterError, MalformedMessage, StorageError
from edge_sdk.wire.manifest import Signed
from edge_sdk.wire.messages import decode_message, encode_message
from edge_sdk.wire.payload import Arrays
from edge_sdk.wire.task import TaskSpec

CONFIG_FILE = "adapter_config.json"
TENSOR_FILE = "adapter_model.safetensors"
TASK_FILE = "edge_sdk_task.json"  # ignored by PEFT; keeps class names and where it came from
MANIFEST_FILE = "edge_sdk_manifest.json"  # the same: version, round and digest, signed
_PREFIX = "base_model.model."


def write_peft_folder(
    folder: Path, task: TaskSpec, adapter: Arrays, base_path: str, lineage: Signed | None = None
) -> None:
    """Write a rank-r adapter as PEFT reads it: plain ``lora_alpha`` and a uniform rank.

    The scaling of rank-stabilized LoRA is folded into ``lora_alpha``
    (``alpha * sqrt(r) / r = alpha / sqrt(r)``), because common converters ignore the flag.

    Args:
        folder: Created if missing; each file is replaced atomically.
        task: Where names, rank and scaling come from.
        adapter: Every tensor of ``adapter_shapes(task.adapter, r)``, float32.
        base_path: What PEFT shall load as the base model: hub id or folder.
        lineage: Signed manifest of the version, kept beside it; None where there is none.

    Raises:
        StorageError: The folder cannot be written.
    """
    tensors = {_peft_name(name, task): array for name, array in adapter.items()}
    config = json.dumps(_peft_config(task, base_path), indent=2) + "\n"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _replace(folder / TENSOR_FILE, safetensors.numpy.save(tensors, {"format": "pt"}))
        _replace(folder / CONFIG_FILE, config.encode())
        _replace(folder / TASK_FILE, encode_message(task))
        if lineage is None:
            (folder / MANIFEST_FILE).unlink(missing_ok=True)
        else:
            _replace(folder / MANIFEST_FILE, encode_message(lineage))
    except OSError as error:
        raise StorageError(f"the adapter cannot be written to {folder}: {error}") from error


def read_peft_config(folder: Path) -> dict[str, Any]:
    """Return ``adapter_config.json`` of a PEFT folder.

    Raises:
        AdapterError: Missing, malformed, or not a LoRA of uniform rank.
    """
    path = folder / CONFIG_FILE
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise AdapterError(f"{path} cannot be read: {error}") from error
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        raise AdapterError(f"{path} is not the configuration of a LoRA adapter")
    if config.get("rank_pattern") or config.get("alpha_pattern"):
        raise AdapterError(f"{path} has ranks that differ by layer; only a uniform rank is read")
    if not isinstance(config.get("r"), int) or config["r"] < 1:
        raise AdapterError(f"{path} has rank r={config.get('r')!r}; it must be at least 1")
    return config


def read_peft_tensors(folder: Path) -> Arrays:
    """Return the tensors of a PEFT folder as float32, under the names the wire uses.

    Raises:
        AdapterError: Missing, truncated or not safetensors.
    """
    path = folder / TENSOR_FILE
    try:
        tensors = safetensors.numpy.load_file(str(path))
    except (OSError, ValueError, safetensors.SafetensorError) as error:
        raise AdapterError(f"{path} cannot be read: {error}") from error
    return {_wire_name(name): array.astype(np.float32) for name, array in tensors.items()}


def read_labels(folder: Path) -> list[str]:
    """Return the class names of the task that made a PEFT folder; empty if it does not say.

    Raises:
        AdapterError: The folder's task file is damaged.
    """
    path = folder / TASK_FILE
    try:
        return decode_message(TaskSpec, path.read_bytes()).base.labels
    except FileNotFoundError:
        return []
    except (OSError, MalformedMessage) as error:
        raise AdapterError(f"{path} cannot be read: {error}") from error


def _peft_name(name: str, task: TaskSpec) -> str:
    if name in {dense.name for dense in task.adapter.dense}:
        return f"{_PREFIX}{name}"
    return f"{_PREFIX}{name}.weight"


def _wire_name(peft_name: str) -> str:
    name = peft_name.removeprefix(_PREFIX)
    for part in ("lora_A", "lora_B"):
        if name.endswith(f".{part}.weight"):
            return name.removesuffix(".weight")
    return name


def _peft_config(task: TaskSpec, base_path: str) -> Mapping[str, Any]:
    adapter = task.adapter
    alpha = adapter.lora_alpha * (np.sqrt(adapter.r) if adapter.use_rslora else 1.0)
    heads = sorted({dense.name.split(".", 1)[0] for dense in adapter.dense})
    return {
        "peft_type": "LORA",
        "task_type": task.base.task_type,
        "base_model_name_or_path": base_path,
        "revision": task.base.revision,
        "r": adapter.r,
        "lora_alpha": float(alpha),
        "use_rslora": False,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "target_modules": sorted(adapter.target_modules),
        "modules_to_save": heads or None,
        "rank_pattern": {},
        "alpha_pattern": {},
    }


def _replace(path: Path, content: bytes) -> None:
    partial = path.with_name(path.name + ".partial")
    with partial.open("wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())
    partial.replace(path)
