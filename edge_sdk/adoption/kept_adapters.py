"""The adapters a device keeps for its own use: the version in use, the one before, and its own.

One small file names them all and is replaced in one step; the tensor files it names are written
before it and removed after it. So what is found after power loss is the state before or after.
"""

from __future__ import annotations

import contextlib
import logging
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec

from edge_sdk.errors import AdapterError, MalformedPayload, NotFinite, StorageError
from edge_sdk.files.whole_file import write_whole
from edge_sdk.wire.manifest import Signed, spec_digest
from edge_sdk.wire.payload import Arrays, adapter_shapes, decode, digest, encode
from edge_sdk.wire.task import TaskSpec, WireDtype
from edge_sdk.wire.typed_json import decode_json

log = logging.getLogger("edge_sdk")

_FOLDER = "adapters"
_RECORD = "adapters.json"
_TENSORS = ".safetensors"
_DAMAGED = "damaged"


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """One adapter on this device's disk.

    Attributes:
        version: Of the server; of a personal adapter, the one it was last pulled towards.
        digest: SHA-256 of its tensor file.
        dtype: Number format of its tensors.
        signed: The server's signed manifest; None of a personal adapter.
    """

    version: int
    digest: str
    dtype: WireDtype
    signed: Signed | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """What a device keeps for one task, and where that belongs.

    Attributes:
        server: Base address.
        task: Name of the task.
        base_digest: Of the base model the adapters belong to.
        spec_digest: Of the rank, scaling and layers they have.
        judged: The version that was looked at last; None before the first.
        current: The version in use; None while the base model alone is.
        previous: The one in use before.
        personal: This device's own.
        uses_personal: Whether that is used in place of ``current``.
    """

    server: str
    task: str
    base_digest: str
    spec_digest: str
    judged: int | None = None
    current: Kept | None = None
    previous: Kept | None = None
    personal: Kept | None = None
    uses_personal: bool = False

    @property
    def kept(self) -> list[Kept]:
        """All adapters on disk."""
        found = (self.current, self.previous, self.personal)
        return [kept for kept in found if kept is not None]

    @property
    def usable(self) -> list[Kept]:
        """The adapter to use, and what may stand in for it, best first; none for the base."""
        personal = self.personal if self.uses_personal else None
        found = (personal, self.current, self.previous)
        return [kept for kept in found if kept is not None]


