"""Adapters converted for ONNX Runtime: checked against their base, joined as its graph is."""

from __future__ import annotations

import contextlib
import hashlib
import os
from pathlib import Path

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from edge_sdk.errors import AdapterError, StorageError
from edge_sdk.inference.export import exports_folder
from edge_sdk.inference.groups import slot_groups
from edge_sdk.inference.runtime import RUNTIME_ERRORS
from edge_sdk.model.model_folder import file_digest
from edge_sdk.model.model_shape import ModelShape
from edge_sdk.model.peft_folder import CONFIG_FILE, TENSOR_FILE, read_peft_config, read_peft_tensors
from edge_sdk.sketch import lora_scaling
from edge_sdk.wire.payload import Arrays
from edge_sdk.wire.task import LayerSpec, TaskType

SUFFIX = ".onnx_adapter"

_VERSION = 1
_DIGEST_LETTERS = 32
_KEPT_ADAPTERS = 4


def write_adapter(path: Path, arrays: Arrays, lora_scale: float, shape: ModelShape) -> None:
    """Write an adapter's file, whole or not at all.

    Args:
        path: Replaced if it exists; its folder is made if need be.
        arrays: As they travel: ``<layer>.lora_A (r, d_in)``, ``<layer>.lora_B (d_out, r)``, and
            dense parameters under their own names.
        lora_scale: ``lora_scaling`` at the rank of the arrays.
        shape: Of the base model.

    Raises:
        AdapterError: It is for another base model; says the first thing that differs.
        StorageError: It cannot be written.
    """
    joined = _join(arrays, lora_scale, shape)
    values = {name: onnxruntime.OrtValue.ortvalue_from_numpy(x) for name, x in joined.items()}
    content = onnxruntime.AdapterFormat()
    content.set_adapter_version(_VERSION)
    content.set_model_version(_VERSION)
    content.set_parameters(values)
    partial = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        content.export_adapter(str(partial))
        partial.replace(path)
    except (OSError, *RUNTIME_ERRORS) as error:
        raise StorageError(f"the adapter cannot be written to {path}: {error}") from error
    finally:
        partial.unlink(missing_ok=True)


def adapters_folder() -> Path:
    """Return where converted adapters are kept unless the caller says otherwise."""
    return exports_folder() / "adapters"


def task_type_of(folder: Path) -> TaskType:
    """Return what the model with a PEFT folder's adapter is used for.

    Raises:
        AdapterError: The folder cannot be read.
    """
    return "SEQ_CLS" if read_peft_config(folder).get("task_type") == "SEQ_CLS" else "CAUSAL_LM"


def convert_peft_folder(folder: Path, shape: ModelShape, cache: Path | None = None) -> Path:
    """Return the adapter file of a PEFT folder, after writing it if it is not there yet.

    Args:
        folder: As the server or PEFT writes it.
        shape: Of the base model.
        cache: Folder of converted adapters, of which it keeps the last few; default
            :func:`adapters_folder`.

    Raises:
        AdapterError: The folder cannot be read, or is for another base model.
        StorageError: The file cannot be written.
    """
    path = _converted_path(folder, shape, cache or adapters_folder())
    if not path.is_file():
        config, arrays = read_peft_config(folder), read_peft_tensors(folder)
        try:
            alpha = float(config["lora_alpha"])
        except (KeyError, TypeError, ValueError) as error:
            raise AdapterError(f"the adapter in {folder} has no lora_alpha: {error}") from error
        scale = lora_scaling(alpha, config["r"], bool(config.get("use_rslora")))
        try:
            write_adapter(path, arrays, scale, shape)
        except AdapterError as error:
            raise AdapterError(f"the adapter in {folder}: {error}") from error
        _drop_oldest(path.parent)
    return path


def _join(arrays: Arrays, lora_scale: float, shape: ModelShape) -> Arrays:
    """Return the values of the graph's slots.

    ONNX Runtime multiplies ``x A B``, so both matrices are turned, and B takes the scaling. Layers
    that the graph computes as one have their ranks side by side; in B each one's lie in the
    columns of its own output alone.
    """
    left = dict(arrays)
    joined: Arrays = {}
    for slot, layers in slot_groups(shape).items():
        start, parts = 0, list[tuple[int, NDArray[np.float32], NDArray[np.float32]]]()
        for layer in layers:
            pair = [left.pop(f"{layer.name}.lora_{part}", None) for part in "AB"]
            if any(matrix is not None for matrix in pair):
                parts.append((start, *_checked(layer, *pair)))
            start += layer.d_out
        if parts:
            joined[f"{slot}.lora_A"] = np.concatenate([A.T for _, A, _ in parts], axis=1)
            joined[f"{slot}.lora_B"] = _side_by_side(parts, start) * np.float32(lora_scale)
    joined |= {dense.name: left.pop(dense.name) for dense in shape.dense if dense.name in left}
    if left:
        raise AdapterError(
            f"it has {min(left)}, which this base model does not: use the base model it was "
            "trained on"
        )
    return {name: np.ascontiguousarray(x, np.float32) for name, x in joined.items()}


def _checked(
    layer: LayerSpec, A: NDArray[np.float32] | None, B: NDArray[np.float32] | None
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    if A is None or B is None:
        raise AdapterError(f"it has only one of lora_A and lora_B at {layer.name}")
    is_right = A.ndim == B.ndim == 2 and (A.shape[1], len(B)) == (layer.d_in, layer.d_out)
    if not is_right:
        raise AdapterError(
            f"it adapts {layer.name} with lora_A {A.shape} and lora_B {B.shape}, and in this base "
            f"model that layer maps {layer.d_in} to {layer.d_out}: use the base model it was "
            "trained on"
        )
    if len(A) != B.shape[1]:
        raise AdapterError(f"it has two ranks at {layer.name}: {len(A)} and {B.shape[1]}")
    return A, B


def _side_by_side(
    parts: list[tuple[int, NDArray[np.float32], NDArray[np.float32]]], width: int
) -> NDArray[np.float32]:
    whole = np.zeros((sum(len(A) for _, A, _ in parts), width), np.float32)
    rank = 0
    for start, A, B in parts:
        whole[rank : rank + len(A), start : start + len(B)] = B.T
        rank += len(A)
    return whole


def _converted_path(folder: Path, shape: ModelShape, cache: Path) -> Path:
    try:
        parts = [file_digest(folder / name) for name in (CONFIG_FILE, TENSOR_FILE)]
    except OSError as error:
        raise AdapterError(f"{folder} is no PEFT folder: {error}") from error
    name = hashlib.sha256(f"{_VERSION} {parts} {shape.linears}".encode()).hexdigest()
    return cache / f"{name[:_DIGEST_LETTERS]}{SUFFIX}"


def _drop_oldest(cache: Path) -> None:
    with contextlib.suppress(OSError):  # another process was faster, or still uses one
        files = sorted(cache.glob(f"*{SUFFIX}"), key=lambda x: x.stat().st_mtime_ns)
        for file in files[:-_KEPT_ADAPTERS]:
            file.unlink()
