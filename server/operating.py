"""Wire what an operator watches a server by: probes, metrics, request ids and the log."""

from __future__ import annotations

from collections.abc import Callable

from fastapi import FastAPI

from server.api import operator_api
from server.blobs.blobs import Blobs
from server.http.exchanges import Exchanges
from server.http.request_ids import RequestIds
from server.operation.fleet_metrics import FleetMetrics
from server.operation.health import Health
from server.operation.logs import log_exchange
from server.operation.metrics import Metrics
from server.settings.settings import Settings
from server.storage.store import Store


def install(
    app: FastAPI, store: Store, blobs: Blobs, clock: Callable[[], float], settings: Settings
) -> None:
    """Make an application watched; after every other middleware, so that these are outermost.

    Args:
        app: Its ``state`` gets ``health``, ``fleet`` and ``metrics``.
        store: Where rows are.
        blobs: Where tensors are.
        clock: Seconds since 1970.
        settings: Say who may read ``/metrics``, and when evaluations are shown.
    """
    fleet = FleetMetrics(store, clock, settings.min_evaluating_devices)
    app.state.health, app.state.fleet = Health(store, blobs), fleet
    app.state.metrics = Metrics(fleet)
    app.include_router(operator_api.probes)
    app.include_router(operator_api.metrics_router(settings.metrics_open))
    app.add_middleware(Exchanges, observers=[log_exchange, app.state.metrics.count])
    app.add_middleware(RequestIds)


def close(app: FastAPI) -> None:
    """Let go of the threads that watch an application."""
    app.state.health.close()
    app.state.fleet.close()
