"""What devices tell about adapter versions: decode, one call, nothing to answer."""

from __future__ import annotations

from fastapi import APIRouter, Request

from edge_sdk.wire.messages import EvaluationReport
from server.api.device_access import Device, DeviceRoute
from server.registry.evaluating import Evaluations

router = APIRouter(prefix="/v1", route_class=DeviceRoute, tags=["adapter"])


@router.post("/tasks/{task}/evaluations", status_code=204)
def post_evaluation(task: str, message: EvaluationReport, request: Request, device: Device) -> None:
    """Tell how a version did on held-out examples; only sums over devices are kept, each once."""
    evaluations: Evaluations = request.app.state.evaluations
    evaluations.record(device.id, task, message)
