"""The file beside an ONNX graph that holds its weights, written one tensor after the other."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Any

import onnx
from numpy.typing import NDArray

_ALIGNMENT = 4096  # a page: ONNX Runtime maps each tensor where it lies
_UNSYNCED_BYTES = 32 << 20


class WeightFile:
    """External data of one graph.

    What is written is also taken out of the system's file cache now and then, because under a
    memory limit that cache counts until the disk has it.

    Args:
        path: Created, in a folder that is there.

    Raises:
        OSError: The disk is full or refuses; of every method.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stream = path.open("xb")
        self._digest = hashlib.sha256()
        self._written = self._synced = 0

    def __enter__(self) -> WeightFile:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._sync()
        self._stream.close()

    @property
    def digest(self) -> str:
        """SHA-256 of what was written so far."""
        return self._digest.hexdigest()

    def add(
        self, name: str, kind: int, shape: tuple[int, ...], parts: Iterable[NDArray[Any]]
    ) -> onnx.TensorProto:
        """Append the numbers of a tensor; return the entry that a graph refers to them by.

        Args:
            name: Of the tensor.
            kind: One of ``onnx.TensorProto``'s data types.
            shape: Of the whole tensor.
            parts: Its numbers in order; only one part is in memory at a time.
        """
        self._write(b"\0" * (-self._written % _ALIGNMENT))
        start = self._written
        for part in parts:
            self._write(part.tobytes())
        entry = onnx.TensorProto(
            name=name,
            data_type=kind,
            dims=shape,
            data_location=onnx.TensorProto.EXTERNAL,
        )
        places = {"location": self._path.name, "offset": start, "length": self._written - start}
        for key, value in places.items():
            entry.external_data.add(key=key, value=str(value))
        return entry

    def _write(self, content: bytes) -> None:
        self._stream.write(content)
        self._digest.update(content)
        self._written += len(content)
        if self._written - self._synced > _UNSYNCED_BYTES:
            self._sync()

    def _sync(self) -> None:
        self._stream.flush()
        os.fsync(self._stream.fileno())
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(self._stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        self._synced = self._written
