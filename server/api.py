"""The endpoints: decode, one call of the coordinator, encode. No rule lives here."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Path, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from edge_sdk.wire.messages import (
    AdapterInfo,
    CheckIn,
    CheckInReply,
    Enrolment,
    EnrolRequest,
    Receipt,
    RoundStatus,
    TaskSpec,
)
from edge_sdk.wire.payload import MEDIA_TYPE
from server.coordinator import Coordinator
from server.limits import BoundedJsonRoute, bounded_chunks
from server.store import DeviceRow
from server.tensor_response import from_bytes, from_file

_MAX_NUMBER = 2**31 - 1
_BINARY = {MEDIA_TYPE: {"schema": {"type": "string", "format": "binary"}}}
_DIGEST_HEADER = {
    "Content-Digest": {
        "description": "SHA-256 of the body, `sha-256=:<base64>:` (RFC 9530)",
        "schema": {"type": "string"},
    }
}
_TENSORS_OUT: dict[int | str, dict[str, Any]] = {
    200: {"description": "Tensors", "content": _BINARY, "headers": _DIGEST_HEADER}
}
_TENSORS_IN = {"requestBody": {"required": True, "content": _BINARY}}

router = APIRouter(prefix="/v1", route_class=BoundedJsonRoute)
health = APIRouter()
_bearer = HTTPBearer(auto_error=False, description="Device token from /v1/enrol")


def _coordinator(request: Request) -> Coordinator:
    found: Coordinator = request.app.state.coordinator
    return found


Rounds = Annotated[Coordinator, Depends(_coordinator)]


def _device(
    rounds: Rounds,
    credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)],
) -> DeviceRow:
    return rounds.authenticate(credentials.credentials if credentials else None)


Device = Annotated[DeviceRow, Depends(_device)]
RoundNumber = Annotated[int, Path(ge=1, le=_MAX_NUMBER, description="From 1")]
Version = Annotated[int, Path(ge=0, le=_MAX_NUMBER, description="0 is the initial adapter")]
ContentDigest = Annotated[str | None, Header(description="`sha-256=:<base64>:` (RFC 9530)")]


@health.get("/healthz", tags=["operator"])
def healthz() -> dict[str, str]:
    """Say that the server answers."""
    return {"status": "ok"}


@router.post("/enrol", status_code=201, tags=["device"])
def enrol(message: EnrolRequest, rounds: Rounds) -> Enrolment:
    """Exchange an enrolment token for a device identity."""
    return rounds.enrol(message)


@router.get("/tasks", tags=["task"])
def list_tasks(rounds: Rounds, _device: Device) -> list[str]:
    """List the names of all tasks."""
    return rounds.tasks()


@router.get("/tasks/{task}", tags=["task"])
def get_task(task: str, rounds: Rounds, _device: Device) -> TaskSpec:
    """Return what the fleet of a task agrees on."""
    return rounds.task(task)


@router.post("/tasks/{task}/check-in", tags=["round"])
def check_in(task: str, message: CheckIn, rounds: Rounds, device: Device) -> CheckInReply:
    """Ask for work; again in the same round gets the same, or a smaller sketch if need be."""
    return rounds.check_in(device.id, task, message)


@router.get("/tasks/{task}/rounds/{number}", tags=["round"])
def get_round(task: str, number: RoundNumber, rounds: Rounds, _device: Device) -> RoundStatus:
    """Return the state of one round."""
    return rounds.round_status(task, number)


@router.get(
    "/tasks/{task}/rounds/{number}/slice",
    tags=["round"],
    response_class=Response,
    responses=_TENSORS_OUT,
)
def get_slice(task: str, number: RoundNumber, rounds: Rounds, device: Device) -> Response:
    """Return the ranks of the adapter that the device trains in this round."""
    return from_bytes(rounds.slice_for(device.id, task, number))


@router.put("/tasks/{task}/rounds/{number}/update", tags=["round"], openapi_extra=_TENSORS_IN)
async def put_update(
    task: str,
    number: RoundNumber,
    request: Request,
    rounds: Rounds,
    device: Device,
    content_digest: ContentDigest = None,
) -> Receipt:
    """Send an update: after minus before, with its report in the tensor file's metadata.

    The same bytes again get the same receipt. A receipt is sent when the update is durable.
    """
    limit = await run_in_threadpool(rounds.expect_update, device.id, task, number)
    with rounds.open_upload() as upload:
        async for chunk in bounded_chunks(request, limit):
            await run_in_threadpool(upload.write, chunk)
        return await run_in_threadpool(
            rounds.accept_update, device.id, task, number, upload, content_digest
        )


@router.get("/tasks/{task}/adapters", tags=["adapter"])
def list_adapters(task: str, rounds: Rounds, _device: Device) -> list[AdapterInfo]:
    """List every version of the global adapter."""
    return rounds.adapters(task)


@router.get(
    "/tasks/{task}/adapters/{version}",
    tags=["adapter"],
    response_class=Response,
    responses=_TENSORS_OUT,
)
def get_adapter(task: str, version: Version, rounds: Rounds, _device: Device) -> Response:
    """Return one version of the global adapter, all ranks."""
    info, path = rounds.adapter_file(task, version)
    return from_file(path, info.size_bytes, info.digest)
