"""The updates of a round in a temporary file, read back one rank of all devices at a time."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from edge_sdk.errors import StorageError
from edge_sdk.sketch import Indices
from edge_sdk.wire.payload import adapter_shapes
from edge_sdk.wire.rank_rows import each_rank_rows
from edge_sdk.wire.task import AdapterSpec
from server.aggregation.weighted_mean import WeightedUpdate

_NUMBER_BYTES = 4
_NUMBERS_AT_ONCE = 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class RankPart:
    """The same numbers of one rank, from every device that trained it.

    Attributes:
        tensor: Name of the tensor.
        rank: Its row in :func:`edge_sdk.wire.rank_rows.rank_rows`.
        columns: Where in that row the numbers are.
        values: ``(devices, numbers)``, in the order in which the updates were added.
    """

    tensor: str
    rank: int
    columns: slice
    values: NDArray[np.float32]


class UpdateSpool:
    """Updates on disk, for statistics that need those of all devices at once.

    Memory is that of one update while it is added, of 2**20 numbers while parts are read (4 MiB;
    one number per device if there are more devices), and of the indices of every update. Disk
    space, in the system's temporary folder, is 4 bytes for every number of every update; the
    file has no name and is gone when the block ends, or the process.

    Args:
        spec: Of the adapter.

    Raises:
        StorageError: No temporary file can be made.
    """

    def __init__(self, spec: AdapterSpec) -> None:
        self._spec = spec
        self._widths = {n: math.prod(shape) for n, shape in adapter_shapes(spec, 1).items()}
        self._indices: list[Sequence[Indices]] = []
        self._offsets: list[NDArray[np.int64]] = []
        try:
            self._file = tempfile.TemporaryFile()  # noqa: SIM115 - closed by __exit__
        except OSError as error:
            raise _refused("made", error) from error

    def __enter__(self) -> UpdateSpool:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with suppress(OSError):  # a full disk may refuse its last bytes, which nobody needs
            self._file.close()

    def __len__(self) -> int:
        return len(self._offsets)

    def add(self, update: WeightedUpdate) -> None:
        """Write one update; its weight is not kept.

        Raises:
            StorageError: The disk refused.
        """
        offsets: list[int] = []
        try:
            for _, rows in each_rank_rows(update.arrays, self._spec):
                offsets.append(self._file.tell())
                self._file.write(np.ascontiguousarray(rows, np.float32).data)
            self._file.flush()
        except OSError as error:
            raise _refused("written", error) from error
        self._indices.append(update.indices)
        self._offsets.append(np.array(offsets, np.int64))

    def parts(self) -> Iterator[RankPart]:
        """Read all that was added, rank by rank; ranks that nobody trained do not come.

        Raises:
            StorageError: The disk refused.
        """
        for tensor, (name, width) in enumerate(self._widths.items()):
            for rank, positions in enumerate(self._positions(tensor).T):
                devices = np.flatnonzero(positions >= 0)
                rows = [self._offsets[i][tensor] for i in devices]
                starts = np.array(rows, np.int64) + positions[devices] * width * _NUMBER_BYTES
                at_once = max(_NUMBERS_AT_ONCE // max(len(devices), 1), 1)
                for first in range(0, width if len(devices) else 0, at_once):
                    columns = slice(first, min(first + at_once, width))
                    values = self._read(starts, columns)
                    yield RankPart(tensor=name, rank=rank, columns=columns, values=values)

    def _positions(self, tensor: int) -> NDArray[np.int64]:
        """Return ``(devices, rows)``: which row of a device's tensor holds a rank, -1 for none.

        Args:
            tensor: Its number in the order of ``adapter_shapes``: two for each layer, then the
                dense parameters, of one row each.
        """
        layer = tensor // 2
        if layer >= len(self._spec.layers):
            return np.zeros((len(self), 1), np.int64)
        positions = np.full((len(self), self._spec.r), -1, np.int64)
        for row, indices in zip(positions, self._indices, strict=True):
            row[indices[layer]] = np.arange(len(indices[layer]))
        return positions

    def _read(self, starts: NDArray[np.int64], columns: slice) -> NDArray[np.float32]:
        values = np.empty((len(starts), columns.stop - columns.start), np.float32)
        try:
            for row, start in zip(values, starts, strict=True):
                self._file.seek(int(start) + columns.start * _NUMBER_BYTES)
                if self._file.readinto(row.data) != row.nbytes:
                    raise StorageError("the temporary file of a round's updates was cut short")
        except OSError as error:
            raise _refused("read", error) from error
        return values


def _refused(what: str, error: OSError) -> StorageError:
    return StorageError(
        f"the temporary file of a round's updates cannot be {what}: "
        f"{error.strerror or type(error).__name__}; make room in the system's temporary folder, "
        "or set TMPDIR to another"
    )
