"""Map ONNX Runtime's adapter files: no number is read before it is used.

``AdapterFormat.read_adapter`` reads the whole file, which at high ranks takes too long for a swap.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from flatbuffers import encode
from flatbuffers.number_types import Int32Flags, UOffsetTFlags
from flatbuffers.table import Table
from numpy.typing import NDArray

from edge_sdk.errors import AdapterError

_IDENTIFIER = b"TORT"
_PARAMETERS = 10  # of the file; the places of fields are those of adapter_schema.fbs
_NAME, _SIZES, _KIND, _NUMBERS = 4, 6, 8, 10  # of a parameter
_FLOAT = 1


def map_adapter(path: Path) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """Yield the tensors of an adapter file by name, views of its mapped pages.

    Raises:
        AdapterError: It is no adapter file, or damaged.
    """
    try:
        with path.open("rb") as stream:
            content = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        if content[4:8] != _IDENTIFIER:
            raise ValueError("it is no adapter file")
        root = Table(content, encode.Get(UOffsetTFlags.packer_type, content, 0))
        entries = _field(root, _PARAMETERS)
        for i in range(root.VectorLen(entries)):
            yield _tensor(Table(content, root.Indirect(root.Vector(entries) + 4 * i)))
    except (OSError, OverflowError, ValueError, struct.error) as error:
        raise AdapterError(f"{path} cannot be read as an adapter: {error}") from error


def _tensor(entry: Table) -> tuple[str, NDArray[np.float32]]:
    name = bytes(entry.String(entry.Pos + _field(entry, _NAME))).decode()
    if entry.Get(Int32Flags, entry.Pos + _field(entry, _KIND)) != _FLOAT:
        raise ValueError(f"{name} is not in fp32")
    sizes, numbers = _field(entry, _SIZES), _field(entry, _NUMBERS)
    shape = np.frombuffer(entry.Bytes, "<i8", entry.VectorLen(sizes), entry.Vector(sizes))
    count = entry.VectorLen(numbers) // 4
    found = np.frombuffer(entry.Bytes, "<f4", count, entry.Vector(numbers))
    return name, found.reshape(shape)


def _field(table: Table, place: int) -> int:
    offset: int = table.Offset(place)
    if offset == 0:
        raise ValueError("a field is missing")
    return offset
