"""How a device gets in: decode, one call of the gate, encode."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

from fastapi import APIRouter, Depends, Path, Request

from edge_sdk.wire.credentials import (
    AccessRequest,
    AccessToken,
    Challenge,
    Departure,
    Enrolment,
    EnrolRequest,
    KeyChange,
)
from server.access.auth import Gate
from server.api.device_access import EntranceRoute

router = APIRouter(prefix="/v1", route_class=EntranceRoute, tags=["device"])


def _gate(request: Request) -> Gate:
    found: Gate = request.app.state.gate
    return found


Entrance = Annotated[Gate, Depends(_gate)]
DeviceId = Annotated[str, Path(max_length=32, description="From `/v1/enrol`")]


@router.post("/enrol", status_code=201)
def enrol(message: EnrolRequest, request: Request, gate: Entrance) -> Enrolment:
    """Let a device in by its key; the same key again is the same device."""
    return replace(gate.enrol(message), signing_key=request.app.state.registry.public_key())


@router.post("/devices/{device_id}/challenge")
def challenge(device_id: DeviceId, gate: Entrance) -> Challenge:
    """Give a device something new to sign."""
    return gate.challenge(device_id)


@router.post("/devices/{device_id}/token")
def give_access(device_id: DeviceId, message: AccessRequest, gate: Entrance) -> AccessToken:
    """Exchange a signed challenge for an access token."""
    return gate.give_access(device_id, message)


@router.post("/devices/{device_id}/key")
def change_key(device_id: DeviceId, message: KeyChange, gate: Entrance) -> AccessToken:
    """Let a new key of a device take over; both keys sign."""
    return gate.change_key(device_id, message)


@router.post("/devices/{device_id}/leave")
def leave(device_id: DeviceId, message: AccessRequest, gate: Entrance) -> Departure:
    """Let a device go by a signed challenge: its key and its tokens open nothing any more."""
    return gate.leave(device_id, message)
