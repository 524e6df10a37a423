"""Who this device is: one small private file, written when it joins a server."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import msgspec
import platformdirs

from edge_sdk.errors import ConfigError, StorageError
from edge_sdk.files.whole_file import write_whole
from edge_sdk.wire.typed_json import decode_json

_FILE = "device.json"
_JOINING = "joining.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """The enrolment of this device on one server.

    Attributes:
        server: Base address of the server.
        device_id: Given by the server; empty until it has answered.
        private_key: Secret, 64 hex digits; signs for this device, is never sent and never logged.
        name: For people.
        next_private_key: Of the key that is about to take over, or took over while nobody saw the
            server's answer.
    """

    server: str
    device_id: str
    private_key: str
    name: str
    next_private_key: str = ""

    def __repr__(self) -> str:
        return f"Identity(server={self.server!r}, device_id={self.device_id!r})"


def default_state_folder() -> Path:
    """Return where the platform keeps the state of an application of this user."""
    return platformdirs.user_state_path("edge-sdk")


def load_identity(folder: Path) -> Identity | None:
    """Return the identity kept in a state folder; None if the device never joined.

    Raises:
        ConfigError: The file is there but cannot be read.
    """
    return _load(folder / _FILE)


def save_identity(folder: Path, identity: Identity) -> None:
    """Write the identity so that only this user can read it, all of it or nothing.

    Raises:
        StorageError: The folder cannot be written.
    """
    _save(folder / _FILE, identity)
    (folder / _JOINING).unlink(missing_ok=True)


def load_joining(folder: Path) -> Identity | None:
    """Return the identity a server was asked to accept, and whose answer never came.

    Raises:
        ConfigError: The file is there but cannot be read.
    """
    return _load(folder / _JOINING)


def save_joining(folder: Path, identity: Identity) -> None:
    """Write the key of a device before a server is asked to accept it; see save_identity."""
    _save(folder / _JOINING, identity)


def _load(path: Path) -> Identity | None:
    try:
        return decode_json(path.read_bytes(), Identity)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.DecodeError) as error:
        raise ConfigError(
            f"{path} cannot be read ({error}); delete it and join the server again"
        ) from error


def _save(path: Path, identity: Identity) -> None:
    try:
        write_whole(path, msgspec.json.encode(identity))
    except OSError as error:
        raise StorageError(
            f"the device identity cannot be kept in {path.parent}: {error}"
        ) from error
