"""What devices ask about signed adapters: decode, one call of the registry, encode."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Request

from edge_sdk.wire.manifest import Signed
from server.api.device_access import Device
from server.api.round_api import Version
from server.http.limits import BoundedJsonRoute
from server.registry.registry import Registry

router = APIRouter(prefix="/v1", route_class=BoundedJsonRoute, tags=["adapter"])


def _registry(request: Request) -> Registry:
    found: Registry = request.app.state.registry
    return found


Versions = Annotated[Registry, Depends(_registry)]


@router.get("/tasks/{task}/channels/stable")
def get_channel(task: str, registry: Versions, _device: Device) -> Signed:
    """Return which version devices use now, as a signed `Pointer`."""
    return registry.pointer(task)


@router.get("/tasks/{task}/adapters/{version}/manifest")
def get_manifest(task: str, version: Version, registry: Versions, _device: Device) -> Signed:
    """Return what one version is, as a signed `Manifest`."""
    return registry.manifest(task, version)


@router.get("/keys")
def list_successions(registry: Versions, _device: Device) -> list[Signed]:
    """List how the first signing key led to the newest one, as signed `Succession`s."""
    return registry.successions()
