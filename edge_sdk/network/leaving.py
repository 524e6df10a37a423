"""Take a device out of its fleet: the server refuses it, this machine forgets what it was there."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from edge_sdk.errors import EdgeError, NotAuthorized, Revoked, StorageError
from edge_sdk.identity.identity import Identity, load_identity

_FILES = (
    "device.json",
    "joining.json",
    "trust.json",
    "status.json",
    "serving.json",
    "link.json",
    "agent.log",
    "agent.1.log",
)
_FOLDERS = ("journal", "adapters", "adapter", "residuals")


@dataclass(frozen=True, slots=True, kw_only=True)
class Leave:
    """How a device left.

    Attributes:
        server: Base address; None if it had joined none.
        device_id: What it was there.
        trouble: Why the server could not be told; None if it was.
    """

    server: str | None = None
    device_id: str = ""
    trouble: str | None = None


def leave(state_folder: Path) -> Leave:
    """Tell the server, if it answers, and remove everything of this device's part in the fleet.

    What was measured of the machine itself stays, for the next server. Nobody else may be at work
    in the folder.

    Raises:
        ConfigError: The identity cannot be read.
        StorageError: Something cannot be removed.
    """
    identity = load_identity(state_folder)
    left = Leave() if identity is None else _told(identity)
    try:
        for name in _FILES:
            (state_folder / name).unlink(missing_ok=True)
        for name in _FOLDERS:
            if (state_folder / name).exists():
                shutil.rmtree(state_folder / name)
    except OSError as error:
        raise StorageError(f"{error.filename} cannot be removed: {error.strerror}") from error
    return left


def _told(identity: Identity) -> Leave:
    from edge_sdk.network.transport import Transport

    trouble = None
    try:
        Transport(identity.server, identity).leave()
    except (Revoked, NotAuthorized):
        pass  # it is none of this server's already
    except EdgeError as error:
        trouble = str(error)
    return Leave(server=identity.server, device_id=identity.device_id, trouble=trouble)
