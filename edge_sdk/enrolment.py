"""Let a device into a fleet once, and remember who it is there."""

from __future__ import annotations

from pathlib import Path

from edge_sdk.errors import ConfigError
from edge_sdk.identity import Identity, load_identity, save_identity
from edge_sdk.transport import Transport


def join(
    state_folder: Path, server: str | None, enrolment_token: str | None, name: str
) -> Identity:
    """Enrol this device on a server, or return the identity it already has there.

    Args:
        state_folder: Where the identity is kept.
        server: Base address; None accepts the server joined before.
        enrolment_token: From the operator; not needed by a device that joined before.
        name: Of this device, for people.

    Raises:
        ConfigError: No server or enrolment token to join with.
        SyncError: The server could not be reached or refused.
    """
    known = load_identity(state_folder)
    if known is not None and server in (None, known.server):
        return known
    if server is None or enrolment_token is None:
        raise ConfigError(
            f"this device has not joined {server or 'a server'} yet: give the server's address "
            "and an enrolment token from its operator"
        )
    enrolment = Transport(server).enrol(enrolment_token, name)
    identity = Identity(
        server=server,
        device_id=enrolment.device_id,
        device_token=enrolment.device_token,
        name=name,
    )
    save_identity(state_folder, identity)
    return identity
