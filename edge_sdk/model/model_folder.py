"""A base model as files: find its folder, read its configuration, fingerprint its weights."""

from __future__ import annotations

import contextlib
import hashlib
import json
from pathlib import Path
from typing import Any

import platformdirs
import safetensors

from edge_sdk.errors import ModelError
from edge_sdk.files.whole_file import write_whole
from edge_sdk.model.model_shape import FAMILIES, ModelShape, read_shape, shape_from_tensors
from edge_sdk.wire.task import TaskType

_CHUNK_BYTES = 1 << 20


def find_model(model: str, revision: str | None = None) -> Path:
    """Return the local folder of a model: a folder as it is, a hub id from the hub's cache.

    A hub id that is not in the cache is downloaded if ``huggingface_hub`` is installed and
    ``HF_HUB_OFFLINE`` is not set.

    Raises:
        ModelError: There is no such folder, and no such model in the cache or on the hub.
    """
    folder = Path(model).expanduser()
    if (folder / "config.json").is_file():
        return folder
    if folder.exists() or model.startswith((".", "/", "~")) or model.count("/") != 1:
        raise ModelError(
            f"{model!r} is neither a model folder (one with a config.json) nor a hub id owner/name"
        )
    return _from_hub(model, revision)


def _from_hub(model: str, revision: str | None) -> Path:
    try:
        import huggingface_hub
        from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
    except ImportError:
        raise ModelError(
            f"{model!r} is a hub id, and huggingface_hub is not installed: name a local folder, "
            "or install edge-sdk[train]"
        ) from None
    try:
        found = huggingface_hub.snapshot_download(
            model, revision=revision, allow_patterns=["*.json", "*.safetensors", "*.model", "*.txt"]
        )
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        raise ModelError(
            f"model {model!r} is neither in the local cache nor to be had from the hub: {error}"
        ) from error
    return Path(found)


def read_config(folder: Path) -> dict[str, Any]:
    """Return the content of a model's ``config.json``.

    Raises:
        ModelError: It is missing or not a JSON object.
    """
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be read: {error}") from error
    if not isinstance(config, dict):
        raise ModelError(f"{path} is not a JSON object")
    return config


def read_model_shape(
    folder: Path, task_type: TaskType = "CAUSAL_LM", num_labels: int = 0
) -> ModelShape:
    """Return the sizes of a model, from its configuration or, for other families, its files.

    Only the headers of the files are read.

    Raises:
        ModelError: Missing or damaged files, or a classifier of a family that is not known.
    """
    config = read_config(folder)
    if config.get("model_type") in FAMILIES or task_type == "SEQ_CLS":
        return read_shape(config, task_type, num_labels)
    return shape_from_tensors(config, tensor_shapes(folder))


def tensor_shapes(folder: Path) -> dict[str, list[int]]:
    """Return the shape of every tensor in a model's files by name, from their headers alone.

    Raises:
        ModelError: The files are missing or damaged.
    """
    shapes: dict[str, list[int]] = {}
    for file in _weight_files(folder):
        try:
            with safetensors.safe_open(file, framework="np") as tensors:
                names = tensors.keys()
                shapes |= {name: tensors.get_slice(name).get_shape() for name in names}
        except (OSError, safetensors.SafetensorError) as error:
            raise ModelError(f"{file} cannot be read: {error}") from error
    return shapes


def class_names(folder: Path, count: int) -> list[str]:
    """Return the names a model gives to ``count`` classes; numbers if it names another count.

    Raises:
        ModelError: The configuration is missing or not a JSON object.
    """
    known = read_config(folder).get("id2label")
    if isinstance(known, dict) and len(known) == count:
        return [str(known[key]) for key in sorted(known, key=int)]
    return [str(i) for i in range(count)]


def config_digest(folder: Path) -> str:
    """Return the SHA-256 of a model's configuration: two models of one shape share it.

    Raises:
        ModelError: It is missing or not a JSON object.
    """
    content = json.dumps(read_config(folder), sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()


def weights_digest(folder: Path) -> str:
    """Return the SHA-256 over the model's safetensors files, 64 hex digits.

    The digest of each file is remembered under its path, size and time of change, so a model
    of several gigabytes is read once per machine.

    Raises:
        ModelError: The folder has no safetensors files.
    """
    whole = hashlib.sha256()
    for file in _weight_files(folder):
        whole.update(bytes.fromhex(file_digest(file)))
    return whole.hexdigest()


def _weight_files(folder: Path) -> list[Path]:
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise ModelError(
            f"{folder} holds no *.safetensors weights; pickled weights are not loaded, "
            "convert them first"
        )
    return files


def file_digest(file: Path) -> str:
    """Return the SHA-256 of a file; remembered under its path, size and time of change."""
    status = file.stat()
    key = f"{file.resolve()}|{status.st_size}|{status.st_mtime_ns}"
    cache = platformdirs.user_cache_path("edge-sdk") / "weight-digests"
    remembered = cache / hashlib.sha256(key.encode()).hexdigest()
    if remembered.is_file():
        known = remembered.read_text(encoding="ascii").strip()
        if len(known) == 64:
            return known
    found = hashlib.sha256()
    with file.open("rb") as stream:
        while chunk := stream.read(_CHUNK_BYTES):
            found.update(chunk)
    with contextlib.suppress(OSError):  # read again next time
        write_whole(remembered, found.hexdigest().encode())
    return found.hexdigest()
