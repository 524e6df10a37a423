"""One example of every message that travels, for people who read the OpenAPI description."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from edge_sdk.wire.credentials import (
    AccessRequest,
    AccessToken,
    Challenge,
    Departure,
    Enrolment,
    EnrolRequest,
    KeyChange,
)
from edge_sdk.wire.manifest import Pointer, Signed, canonical
from edge_sdk.wire.messages import (
    AdapterInfo,
    Assignment,
    CheckIn,
    CheckInReply,
    EvaluationReport,
    HeldParts,
    Receipt,
    RoundStatus,
    UpdateNotice,
    UploadPlace,
)
from edge_sdk.wire.task import (
    AdapterSpec,
    BaseModel,
    LayerSpec,
    RoundPolicy,
    TaskSpec,
    TrainingSpec,
)
from server.api.admin_messages import AuditEntry, DeviceInfo
from server.operation.overview_messages import (
    Coverage,
    Overview,
    Refusal,
    RoundSummary,
    RunningRound,
    SketchClass,
    TaskLine,
    TaskView,
    VersionLine,
    WaitingDevice,
)
from server.registry.evaluating import Evaluation

_DIGEST = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"
_DEVICE = "3f1c9d20a7b4e658"
_NONCE = f"edge.1.5b1f8a0c.1767225660.{_DIGEST}"
_TOKEN = f"edge.1.{_DEVICE}-1.1767229200.{_DIGEST}"
_SIGNED_URL = f"https://s3.example/bucket/staged/{_DEVICE}/news/3?X-Amz-Signature={_DIGEST}"
_OPENED_AT = 1_767_225_600.0
_CLOSED_AT = 1_767_226_140.0

INLINE: Mapping[str, object] = {
    "/v1/tasks": ["news"],
    "/healthz": {"status": "ok"},
    "/readyz": {"status": "ready"},
}
"""Examples of the answers that are no message, by path."""


def message_examples() -> dict[str, Any]:
    """Return one JSON example of every message, by the name of its class."""
    messages = [*_device_messages(), _task(), _signed(), _overview(), *_admin_messages()]
    return {type(message).__name__: msgspec.to_builtins(message) for message in messages}


def _device_messages() -> list[object]:
    return [
        EnrolRequest(
            enrolment_token="edge_token-from-the-operator",  # noqa: S106 - example
            name="kitchen tablet",
            public_key=_DIGEST,
            proof=2 * _DIGEST,
        ),
        Enrolment(device_id=_DEVICE, signing_key=_DIGEST),
        Challenge(nonce=_NONCE, expires_in_s=60.0),
        AccessRequest(nonce=_NONCE, signature=2 * _DIGEST),
        AccessToken(access_token=_TOKEN, expires_in_s=3600.0),
        Departure(device_id=_DEVICE, left_at=_CLOSED_AT),
        KeyChange(
            nonce=_NONCE,
            public_key=_DIGEST,
            signature=2 * _DIGEST,
            new_signature=2 * _DIGEST,
        ),
        CheckIn(base_digest=_DIGEST, affordable_k=8, examples=240),
        CheckInReply(state="assigned", round_number=3, assignment=_assignment()),
        RoundStatus(round_number=3, state="open", assigned=8, accepted=5, deadline_s=412.5),
        UpdateNotice(size_bytes=1_226_208, digest=_DIGEST),
        UploadPlace(url=_SIGNED_URL, expires_in_s=300.0),
        HeldParts(parts=[0, 1, 2, 4]),
        Receipt(task="news", round_number=3, digest=_DIGEST),
        EvaluationReport(version=2, examples=24, loss_before=2.31, loss_after=2.25, accepted=True),
        AdapterInfo(
            version=2, round_number=2, digest=_DIGEST, size_bytes=9_809_664, created_at=_CLOSED_AT
        ),
    ]


def _admin_messages() -> list[object]:
    return [
        DeviceInfo(
            device_id=_DEVICE,
            name="kitchen tablet",
            enrolled_at=_OPENED_AT,
            enrolled_with="c0ffee0123456789",
            key_number=1,
            revoked_at=None,
        ),
        AuditEntry(
            number=7,
            at=_CLOSED_AT,
            who="ann",
            action="device.revoke",
            subject=f"{_DEVICE} kitchen tablet",
        ),
    ]


def _assignment() -> Assignment:
    return Assignment(
        task="news",
        round_number=3,
        adapter_version=2,
        k=8,
        seed=4_202_117,
        training=TrainingSpec(),
        deadline_s=600.0,
    )


def _task() -> TaskSpec:
    layer = LayerSpec(name="model.layers.0.self_attn.q_proj", d_in=576, d_out=576)
    return TaskSpec(
        name="news",
        base=BaseModel(model="HuggingFaceTB/SmolLM2-135M", digest=_DIGEST),
        adapter=AdapterSpec(r=64, lora_alpha=128.0, target_modules=["q_proj"], layers=[layer]),
        training=TrainingSpec(),
        policy=RoundPolicy(rounds=20, cohort_size=8, quorum=6, sketch_sizes=[1, 2, 4, 8]),
    )


def _signed() -> Signed:
    pointer = Pointer(
        task="news",
        sequence=4,
        version=2,
        canary_version=None,
        canary_share=0.0,
        created_at=_CLOSED_AT,
    )
    return Signed(payload=canonical(pointer).decode(), key_id=_DIGEST[:16], signature=2 * _DIGEST)


def _overview() -> Overview:
    line = TaskLine(
        name="news", model="HuggingFaceTB/SmolLM2-135M", state="open", rounds=20, closed=1
    )
    refusal = Refusal(
        code="round_closed", count=2, task="news", detail="round 1 is over", at=_CLOSED_AT
    )
    return Overview(
        now=_CLOSED_AT,
        started_at=_OPENED_AT,
        tasks=[line],
        tasks_total=1,
        task=_task_view(line),
        refusals=[refusal],
    )


def _task_view(line: TaskLine) -> TaskView:
    version = VersionLine(
        version=1,
        round_number=1,
        size_bytes=9_809_664,
        created_at=_CLOSED_AT,
        digest=_DIGEST,
        evaluation=Evaluation(
            devices=6,
            accepted=5,
            examples=144,
            loss_before=2.44,
            loss_after=2.31,
            accuracy=None,
        ),
    )
    return TaskView(
        line=line,
        r=64,
        layers=210,
        sketch_sizes=[1, 2, 4, 8],
        cohort_size=8,
        sketching="balanced",
        stragglers="refuse",
        weighting="uniform",
        combination="mean",
        running=_running_round(),
        rounds=[_round_summary()],
        coverage=Coverage(
            group=32, rounds=[1], updates=[[0.75, 0.75]], ages=[1, 1], oldest_rank=5, oldest_age=1
        ),
        versions=[version],
        versions_total=2,
        stable_version=1,
        canary_version=None,
        canary_share=0.0,
    )


def _running_round() -> RunningRound:
    waiting = WaitingDevice(device_id=_DEVICE, device_name="kitchen tablet", k=8, since_s=95.0)
    return RunningRound(
        round_number=2,
        state="open",
        assigned=8,
        accepted=5,
        quorum=6,
        min_updates=1,
        deadline_s=412.5,
        is_prolonged=False,
        waiting=[waiting],
        waiting_total=3,
    )


def _round_summary() -> RoundSummary:
    by_k = SketchClass(
        k=8, devices=6, updates=6, seconds=41.5, peak_rss_bytes=734_003_200, upload_bytes=9_809_664
    )
    return RoundSummary(
        round_number=1,
        state="closed",
        opened_at=_OPENED_AT,
        closed_at=_CLOSED_AT,
        adapter_version=1,
        assigned=6,
        accepted=6,
        late=0,
        quarantined=0,
        missing=0,
        loss=2.31,
        lowest_loss=2.08,
        highest_loss=2.66,
        download_bytes=58_857_984,
        upload_bytes=58_857_984,
        full_download_bytes=470_863_872,
        full_upload_bytes=470_863_872,
        by_k=[by_k],
        by_memory=[],
        left_out=[],
    )
