"""Who this device is: one small private file, written when it joins a server."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import msgspec
import platformdirs

from edge_sdk.errors import ConfigError, StorageError
from edge_sdk.wire.typed_json import decode_json

_FILE = "device.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """The enrolment of this device on one server.

    Attributes:
        server: Base address of the server.
        device_id: Given by the server.
        device_token: Secret; sent with every request, never logged.
        name: For people.
    """

    server: str
    device_id: str
    device_token: str
    name: str

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
    path = folder / _FILE
    try:
        return decode_json(path.read_bytes(), Identity)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.DecodeError) as error:
        raise ConfigError(
            f"{path} cannot be read ({error}); delete it and join the server again"
        ) from error


def save_identity(folder: Path, identity: Identity) -> None:
    """Write the identity so that only this user can read it, all of it or nothing.

    Raises:
        StorageError: The folder cannot be written.
    """
    path = folder / _FILE
    partial = path.with_suffix(".partial")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(msgspec.json.encode(identity))
            stream.flush()
            os.fsync(stream.fileno())
        partial.replace(path)
    except OSError as error:
        raise StorageError(f"the device identity cannot be kept in {folder}: {error}") from error
