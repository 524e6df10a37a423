"""What the endpoints of devices ask for: an access token, and not too many requests."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from fastapi.security.utils import get_authorization_scheme_param

from edge_sdk.errors import EdgeError
from server.http.limits import BoundedJsonRoute
from server.http.rate_limits import address_of
from server.storage.access_store import DeviceRow

_bearer = HTTPBearer(
    auto_error=False,
    scheme_name="Device",
    description="Access token from `/v1/devices/{device_id}/token`",
)


class DeviceRoute(BoundedJsonRoute):
    """A route for devices only: others are refused before a byte of their body is read."""

    async def admit(self, request: Request) -> None:
        """Authenticate the device and count its request, or note why it is refused."""
        try:
            await _admit(request)
        except EdgeError as error:
            task = str(request.path_params.get("task", ""))
            request.app.state.refusals.note(task, error)
            raise


class EntranceRoute(BoundedJsonRoute):
    """A route for whoever has no access token yet: each address may only ask so often."""

    async def admit(self, request: Request) -> None:
        """Count the request of an address."""
        request.app.state.entrance_rate.take(address_of(request))


async def _device(
    request: Request,
    _credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)],
) -> DeviceRow:
    return await _admit(request)


Device = Annotated[DeviceRow, Depends(_device)]


async def _admit(request: Request) -> DeviceRow:
    """Return the device that sent a request, counted once."""
    known: DeviceRow | None = getattr(request.state, "device", None)
    if known is not None:
        return known
    scheme, token = get_authorization_scheme_param(request.headers.get("Authorization"))
    given = token if scheme.lower() == "bearer" else None
    device: DeviceRow = await run_in_threadpool(request.app.state.gate.authenticate, given)
    request.state.device_id = device.id  # the log names it
    request.app.state.device_rate.take(device.id)
    request.state.device = device
    return device
