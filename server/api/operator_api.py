"""What load balancers and monitors ask: is it alive, is it ready, what does it count."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request, Response

from server.api.admin_access import Reader
from server.operation.health import Health
from server.operation.metrics import MEDIA_TYPE, Metrics

_TEXT: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "Metrics in Prometheus' text format",
        "content": {"text/plain": {"schema": {"type": "string"}}},
    }
}

probes = APIRouter(tags=["operator"])


@probes.get("/healthz")
def healthz() -> dict[str, str]:
    """Say that the process answers; it asks nobody else."""
    return {"status": "ok"}


@probes.get("/readyz")
async def readyz(request: Request) -> dict[str, str]:
    """Say that database and tensor files answer, or `server_busy` with what does not."""
    health: Health = request.app.state.health
    await health.check()
    return {"status": "ready"}


def metrics_router(is_open: bool) -> APIRouter:
    """Return the route of ``/metrics``.

    Args:
        is_open: Whether anybody may read it; else an operator who may read does.
    """
    router = APIRouter(tags=["operator"])
    endpoint = _scrape_openly if is_open else _scrape
    router.get(
        "/metrics", name="metrics", summary="Metrics", response_class=Response, responses=_TEXT
    )(endpoint)
    return router


def _scrape(request: Request, _reader: Reader) -> Response:
    """Return what this process and the fleet count, for Prometheus."""
    return _scrape_openly(request)


def _scrape_openly(request: Request) -> Response:
    """Return what this process and the fleet count, for Prometheus."""
    metrics: Metrics = request.app.state.metrics
    return Response(metrics.render(), headers={"Content-Type": MEDIA_TYPE})
