"""Whose adapters this device trusts, and how far it has come: one small file."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

import msgspec

from edge_sdk.errors import ConfigError, RolledBack, StorageError, UnknownKey
from edge_sdk.files.whole_file import write_whole
from edge_sdk.wire.manifest import Pointer
from edge_sdk.wire.typed_json import decode_json

_FILE = "trust.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Trust:
    """The server's key, pinned when the device joined, and what it said since.

    Attributes:
        server: Base address of the server.
        signing_key: Its public key, 64 hex digits.
        seen: Last pointer of each task.
    """

    server: str
    signing_key: str
    seen: dict[str, Pointer] = field(default_factory=dict)

    def after(self, pointer: Pointer) -> Trust:
        """Return the trust of a device that has seen a pointer too.

        Raises:
            RolledBack: It is older than the one before, or another one of the same number.
        """
        before = self.seen.get(pointer.task)
        if before is not None and pointer.sequence < before.sequence:
            raise RolledBack(
                f"the server points at version {pointer.version} of {pointer.task!r} with sequence "
                f"{pointer.sequence}, but this device has seen sequence {before.sequence}: it is "
                "replayed or from a backup; the operator can promote the version again"
            )
        if before is not None and pointer.sequence == before.sequence and pointer != before:
            raise RolledBack(
                f"the server signed two different pointers with sequence {pointer.sequence} for "
                f"{pointer.task!r}: the operator must promote a version again"
            )
        return replace(self, seen={**self.seen, pointer.task: pointer})


def pin_key(folder: Path, server: str, signing_key: str) -> None:
    """Trust a server's key from the first time on: joining it again changes nothing.

    Raises:
        StorageError: The folder cannot be written.
        ConfigError: The file is there but cannot be read.
    """
    known = _read(folder)
    if known is None or known.server != server:
        save_trust(folder, Trust(server=server, signing_key=signing_key))


def load_trust(folder: Path, server: str) -> Trust:
    """Return what this device trusts about a server it joined.

    Raises:
        UnknownKey: It has no key of this server.
        ConfigError: The file is there but cannot be read.
    """
    trust = _read(folder)
    if trust is None or trust.server != server or not trust.signing_key:
        raise UnknownKey(
            f"this device holds no key of {server} that adapters could be checked with: delete "
            f"{folder / _FILE} and join the server again"
        )
    return trust


def save_trust(folder: Path, trust: Trust) -> None:
    """Keep what this device trusts, all of it or nothing.

    Raises:
        StorageError: The folder cannot be written.
    """
    try:
        write_whole(folder / _FILE, msgspec.json.encode(trust))
    except OSError as error:
        raise StorageError(f"the server's key cannot be kept in {folder}: {error}") from error


def _read(folder: Path) -> Trust | None:
    path = folder / _FILE
    try:
        return decode_json(path.read_bytes(), Trust)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.DecodeError) as error:
        raise ConfigError(
            f"{path} cannot be read ({error}); delete it and join the server again"
        ) from error
