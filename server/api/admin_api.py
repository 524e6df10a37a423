"""What admins may do over HTTP: look at devices, revoke one, read the audit log."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

from fastapi import APIRouter, Path, Query, Request

from server.access.auth import revoke_device
from server.api.admin_access import Admin, Operator, Reader
from server.api.admin_messages import AuditEntry, DeviceInfo
from server.http.limits import BoundedJsonRoute
from server.storage.access_store import DeviceRow

router = APIRouter(prefix="/v1/admin", route_class=BoundedJsonRoute, tags=["admin"])

_MOST_ENTRIES = 1000


@router.get("/devices")
def list_devices(request: Request, _reader: Reader) -> list[DeviceInfo]:
    """List all devices in the order they enrolled."""
    with request.app.state.store.read() as tx:
        return [as_device_info(row) for row in tx.devices()]


@router.post("/devices/{device_id}/revoke")
def revoke(
    device_id: Annotated[str, Path(max_length=32)], request: Request, operator: Operator
) -> DeviceInfo:
    """Refuse a device from its next request on; again changes nothing."""
    state = request.app.state
    return as_device_info(revoke_device(state.store, device_id, operator.name, state.clock()))


@router.get("/audit")
def list_audit(
    request: Request, _admin: Admin, last: Annotated[int, Query(ge=1, le=_MOST_ENTRIES)] = 100
) -> list[AuditEntry]:
    """List what operators changed, newest first."""
    with request.app.state.store.read() as tx:
        return [AuditEntry(**asdict(row)) for row in tx.audit(last)]


def as_device_info(row: DeviceRow) -> DeviceInfo:
    """Return a device as admins may see it."""
    return DeviceInfo(
        device_id=row.id,
        name=row.name,
        enrolled_at=row.enrolled_at,
        enrolled_with=row.enrolled_with,
        key_number=row.key_number,
        revoked_at=row.revoked_at,
    )
