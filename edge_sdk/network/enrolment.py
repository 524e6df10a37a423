"""Let a device into a fleet once, remember who it is there, and give it a new key."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from edge_sdk.errors import BadProof, ConfigError
from edge_sdk.identity.device_key import DeviceKey, make_private_key
from edge_sdk.identity.identity import (
    Identity,
    load_identity,
    load_joining,
    save_identity,
    save_joining,
)
from edge_sdk.identity.trust import pin_key
from edge_sdk.network.transport import Transport


def join(
    state_folder: Path, server: str | None, enrolment_token: str | None, name: str
) -> Identity:
    """Enrol this device on a server, or return the identity it already has there.

    The device makes its key before it asks, so that asking again after a lost answer, or after a
    crash, is the same device and takes no second use of the token.

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
    joining = load_joining(state_folder)
    if joining is None or joining.server != server:
        joining = Identity(server=server, device_id="", private_key=make_private_key(), name=name)
        save_joining(state_folder, joining)
    key = DeviceKey(joining.private_key)
    enrolment = Transport(server).enrol(enrolment_token, name, key)
    identity = replace(joining, device_id=enrolment.device_id, name=name)
    pin_key(state_folder, server, enrolment.signing_key)
    save_identity(state_folder, identity)
    return identity


def change_key(state_folder: Path) -> Identity:
    """Give this device a new key; what the old one opened is closed from then on.

    Raises:
        ConfigError: The device never joined a server.
        SyncError: The server could not be reached or refused; the old key goes on.
    """
    identity = load_identity(state_folder)
    if identity is None:
        raise ConfigError("this device has not joined a server yet: there is no key to change")
    if not identity.next_private_key:
        identity = replace(identity, next_private_key=make_private_key())
        save_identity(state_folder, identity)
    changed = replace(identity, private_key=identity.next_private_key, next_private_key="")
    try:
        Transport(identity.server, identity).change_key(DeviceKey(changed.private_key))
    except BadProof:
        Transport(changed.server, changed).tasks()  # it took over before, but no answer came
    save_identity(state_folder, changed)
    return changed
