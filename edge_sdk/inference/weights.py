"""The tensors of a model's safetensors files as NumPy arrays, mapped and never read whole."""

from __future__ import annotations

import hashlib
import json
import math
import mmap
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import safetensors
from numpy.typing import NDArray

from edge_sdk.errors import ModelError
from edge_sdk.model.model_folder import config_digest, read_config

_FORMATS = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}
_ONE_FILE = "model.safetensors"


class Weights:
    """The tensors of one model.

    Args:
        folder: Hugging Face folder with ``config.json`` and ``*.safetensors``.

    Attributes:
        folder: As given.
        config: The content of ``config.json``.
        digest: Changes when the configuration or a weight file does.

    Raises:
        ModelError: Files that are missing or damaged, or a model that is already quantized.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config = read_config(folder)
        if "quantization_config" in self.config:
            raise ModelError(
                f"{folder} is already quantized; name the folder of the unquantized model, it is "
                "quantized while it is exported"
            )
        files = _weight_files(folder)
        self.digest = _digest(folder, files)
        self._files = [_MappedFile(file) for file in files]
        self._file_of = {name: file for file in self._files for name in file.entries}

    def has(self, name: str) -> bool:
        """Whether the model has a tensor of this name."""
        return name in self._file_of

    def array(self, name: str, shape: tuple[int, ...]) -> NDArray[Any]:
        """Return a tensor, a view of its file in the file's number format.

        Raises:
            ModelError: It is missing, or not of this shape and a floating-point format.
        """
        if name not in self._file_of:
            raise ModelError(
                f"the files in {self.folder} lack the tensor {name}: use a complete copy of the "
                "model, made for this kind of task"
            )
        entry = self._file_of[name].entries[name]
        if tuple(entry["shape"]) != shape or entry["dtype"] not in _FORMATS:
            raise ModelError(
                f"{name} in {self.folder} is {entry['shape']} in {entry['dtype']}, and by "
                f"config.json it should be {list(shape)} in a floating-point format: use the "
                "unquantized model that the configuration belongs to"
            )
        return self._file_of[name].array(name)

    def forget(self) -> None:
        """Take all pages of the files out of this process; they are read again when touched."""
        for file in self._files:
            file.forget()


class _MappedFile:
    def __init__(self, path: Path) -> None:
        try:
            with safetensors.safe_open(path, framework="np"):
                pass  # checks the header against itself and the size of the file
            with path.open("rb") as stream:
                header_bytes = int.from_bytes(stream.read(8), "little")
                self.entries: dict[str, Any] = json.loads(stream.read(header_bytes))
                self._mapping = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError, safetensors.SafetensorError) as error:
            raise ModelError(f"{path} cannot be read as safetensors: {error}") from error
        self.entries.pop("__metadata__", None)
        self._data = 8 + header_bytes

    def array(self, name: str) -> NDArray[Any]:
        entry = self.entries[name]
        start = self._data + int(entry["data_offsets"][0])
        dtype, shape = _FORMATS[entry["dtype"]], tuple(entry["shape"])
        return np.frombuffer(self._mapping, dtype, math.prod(shape), start).reshape(shape)

    def forget(self) -> None:
        if hasattr(mmap, "MADV_DONTNEED"):
            self._mapping.madvise(mmap.MADV_DONTNEED)


def _weight_files(folder: Path) -> list[Path]:
    if (folder / _ONE_FILE).is_file():
        return [folder / _ONE_FILE]
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise ModelError(f"{folder} holds no *.safetensors weights; convert others first")
    return files


def _digest(folder: Path, files: list[Path]) -> str:
    states = [(x.name, x.stat().st_size, x.stat().st_mtime_ns) for x in files]
    return hashlib.sha256(json.dumps([config_digest(folder), states]).encode()).hexdigest()
