"""Export a base model to ONNX once: named by its content, whole or not at all, then checked."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

import msgspec
import platformdirs

from edge_sdk.errors import ConfigError, ModelError, StorageError
from edge_sdk.files.one_writer import one_writer
from edge_sdk.inference.decoder import build_decoder
from edge_sdk.inference.encoder import build_encoder
from edge_sdk.inference.graph import Graph
from edge_sdk.inference.weight_file import WeightFile
from edge_sdk.inference.weight_format import WeightFormat
from edge_sdk.inference.weights import Weights
from edge_sdk.model.lean_eligibility import why_not_lean
from edge_sdk.model.model_folder import file_digest, read_config
from edge_sdk.model.model_shape import read_shape
from edge_sdk.wire.task import TaskType
from edge_sdk.wire.typed_json import decode_json

GRAPH_FILE, WEIGHT_FILE, RECORD_FILE = "model.onnx", "weights.bin", "export.json"

_VERSION = 2
_DIGEST_LETTERS = 32
_HEAD_UNIT = 16  # of ONNX Runtime's attention
_ENCODERS = ("bert", "roberta", "xlm-roberta")


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportRecord:
    """What an export says of itself.

    Attributes:
        source: Digest of the model it was made from.
        weight_format: Of its frozen matrices.
        task_type: What it computes.
        sizes_bytes: Of its files by name.
        digests: SHA-256 of its files by name, 64 hex digits.
        version: Of the layout.
    """

    source: str
    weight_format: WeightFormat
    task_type: TaskType
    sizes_bytes: dict[str, int]
    digests: dict[str, str]
    version: int = _VERSION


def exports_folder() -> Path:
    """Return where exported models are kept unless the caller says otherwise."""
    return platformdirs.user_cache_path("edge-sdk") / "prepared"


def why_not_exported(config: Mapping[str, Any], task_type: TaskType) -> str | None:
    """Return why a model cannot be exported, or None.

    Args:
        config: The content of ``config.json``.
        task_type: What the model is used for.
    """
    if config.get("model_type") not in _ENCODERS:
        return why_not_lean(config, "CAUSAL_LM") or _why_not_attended(config)
    if task_type != "SEQ_CLS":
        return "it is an encoder, which generates no text"
    if config.get("hidden_act", "gelu") != "gelu":
        return f"its activation is {config['hidden_act']}"
    if config.get("position_embedding_type", "absolute") != "absolute":
        return f"its positions are {config['position_embedding_type']}"
    return None


def _why_not_attended(config: Mapping[str, Any]) -> str | None:
    shape = read_shape(config)
    head_size = shape.q_size // shape.num_heads
    if head_size % _HEAD_UNIT:
        return f"its heads are {head_size} wide, not a multiple of {_HEAD_UNIT}"
    return None


def export_once(
    folder: Path, weight_format: WeightFormat, task_type: TaskType, cache: Path | None = None
) -> Path:
    """Return the folder of a model's export, after making it if it is absent, damaged or old.

    It takes the memory of a few rows of one matrix. The folder appears whole or not at all; of
    several processes that want it, one writes and the others wait.

    Args:
        folder: Hugging Face folder with ``config.json`` and ``*.safetensors``.
        weight_format: Of the frozen matrices.
        task_type: What the model is used for.
        cache: Folder of exports, made if need be; default :func:`exports_folder`.

    Raises:
        ConfigError: An unknown weight format.
        ModelError: The model cannot be exported; nothing is written.
        StorageError: The export cannot be written; nothing is left of the attempt.
    """
    if weight_format not in get_args(WeightFormat):
        raise ConfigError(
            f"weight format {weight_format!r} is not one of {', '.join(get_args(WeightFormat))}"
        )
    reason = why_not_exported(read_config(folder), task_type)
    if reason is not None:
        raise ModelError(f"{folder} cannot be exported to ONNX: {reason}")
    weights = Weights(folder)
    kind = "" if task_type == "CAUSAL_LM" else "-classifier"
    name = f"{weights.digest[:_DIGEST_LETTERS]}-{weight_format}{kind}.onnx"
    found = (cache or exports_folder()) / name
    if _is_good(found, weights, weight_format, task_type):
        return found
    with one_writer(found):
        if not _is_good(found, weights, weight_format, task_type):
            try:
                _replace(found, weights, weight_format, task_type)
            except OSError as error:
                raise StorageError(
                    f"{found} cannot be written: {error}; free some space or choose another folder"
                ) from error
    return found


def check_export(export: Path) -> ExportRecord:
    """Compare an export's files with its record, and return that.

    Raises:
        ModelError: A file is missing, cut short, longer or changed.
    """
    path = export / RECORD_FILE
    try:
        record = decode_json(path.read_bytes(), ExportRecord)
        sizes = {name: (export / name).stat().st_size for name in record.sizes_bytes}
    except (OSError, UnicodeDecodeError, msgspec.DecodeError) as error:
        raise ModelError(f"{export} is no complete export: {error}; export it again") from error
    for name, size in sizes.items():
        if size != record.sizes_bytes[name]:
            raise ModelError(
                f"{export / name} has {size} bytes, its export wrote {record.sizes_bytes[name]}: "
                "export it again"
            )
    for name, digest in record.digests.items():
        if file_digest(export / name) != digest:
            raise ModelError(f"{export / name} was changed after its export: export it again")
    return record


def _is_good(
    export: Path, weights: Weights, weight_format: WeightFormat, task_type: TaskType
) -> bool:
    try:
        record = check_export(export)
    except ModelError:
        return False
    asked = (_VERSION, weights.digest, weight_format, task_type)
    return (record.version, record.source, record.weight_format, record.task_type) == asked


def _replace(
    export: Path, weights: Weights, weight_format: WeightFormat, task_type: TaskType
) -> None:
    partial = export.with_name(f"{export.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        _write(partial, weights, weight_format, task_type)
        shutil.rmtree(export, ignore_errors=True)
        os.replace(partial, export)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _write(
    folder: Path, weights: Weights, weight_format: WeightFormat, task_type: TaskType
) -> None:
    # How many labels there are is the adapter's to say; any number gives the same graph.
    shape = read_shape(weights.config, task_type, num_labels=2)
    with WeightFile(folder / WEIGHT_FILE) as file:
        graph = Graph(weights, file, weight_format)
        if shape.is_encoder:
            build_encoder(graph, shape)
        else:
            build_decoder(graph, shape, is_classifier=task_type == "SEQ_CLS")
        graph.write(folder / GRAPH_FILE)
        digest = file.digest
    files = (GRAPH_FILE, WEIGHT_FILE)
    record = ExportRecord(
        source=weights.digest,
        weight_format=weight_format,
        task_type=task_type,
        sizes_bytes={name: (folder / name).stat().st_size for name in files},
        digests={GRAPH_FILE: file_digest(folder / GRAPH_FILE), WEIGHT_FILE: digest},
    )
    content = json.dumps(asdict(record), indent=2) + "\n"
    (folder / RECORD_FILE).write_text(content, encoding="utf-8")
