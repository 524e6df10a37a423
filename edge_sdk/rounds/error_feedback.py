"""What the encoding of updates left out, kept rank by rank and added to the next update.

The residual of a rank waits until the rank is drawn again; it never leaves its rank. What a new
update leaves out is written beside the old residual, under the digest of the update's body, and
takes its place when the server has said that it has that very body. An update that is refused or
too late is given up with what it left out: the residual is then what it was before.
"""

from __future__ import annotations

import hashlib
import logging
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edge_sdk.errors import DigestMismatch, EdgeError, MalformedMessage
from edge_sdk.files.whole_file import write_whole
from edge_sdk.rounds.rank_file import DamagedFile, RankFile, Rows
from edge_sdk.sketch import Indices
from edge_sdk.wire import payload
from edge_sdk.wire.manifest import canonical, spec_digest
from edge_sdk.wire.messages import SliceRanks, decode_message, encode_message
from edge_sdk.wire.payload import Arrays
from edge_sdk.wire.rank_rows import from_rank_rows, rank_rows, row_shapes
from edge_sdk.wire.task import AdapterSpec, TaskSpec
from edge_sdk.wire.update_body import decode_update, encode_update

log = logging.getLogger("edge_sdk")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Remainder:
    """What a file of new residuals says of itself.

    Attributes:
        owner: What they belong to.
        digest: Of the body that left them out.
        ranks: Of each layer.
        checksum: CRC-32 of the digest, the ranks and the residuals.
    """

    owner: str
    digest: str
    ranks: list[list[int]]
    checksum: int


class ErrorFeedback:
    """The residual of one task on this device.

    On disk it takes at most one adapter of rank r in float32, and one update in float32 while
    that is on its way; in memory a few times the latter, and nothing of rank r. A disk that takes
    no more is no error: an update then goes without feedback, and the residual stays as it is.

    Args:
        folder: Of this device's state.
        server: Address of the server.
        spec: Of the task.
    """

    def __init__(self, folder: Path, server: str, spec: TaskSpec) -> None:
        facts = {
            "server": server,
            "task": spec.name,
            "base": spec.base.digest,
            "adapter": spec_digest(spec.adapter),
        }
        self._owner = canonical(facts).decode()
        name = hashlib.sha256(f"{server}\n{spec.name}".encode()).hexdigest()[:16]
        self._folder = folder / "residuals" / name
        self._spec = spec
        self._path = self._folder / "residual.safetensors"
        self._pending = self._folder / "pending.safetensors"
        self._confirmed = self._folder / "confirmed.safetensors"
        self._file = RankFile(self._path, spec.adapter, self._owner)

    def encode(self, update: Arrays, ranks: Sequence[Indices], seed: int, message: bytes) -> bytes:
        """Add the residual of the ranks to an update, encode it, and keep what that leaves out.

        Called again before :meth:`confirm` it gives the same bytes for the same update.

        Args:
            update: Every tensor of ``adapter_shapes(adapter, k)``.
            ranks: Which ranks those are, for each layer.
            seed: Of the assignment.
            message: The report of the device.

        Returns:
            The body of the update.

        Raises:
            NotFinite: The update cannot be encoded.
        """
        try:
            return self._encode(update, ranks, seed, message)
        except OSError as error:
            log.warning("no error feedback in this round: %s", error)
            return encode_update(update, self._spec, seed, message)

    def confirm(self, digest: str) -> None:
        """Let what a body left out take the place of the old residual: the server has that body."""
        try:
            found = self._read(self._pending)
            if found is not None and found[0].digest == digest:
                self._pending.replace(self._confirmed)
                self._finish()
        except OSError as error:
            log.warning("what the update left out cannot be kept now: %s", error)

    def _encode(self, update: Arrays, ranks: Sequence[Indices], seed: int, message: bytes) -> bytes:
        adapter = self._spec.adapter
        total = self._residual(ranks)
        for name, rows in rank_rows(update, adapter).items():
            total[name] += rows
        body = encode_update(from_rank_rows(total, adapter), self._spec, seed, message)
        sent, _ = decode_update(body, self._spec, len(ranks[0]))
        for name, rows in rank_rows(sent, adapter).items():
            total[name] -= rows
        chosen, digest = [some.tolist() for some in ranks], payload.digest(body)
        about = _Remainder(
            owner=self._owner,
            digest=digest,
            ranks=chosen,
            checksum=_checksum(digest, chosen, total),
        )
        write_whole(self._pending, payload.encode(total, "fp32", encode_message(about)))
        return body

    def _residual(self, ranks: Sequence[Indices]) -> Rows:
        """Return the residual of some ranks; none if the file cannot be used."""
        try:
            self._finish()
            return self._file.read(ranks)
        except DamagedFile as error:
            self._set_aside(self._path, error)
            shapes = row_shapes(self._spec.adapter, len(ranks[0]))
            return {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}

    def _finish(self) -> None:
        """Write what was confirmed, also if a kill came in between."""
        found = self._read(self._confirmed)
        if found is None:
            return
        about, rows = found
        ranks = [np.array(some, np.int64) for some in about.ranks]
        try:
            self._file.write(ranks, rows)
        except DamagedFile as error:
            self._set_aside(self._path, error)
            self._file.write(ranks, rows)
        self._confirmed.unlink()

    def _read(self, path: Path) -> tuple[_Remainder, Rows] | None:
        """Read a file of new residuals; None if there is none, or it is of something else."""
        if not path.exists():
            return None
        try:
            about, rows = _decoded(path.read_bytes(), self._spec.adapter)
            if about.owner == self._owner:
                return about, rows
            log.warning("%s is of another task or adapter: not used", path)
            path.unlink()
        except EdgeError as error:
            self._set_aside(path, error)
        return None

    def _set_aside(self, path: Path, error: Exception) -> None:
        aside = path.with_suffix(".damaged")
        log.warning("%s: set aside as %s; what updates left out is lost", error, aside)
        path.replace(aside)


def read_ranks(message: bytes, adapter: AdapterSpec, k: int) -> list[Indices]:
    """Return which ranks a slice holds, from the message inside its tensor body.

    Raises:
        MalformedMessage: It does not say so, or not for this adapter and sketch size.
    """
    ranks = decode_message(SliceRanks, message).ranks
    is_right = len(ranks) == len(adapter.layers) and all(
        len(some) == k and sorted(set(some)) == some and some[0] >= 0 and some[-1] < adapter.r
        for some in ranks
    )
    if not is_right:
        raise MalformedMessage(
            f"the slice must name {k} ranks of 0..{adapter.r - 1}, sorted, for each of the "
            f"{len(adapter.layers)} layers of the task"
        )
    return [np.array(some, np.int64) for some in ranks]


def _decoded(body: bytes, adapter: AdapterSpec) -> tuple[_Remainder, Rows]:
    """Read a file of new residuals.

    Raises:
        WireError: It is not what was written.
    """
    about = decode_message(_Remainder, payload.read_message(body))
    k = len(about.ranks[0]) if about.ranks else 0
    rows, _ = payload.decode(body, dict(row_shapes(adapter, k)), "fp32")
    if about.checksum != _checksum(about.digest, about.ranks, rows):
        raise DigestMismatch("a file of what an update left out was damaged")
    return about, rows


def _checksum(digest: str, ranks: list[list[int]], rows: Rows) -> int:
    checksum = zlib.crc32(canonical([digest, ranks]))
    for name in sorted(rows):
        checksum = zlib.crc32(rows[name].tobytes(), checksum)
    return checksum