class KeptAdapters:
    """The adapters of one task in a state folder; three tensor files at most.

    Args:
        state_folder: Of this device.
        server: Base address of the server it joined.
        task: Adapters of another server, base model, rank or scaling are not used.
    """

    def __init__(self, state_folder: Path, server: str, task: TaskSpec) -> None:
        self._folder = state_folder / _FOLDER / task.name
        self._spec = task.adapter
        self._fresh = Record(
            server=server,
            task=task.name,
            base_digest=task.base.digest,
            spec_digest=spec_digest(task.adapter),
        )

    @property
    def record(self) -> Record:
        """What is kept; nothing where the file is missing, damaged or of something else."""
        try:
            found = decode_json((self._folder / _RECORD).read_bytes(), Record)
        except (OSError, msgspec.DecodeError, UnicodeDecodeError):
            return self._fresh
        return found if self._is_ours(found) else self._fresh

    @property
    def is_there(self) -> bool:
        """Whether a version was ever looked at here."""
        return self.record.judged is not None

    def read(self, kept: Kept) -> Arrays:
        """Return the tensors of an adapter at rank r.

        Raises:
            AdapterError: Its file is missing or damaged.
        """
        path = self._path(kept)
        try:
            body = path.read_bytes()
            if digest(body) != kept.digest:
                raise AdapterError(f"{path} was changed or damaged: it has another SHA-256")
            return decode(body, adapter_shapes(self._spec, self._spec.r), kept.dtype)[0]
        except (OSError, MalformedPayload, NotFinite) as error:
            raise AdapterError(f"{path} cannot be read: {error}") from error

    def in_use(self) -> tuple[Kept, Arrays] | None:
        """Return the adapter to use now, or the next best that can be read; None for none."""
        for kept in self.record.usable:
            try:
                return kept, self.read(kept)
            except AdapterError as error:
                log.warning("%s; using what is left", error)
        return None

    def mend(self) -> None:
        """Set aside a damaged record, so that a new one begins.

        Raises:
            StorageError: The folder cannot be written.
        """
        path = self._folder / _RECORD
        try:
            decode_json(path.read_bytes(), Record)
        except FileNotFoundError:
            return
        except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
            log.warning("%s is damaged and set aside: %s", path, error)
            self._set_aside(path)

    def drop(self, kept: Kept) -> None:
        """Set the file of an adapter that cannot be read aside, and forget the adapter.

        Raises:
            StorageError: The folder cannot be written.
        """
        self._set_aside(self._path(kept))
        record = self.record
        if record.personal == kept:
            record = replace(record, personal=None, uses_personal=False)
        if record.previous == kept:
            record = replace(record, previous=None)
        if record.current == kept:  # the server's version is looked at anew
            record = replace(record, current=record.previous, previous=None, judged=None)
        self._save(record)

    def accept(self, version: int, arrays: Arrays, signed: Signed) -> None:
        """Use a version of the server from now on.

        Raises:
            StorageError: It cannot be written; what was in use stays.
        """
        record = self.record
        kept = self._write(version, arrays, self._spec.wire_dtype, signed)
        is_same = record.current is not None and record.current.digest == kept.digest
        previous = record.previous if is_same else record.current
        record = replace(record, current=kept, previous=previous, judged=version)
        self._save(replace(record, uses_personal=False))

    def reject(self, version: int) -> None:
        """Remember that a version lost; what is in use stays.

        Raises:
            StorageError: The folder cannot be written.
        """
        self._save(replace(self.record, judged=version))

    def keep_personal(self, version: int, arrays: Arrays, is_used: bool) -> None:
        """Keep this device's own adapter.

        Args:
            version: It was pulled towards.
            arrays: Its tensors at rank r, kept in float32 whatever travels.
            is_used: Whether it is used in place of that version.

        Raises:
            StorageError: It cannot be written.
        """
        kept = self._write(version, arrays, "fp32", None)
        self._save(replace(self.record, personal=kept, uses_personal=is_used))

    def _is_ours(self, found: Record) -> bool:
        ties = ("server", "task", "base_digest", "spec_digest")
        return all(getattr(found, name) == getattr(self._fresh, name) for name in ties)

    def _path(self, kept: Kept) -> Path:
        return self._folder / f"{kept.digest}{_TENSORS}"

    def _write(self, version: int, arrays: Arrays, dtype: WireDtype, signed: Signed | None) -> Kept:
        body = encode(arrays, dtype)
        kept = Kept(version=version, digest=digest(body), dtype=dtype, signed=signed)
        try:
            write_whole(self._path(kept), body)
        except OSError as error:
            raise StorageError(f"an adapter cannot be kept in {self._folder}: {error}") from error
        return kept

    def _save(self, record: Record) -> None:
        try:
            write_whole(self._folder / _RECORD, msgspec.json.encode(record))
        except OSError as error:
            raise StorageError(f"{self._folder} cannot be written: {error}") from error
        named = {self._path(kept).name for kept in record.kept}
        for path in self._folder.glob(f"*{_TENSORS}"):
            if path.name not in named and path.stem != _DAMAGED:
                with contextlib.suppress(OSError):  # left over until the next time
                    path.unlink()

    def _set_aside(self, path: Path) -> None:
        """Keep the latest damaged file of each kind, for whoever wants to know why."""
        try:
            if path.exists():
                path.replace(path.with_name(_DAMAGED + path.suffix))
        except OSError as error:
            raise StorageError(f"{path} cannot be set aside: {error}") from error
