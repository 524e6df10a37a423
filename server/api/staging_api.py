"""The endpoints of updates that go by way of the object store, if the operator allows it."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Request
from fastapi.concurrency import run_in_threadpool

from edge_sdk.errors import NotFound, TooLarge
from edge_sdk.wire.messages import Receipt, UpdateNotice, UploadPlace
from edge_sdk.wire.payload import content_digest_of
from server.access.upload_quota import Meter, UploadQuota
from server.api.device_access import Device, DeviceRoute
from server.api.round_api import RoundNumber, Rounds, tensor_threads
from server.blobs.spool import Upload
from server.blobs.staging import EXPIRES_S, Stage, Staging
from server.operation.refusals import note_refusal
from server.rounds.coordinator import Coordinator

router = APIRouter(prefix="/v1", route_class=DeviceRoute)


def _offered(request: Request) -> Staging:
    found: Staging | None = request.app.state.staging
    if found is None:
        raise NotFound("this server takes updates by itself only: presigned_uploads is off")
    return found


def _quota(request: Request) -> UploadQuota:
    found: UploadQuota = request.app.state.upload_quota
    return found


Offered = Annotated[Staging, Depends(_offered)]
Quota = Annotated[UploadQuota, Depends(_quota)]


@router.post(
    "/tasks/{task}/rounds/{number}/staged",
    tags=["round"],
    dependencies=[Depends(note_refusal)],
)
def post_staged(
    task: str,
    number: RoundNumber,
    notice: UpdateNotice,
    rounds: Rounds,
    device: Device,
    staging: Offered,
    quota: Quota,
) -> UploadPlace:
    """Ask where in the object store an update may be put; nothing is signed that is of no use."""
    rounds.find_receipt(device.id, task, number, notice.digest)
    _expect(rounds, device.id, task, number, notice)
    quota.check(device.id, task, number, notice.size_bytes)
    stage = Stage(device_id=device.id, task=task, number=number)
    return UploadPlace(url=staging.sign(stage), expires_in_s=EXPIRES_S)


@router.put(
    "/tasks/{task}/rounds/{number}/staged",
    tags=["round"],
    dependencies=[Depends(note_refusal)],
)
async def put_staged(
    request: Request,
    task: str,
    number: RoundNumber,
    notice: UpdateNotice,
    rounds: Rounds,
    device: Device,
    staging: Offered,
    quota: Quota,
) -> Receipt:
    """Say that an update was put there: it is fetched, checked and counted like one sent here.

    The same notice again gets the same receipt. A receipt is sent when the update is durable.
    """
    stage = Stage(device_id=device.id, task=task, number=number)
    before = await run_in_threadpool(rounds.find_receipt, device.id, task, number, notice.digest)
    if before is not None:
        await run_in_threadpool(staging.remove, stage)
        return before
    limit = await run_in_threadpool(_expect, rounds, device.id, task, number, notice)
    async with quota.metered(device.id, task, number, notice.size_bytes) as meter:
        with rounds.open_upload() as upload:
            await run_in_threadpool(_fetch, staging, stage, notice, limit, upload, meter)
            receipt = await tensor_threads(request).run(
                rounds.accept_update,
                device.id,
                task,
                number,
                upload,
                content_digest_of(notice.digest),
            )
    await run_in_threadpool(staging.remove, stage)
    return receipt


def _expect(
    rounds: Coordinator, device_id: str, task: str, number: int, notice: UpdateNotice
) -> int:
    """Return how many bytes the device's update may have."""
    limit = rounds.expect_update(device_id, task, number)
    if notice.size_bytes > limit:
        raise TooLarge(f"an update of {notice.size_bytes} bytes; this one may have {limit}")
    return limit


def _fetch(
    staging: Staging, stage: Stage, notice: UpdateNotice, limit: int, upload: Upload, meter: Meter
) -> None:
    for chunk in staging.fetch(stage, notice.size_bytes, limit):
        meter.received_bytes += len(chunk)
        upload.write(chunk)
