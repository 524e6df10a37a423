"""Numbers kept for every rank of an adapter, in one file that is read and written by the rank.

It is a safetensors file with two tensors: ``rows``, the rows of
:mod:`edge_sdk.wire.rank_rows` one after the other in float32, and ``checksums``, a CRC-32 of each.
Ranks that were never written are holes: they are zero and take no room on most file systems.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from edge_sdk.sketch import Indices
from edge_sdk.wire.rank_rows import row_shapes
from edge_sdk.wire.task import AdapterSpec

Rows = dict[str, NDArray[np.float32]]
"""The rows of some ranks of every tensor: ``(k, width)``, or ``(1, size)`` of a dense parameter."""

_NUMBER = np.dtype("<f4")
_CHECKSUM_BYTES = 4


class DamagedFile(Exception):
    """The file is not what was written."""


class RankFile:
    """A file of one row for every rank of every tensor of an adapter.

    Args:
        path: Where it is; made when something is written first.
        adapter: Gives its size.
        owner: What it belongs to; another file is not read.
    """

    def __init__(self, path: Path, adapter: AdapterSpec, owner: str) -> None:
        self._path = path
        self._adapter = adapter
        shapes = row_shapes(adapter, adapter.r)
        self._widths = {name: width for name, (_, width) in shapes.items()}
        numbers = sum(rows * width for rows, width in shapes.values())
        rows = sum(rows for rows, _ in shapes.values())
        self._header = _header(numbers, rows, owner)
        self._checksums_at = len(self._header) + numbers * _NUMBER.itemsize
        self._size_bytes = self._checksums_at + rows * _CHECKSUM_BYTES
        self._first_row: dict[str, int] = {}
        self._starts: dict[str, int] = {}
        start, first = len(self._header), 0
        for name, (count, width) in shapes.items():
            self._starts[name], self._first_row[name] = start, first
            start, first = start + count * width * _NUMBER.itemsize, first + count

    def read(self, ranks: Sequence[Indices]) -> Rows:
        """Return the rows of some ranks of each layer; zero where nothing was written.

        Raises:
            DamagedFile: The file was changed by something else.
            OSError: It cannot be read.
        """
        k = len(ranks[0])
        found = {
            name: np.zeros(shape, np.float32)
            for name, shape in row_shapes(self._adapter, k).items()
        }
        if not self._path.exists():
            return found
        with self._path.open("rb") as file:
            self._check(file)
            for name, position, rank in _places(self._adapter, ranks):
                found[name][position] = self._read_row(file, name, rank)
        return found

    def write(self, ranks: Sequence[Indices], rows: Mapping[str, NDArray[np.float32]]) -> None:
        """Replace the rows of some ranks, durably; writing the same again does no harm.

        Raises:
            DamagedFile: The file was changed by something else.
            OSError: It cannot be written.
        """
        if not self._path.exists():
            self._make()
        with self._path.open("r+b") as file:
            self._check(file)
            for name, position, rank in _places(self._adapter, ranks):
                content = rows[name][position].astype(_NUMBER).tobytes()
                file.seek(self._row_at(name, rank))
                file.write(content)
                file.seek(self._checksum_at(name, rank))
                file.write(zlib.crc32(content).to_bytes(_CHECKSUM_BYTES, "little"))
            file.flush()
            os.fsync(file.fileno())

    def _make(self) -> None:
        partial = self._path.with_suffix(f".{os.getpid()}")
        self._path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with partial.open("wb") as file:
                partial.chmod(0o600)
                file.write(self._header)
                file.truncate(self._size_bytes)
                os.fsync(file.fileno())
            partial.replace(self._path)
        finally:
            partial.unlink(missing_ok=True)

    def _check(self, file: IO[bytes]) -> None:
        size_bytes = os.fstat(file.fileno()).st_size
        if size_bytes != self._size_bytes or file.read(len(self._header)) != self._header:
            raise DamagedFile(f"{self._path} is not the file of this task, or was cut short")

    def _read_row(self, file: IO[bytes], name: str, rank: int) -> NDArray[np.float32]:
        file.seek(self._row_at(name, rank))
        content = file.read(self._widths[name] * _NUMBER.itemsize)
        file.seek(self._checksum_at(name, rank))
        stored = int.from_bytes(file.read(_CHECKSUM_BYTES), "little")
        row = np.frombuffer(content, _NUMBER).astype(np.float32, copy=False)
        if stored != zlib.crc32(content) and (stored or row.any()):
            raise DamagedFile(f"rank {rank} of {name} in {self._path} is not what was written")
        return row

    def _row_at(self, name: str, rank: int) -> int:
        return self._starts[name] + rank * self._widths[name] * _NUMBER.itemsize

    def _checksum_at(self, name: str, rank: int) -> int:
        return self._checksums_at + (self._first_row[name] + rank) * _CHECKSUM_BYTES


def _places(adapter: AdapterSpec, ranks: Sequence[Indices]) -> Iterator[tuple[str, int, int]]:
    """Yield each row of some ranks: tensor, place among them, rank."""
    for layer, chosen in zip(adapter.layers, ranks, strict=True):
        for name in (f"{layer.name}.lora_A", f"{layer.name}.lora_B"):
            yield from ((name, position, rank) for position, rank in enumerate(chosen.tolist()))
    yield from ((dense.name, 0, 0) for dense in adapter.dense)


def _header(numbers: int, rows: int, owner: str) -> bytes:
    """Return the beginning of the file, as safetensors has it."""
    end = numbers * _NUMBER.itemsize
    content = {
        "__metadata__": {"edge_sdk": owner},
        "rows": {"dtype": "F32", "shape": [numbers], "data_offsets": [0, end]},
        "checksums": {
            "dtype": "U32",
            "shape": [rows],
            "data_offsets": [end, end + rows * _CHECKSUM_BYTES],
        },
    }
    text = json.dumps(content).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text
