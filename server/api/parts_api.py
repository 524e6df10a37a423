"""The endpoints of updates that come in numbered parts, so that a cut costs one part."""

from __future__ import annotations

from contextlib import suppress
from typing import Annotated

from fastapi import APIRouter, Depends, Path, Request, Response
from fastapi.concurrency import run_in_threadpool

from edge_sdk.errors import EdgeError, MalformedPayload, TooLarge, WireError
from edge_sdk.wire import payload
from edge_sdk.wire.messages import HeldParts, Receipt, UpdateNotice
from edge_sdk.wire.parts import MOST_PART_BYTES, most_parts
from server.access.upload_quota import UploadQuota
from server.api.device_access import Device, DeviceRoute
from server.api.round_api import TENSORS_IN, ContentDigest, RoundNumber, Rounds, tensor_threads
from server.blobs.parts import Parted, PartFound, Parts, check_complete, held
from server.blobs.spool import Upload
from server.failpoints import hit
from server.http.limits import announced_bytes, bounded_chunks, gathered
from server.operation.refusals import note_refusal

router = APIRouter(prefix="/v1", route_class=DeviceRoute)


def _parts(request: Request) -> Parts:
    found: Parts = request.app.state.parts
    return found


Kept = Annotated[Parts, Depends(_parts)]
BodyDigest = Annotated[
    str, Path(pattern="^[0-9a-f]{64}$", description="SHA-256 of the whole update")
]
Index = Annotated[int, Path(ge=0, le=99_999, description="From 0")]


@router.get("/tasks/{task}/rounds/{number}/parts/{digest}", tags=["round"])
def get_parts(
    task: str, number: RoundNumber, digest: BodyDigest, rounds: Rounds, device: Device, parts: Kept
) -> HeldParts:
    """Say which parts of an update are here, so that the device sends the others."""
    if rounds.find_receipt(device.id, task, number, digest) is None:
        rounds.expect_update(device.id, task, number)
    body = Parted(device_id=device.id, task=task, number=number, digest=digest)
    return HeldParts(parts=sorted(held(parts.found(body), body)))


@router.put(
    "/tasks/{task}/rounds/{number}/parts/{digest}/{index}",
    tags=["round"],
    status_code=204,
    openapi_extra=TENSORS_IN,
    dependencies=[Depends(note_refusal)],
)
async def put_part(
    task: str,
    number: RoundNumber,
    digest: BodyDigest,
    index: Index,
    request: Request,
    rounds: Rounds,
    device: Device,
    parts: Kept,
    content_digest: ContentDigest = None,
) -> Response:
    """Send one part of an update; again replaces it. Parts of another update are dropped."""
    body = Parted(device_id=device.id, task=task, number=number, digest=digest)
    limit = await run_in_threadpool(rounds.expect_update, device.id, task, number)
    if index >= most_parts(limit):
        raise TooLarge(f"part {index}: this update may have {most_parts(limit)} parts")
    others = await run_in_threadpool(_make_room, parts, body, index)
    room = min(limit - others, MOST_PART_BYTES)
    coming = max(0, min(room, announced_bytes(request, room)))
    quota: UploadQuota = request.app.state.upload_quota
    async with quota.metered(device.id, task, number, coming, is_part=True) as meter:
        with rounds.open_upload() as upload:
            async for piece in gathered(meter.counted(bounded_chunks(request, room))):
                await run_in_threadpool(upload.write, piece)
            threads = tensor_threads(request)
            await threads.run(_keep, parts, body, index, upload, content_digest)
    return Response(status_code=204)


@router.put(
    "/tasks/{task}/rounds/{number}/parts", tags=["round"], dependencies=[Depends(note_refusal)]
)
async def put_parts(
    task: str,
    number: RoundNumber,
    notice: UpdateNotice,
    request: Request,
    rounds: Rounds,
    device: Device,
    parts: Kept,
) -> Receipt:
    """Say that all parts are here: they are checked and counted like an update in one body.

    The same notice again gets the same receipt. A receipt is sent when the update is durable.
    """
    body = Parted(device_id=device.id, task=task, number=number, digest=notice.digest)
    receipt = await run_in_threadpool(rounds.find_receipt, device.id, task, number, notice.digest)
    if receipt is None:
        limit = await run_in_threadpool(rounds.expect_update, device.id, task, number)
        if notice.size_bytes > limit:
            raise TooLarge(f"an update of {notice.size_bytes} bytes; this one may have {limit}")
        sizes = held(await run_in_threadpool(parts.found, body), body)
        check_complete(sizes, notice.size_bytes)
        with rounds.open_upload() as upload:
            await run_in_threadpool(_join, parts, body, len(sizes), upload)
            try:
                receipt = await tensor_threads(request).run(
                    rounds.accept_parts, device.id, task, number, upload, notice.digest
                )
            except WireError:  # these bytes will never do
                await run_in_threadpool(_forget, parts, body)
                raise
    hit("before-parts-removed")
    await run_in_threadpool(_forget, parts, body)
    return receipt


def _make_room(parts: Parts, body: Parted, index: int) -> int:
    """Drop what is there of other bodies; return the bytes of this body's other parts."""
    others = 0
    for part in parts.found(body):
        if part.digest != body.digest:
            parts.remove(body, part)
        elif part.index != index:
            others += part.size_bytes
    return others


def _keep(
    parts: Parts, body: Parted, index: int, upload: Upload, content_digest: str | None
) -> None:
    content = upload.read()
    if not content:
        raise MalformedPayload(f"part {index} is empty; a part has 1..{MOST_PART_BYTES} bytes")
    payload.check_content_digest(content, content_digest)
    hit("before-part-kept")
    parts.keep(body, index, upload)
    hit("after-part-kept")


def _join(parts: Parts, body: Parted, count: int, upload: Upload) -> None:
    for index in range(count):
        for chunk in parts.stream(body, index):
            upload.write(chunk)


def _forget(parts: Parts, body: Parted) -> None:
    """Remove the parts of a body; if the place refuses, the collector does it later."""
    with suppress(EdgeError):
        found: list[PartFound] = parts.found(body)
        for part in found:
            parts.remove(body, part)
