"""Map ONNX Runtime's adapter files: no number is read before it is used.

``AdapterFormat.read_adapter`` reads the whole file, which at high ranks takes too long for a swap.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edge_sdk.errors import AdapterError

_IDENTIFIER = b"TORT"
_PARAMETERS = 3  # of the file; fields are numbered as in ONNX Runtime's adapter_schema.fbs
_NAME, _SIZES, _KIND, _NUMBERS = range(4)  # of a parameter
_FLOAT = 1

_uint16 = struct.Struct("<H").unpack_from
_int32 = struct.Struct("<i").unpack_from
_uint32 = struct.Struct("<I").unpack_from


def map_adapter(path: Path) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """Yield the tensors of an adapter file by name, views of its mapped pages.

    The file is a FlatBuffer, whose tables say where their fields lie.

    Raises:
        AdapterError: It is no adapter file, or damaged.
    """
    try:
        with path.open("rb") as stream:
            content = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        if content[4:8] != _IDENTIFIER:
            raise ValueError("it is no adapter file")
        count, first = _vector(content, _target(content, 0), _PARAMETERS)
        for i in range(count):
            yield _tensor(content, _target(content, first + 4 * i))
    except (OSError, OverflowError, ValueError, struct.error) as error:
        raise AdapterError(f"{path} cannot be read as an adapter: {error}") from error


def _tensor(content: mmap.mmap, table: int) -> tuple[str, NDArray[np.float32]]:
    length, start = _vector(content, table, _NAME)
    name = content[start : start + length].decode()
    if _int32(content, _field(content, table, _KIND))[0] != _FLOAT:
        raise ValueError(f"{name} is not in fp32")
    shape = np.frombuffer(content, "<i8", *_vector(content, table, _SIZES))
    size_bytes, start = _vector(content, table, _NUMBERS)
    return name, np.frombuffer(content, "<f4", size_bytes // 4, start).reshape(shape)


def _vector(content: mmap.mmap, table: int, field: int) -> tuple[int, int]:
    """Return the length of a field's vector and the place of its first element."""
    place = _target(content, _field(content, table, field))
    return _uint32(content, place)[0], place + 4


def _field(content: mmap.mmap, table: int, field: int) -> int:
    """Return the place of a table's field."""
    places = table - _int32(content, table)[0]
    entry = 4 + 2 * field
    offset = _uint16(content, places + entry)[0] if entry < _uint16(content, places)[0] else 0
    if offset == 0:
        raise ValueError("a field is missing")
    return table + int(offset)


def _target(content: mmap.mmap, place: int) -> int:
    """Return what the reference at a place leads to."""
    return place + int(_uint32(content, place)[0])
