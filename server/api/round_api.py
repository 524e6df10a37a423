"""The endpoints: decode, one call of the coordinator, encode. No rule lives here."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Path, Request, Response
from fastapi.concurrency import run_in_threadpool

from edge_sdk.wire.messages import (
    PRESIGNED,
    UPLOADS_HEADER,
    AdapterInfo,
    CheckIn,
    CheckInReply,
    Receipt,
    RoundStatus,
)
from edge_sdk.wire.payload import MEDIA_TYPE
from edge_sdk.wire.task import TaskSpec
from server.access.upload_quota import UploadQuota
from server.api.device_access import Device, DeviceRoute
from server.http.limits import announced_bytes, bounded_chunks, gathered
from server.http.ranges import Asked
from server.http.tensor_response import from_bytes, from_stream
from server.http.tensor_threads import TensorThreads
from server.operation.refusals import note_refusal
from server.rounds.coordinator import Coordinator

_MAX_NUMBER = 2**31 - 1
_BINARY = {MEDIA_TYPE: {"schema": {"type": "string", "format": "binary"}}}
_DIGEST_HEADER = {
    "Content-Digest": {
        "description": "SHA-256 of the body, `sha-256=:<base64>:` (RFC 9530)",
        "schema": {"type": "string"},
    }
}
_TENSORS_OUT: dict[int | str, dict[str, Any]] = {
    200: {"description": "Tensors", "content": _BINARY, "headers": _DIGEST_HEADER},
    206: {"description": "The part of the tensors that `Range` asks for", "content": _BINARY},
    304: {"description": "The body is the one that `If-None-Match` names"},
}
_CHECKED_IN: dict[int | str, dict[str, Any]] = {
    200: {
        "headers": {
            UPLOADS_HEADER: {
                "description": "`presigned`: the update may go to the object store; else missing",
                "schema": {"type": "string"},
            }
        }
    }
}
TENSORS_IN = {"requestBody": {"required": True, "content": _BINARY}}

router = APIRouter(prefix="/v1", route_class=DeviceRoute)


def _coordinator(request: Request) -> Coordinator:
    found: Coordinator = request.app.state.coordinator
    return found


def tensor_threads(request: Request) -> TensorThreads:
    """Return the threads for work on whole tensor bodies."""
    found: TensorThreads = request.app.state.tensor_threads
    return found


Rounds = Annotated[Coordinator, Depends(_coordinator)]
RoundNumber = Annotated[int, Path(ge=1, le=_MAX_NUMBER, description="From 1")]
Version = Annotated[int, Path(ge=0, le=_MAX_NUMBER, description="0 is the initial adapter")]
ContentDigest = Annotated[str | None, Header(description="`sha-256=:<base64>:` (RFC 9530)")]


@router.get("/tasks", tags=["task"])
def list_tasks(rounds: Rounds, _device: Device) -> list[str]:
    """List the names of all tasks."""
    return rounds.tasks()


@router.get("/tasks/{task}", tags=["task"])
def get_task(task: str, rounds: Rounds, _device: Device) -> TaskSpec:
    """Return what the fleet of a task agrees on."""
    return rounds.task(task)


@router.post(
    "/tasks/{task}/check-in",
    tags=["round"],
    responses=_CHECKED_IN,
    dependencies=[Depends(note_refusal)],
)
def check_in(
    task: str, message: CheckIn, rounds: Rounds, device: Device, request: Request, answer: Response
) -> CheckInReply:
    """Ask for work; again in the same round gets the same, or a smaller sketch if need be."""
    if request.app.state.staging is not None:
        answer.headers[UPLOADS_HEADER] = PRESIGNED
    return rounds.check_in(device.id, task, message, device.relay_for)


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
async def get_slice(
    task: str, number: RoundNumber, request: Request, rounds: Rounds, device: Device, asked: Asked
) -> Response:
    """Return the ranks of the adapter that the device trains in this round."""

    def cut() -> Response:
        return from_bytes(rounds.slice_for(device.id, task, number), asked)

    return await tensor_threads(request).run(cut)


@router.put(
    "/tasks/{task}/rounds/{number}/update",
    tags=["round"],
    openapi_extra=TENSORS_IN,
    dependencies=[Depends(note_refusal)],
)
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
    coming = min(limit, announced_bytes(request, limit))
    quota: UploadQuota = request.app.state.upload_quota
    async with quota.metered(device.id, task, number, coming) as meter:
        with rounds.open_upload() as upload:
            async for part in gathered(meter.counted(bounded_chunks(request, limit))):
                await run_in_threadpool(upload.write, part)
            return await tensor_threads(request).run(
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
def get_adapter(
    task: str, version: Version, rounds: Rounds, _device: Device, asked: Asked
) -> Response:
    """Return one version of the global adapter, all ranks."""
    info, stream = rounds.adapter_body(task, version)
    return from_stream(stream, info.size_bytes, info.digest, asked)
