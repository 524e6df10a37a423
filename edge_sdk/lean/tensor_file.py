"""One safetensors file, mapped without reading it, and written without holding it in memory."""

from __future__ import annotations

import json
import math
import mmap
import os
import shutil
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import safetensors
import torch
from torch import Tensor

from edge_sdk.errors import ModelError, StorageError

_FORMATS = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_NAMES = {dtype: name for name, dtype in _FORMATS.items()}
_ALIGNMENT = 64
_UNSYNCED_BYTES = 32 << 20


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """Number format and shape of a tensor."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of its numbers."""
        return math.prod(self.shape) * self.dtype.itemsize


class MappedFile:
    """A safetensors file whose tensors are views of the file itself.

    Pages enter memory when they are touched, and the system may drop them again: they are the
    file's. Writing to a tensor ends the process.

    Args:
        path: The file.

    Attributes:
        specs: Format and shape of every tensor by name.

    Raises:
        ModelError: The file is missing, damaged, not safetensors or in a number format that is
            not known here.
    """

    def __init__(self, path: Path) -> None:
        try:
            with safetensors.safe_open(path, framework="np"):
                pass  # checks the header against itself and the size of the file
            with path.open("rb") as stream:
                header_bytes = int.from_bytes(stream.read(8), "little")
                header = json.loads(stream.read(header_bytes))
                self._mapping = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError, safetensors.SafetensorError) as error:
            raise ModelError(f"{path} cannot be read as safetensors: {error}") from error
        header.pop("__metadata__", None)
        unknown = [name for name, entry in header.items() if entry["dtype"] not in _FORMATS]
        if unknown:
            raise ModelError(
                f"{path} holds {unknown[0]} in the number format {header[unknown[0]]['dtype']}; "
                "use the unquantized model, in bf16, fp16 or fp32"
            )
        self.specs = {
            name: TensorSpec(_FORMATS[entry["dtype"]], tuple(entry["shape"]))
            for name, entry in header.items()
        }
        self._starts = {
            name: 8 + header_bytes + int(entry["data_offsets"][0]) for name, entry in header.items()
        }
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # torch has no read-only tensors
            self._bytes = torch.frombuffer(self._mapping, dtype=torch.uint8)

    def is_aligned(self, name: str) -> bool:
        """Whether a tensor's numbers start where the processor can read them in place."""
        return self._starts[name] % self.specs[name].dtype.itemsize == 0

    def tensor(self, name: str) -> Tensor:
        """Return a tensor, a view of the file unless its place in there is not aligned."""
        spec, start = self.specs[name], self._starts[name]
        numbers = self._bytes[start : start + spec.nbytes]
        if not self.is_aligned(name):
            numbers = numbers.clone()
        return numbers.view(spec.dtype).view(spec.shape)

    def forget(self) -> None:
        """Take the file's pages out of this process; they are read again when touched."""
        if hasattr(mmap, "MADV_DONTNEED"):
            self._mapping.madvise(mmap.MADV_DONTNEED)


class Layout:
    """Where everything is in a safetensors file, known before any number is.

    Wide formats come first, so that every tensor is aligned.

    Args:
        specs: Every tensor by name.
        metadata: Text to keep in the header.

    Attributes:
        header: The first bytes of the file.
        size: Bytes of the whole file.
    """

    def __init__(self, specs: Mapping[str, TensorSpec], metadata: Mapping[str, str]) -> None:
        entries: dict[str, object] = {"__metadata__": dict(metadata)}
        starts: dict[str, int] = {}
        end = 0
        for name, spec in sorted(specs.items(), key=lambda item: -item[1].dtype.itemsize):
            starts[name], start, end = end, end, end + spec.nbytes
            entries[name] = {
                "dtype": _NAMES[spec.dtype],
                "shape": list(spec.shape),
                "data_offsets": [start, end],
            }
        text = json.dumps(entries, separators=(",", ":")).encode()
        text += b" " * (-(8 + len(text)) % _ALIGNMENT)
        self.header = len(text).to_bytes(8, "little") + text
        self.size = len(self.header) + end
        self._starts = {name: len(self.header) + start for name, start in starts.items()}

    def place(self, name: str, first: int, values: Tensor) -> int:
        """Return the byte where ``values`` go, the numbers of a tensor from ``first`` on."""
        return self._starts[name] + first * values.dtype.itemsize

    def describes(self, path: Path) -> bool:
        """Whether a file is there with this very header and size."""
        try:
            with path.open("rb") as stream:
                return (
                    os.fstat(stream.fileno()).st_size == self.size
                    and stream.read(len(self.header)) == self.header
                )
        except OSError:
            return False


Part = tuple[str, int, Tensor]
"""Some numbers of a tensor: its name, the first number's index in it, the numbers."""


def write_tensors(
    path: Path,
    layout: Layout,
    parts: Iterable[Part],
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Write a file part by part; it appears under its name when it is whole and on the disk.

    What was written is also taken out of the system's file cache now and then, because under a
    memory limit that cache counts until the disk has it.

    Args:
        path: Replaced if it exists; its folder must.
        layout: Of the file.
        parts: All numbers of all its tensors, in any order.
        progress: Called with the bytes written and the bytes of the whole file.

    Raises:
        StorageError: The disk is full or refuses; nothing is left of the attempt.
    """
    partial = path.with_name(f"{path.name}.partial")
    try:
        _refuse_full_disk(path.parent, layout.size)
        try:
            _write(partial, layout, parts, progress)
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)
        _sync_folder(path.parent)
    except OSError as error:
        raise StorageError(
            f"{path} ({layout.size / 1e6:.0f} MB) cannot be written: {error}; free some space or "
            "choose another folder"
        ) from error


def _refuse_full_disk(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise OSError(f"the disk has {free / 1e6:.0f} MB left")


def _write(
    partial: Path,
    layout: Layout,
    parts: Iterable[Part],
    progress: Callable[[int, int], None] | None,
) -> None:
    with partial.open("wb") as stream:
        stream.write(layout.header)
        written, synced = len(layout.header), 0
        for name, first, values in parts:
            stream.seek(layout.place(name, first, values))
            stream.write(values.reshape(-1).view(torch.uint8).numpy().data)
            written += values.nbytes
            if written - synced > _UNSYNCED_BYTES:
                _sync(stream.fileno())
                synced = written
            if progress is not None:
                progress(written, layout.size)
        stream.flush()
        _sync(stream.fileno())


def _sync(file: int) -> None:
    os.fsync(file)
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)


def _sync_folder(folder: Path) -> None:
    """Make a rename survive a power loss."""
    file = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)
