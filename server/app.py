"""Put the parts together; wiring only."""

from __future__ import annotations

import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from fastapi import FastAPI

from server import operating
from server.access.auth import Gate
from server.access.credentials import Credentials
from server.access.key_ring import KeyRing
from server.access.upload_quota import UploadQuota
from server.api import (
    admin_api,
    dashboard_api,
    entrance_api,
    evaluation_api,
    openapi,
    parts_api,
    registry_api,
    round_api,
    staging_api,
)
from server.blobs.blobs import Blobs
from server.http import problems
from server.http.rate_limits import RateLimit
from server.http.tensor_threads import TensorThreads
from server.operation.collecting import Collecting
from server.operation.collector import Collector
from server.operation.overview import Overviews
from server.operation.refusals import Refusals
from server.registry.evaluating import Evaluations
from server.registry.registry import Registry
from server.rounds.closer import Closer
from server.rounds.coordinator import Clock, Coordinator
from server.rounds.relay import Relay
from server.settings.settings import Settings
from server.state import open_state
from server.storage.store import Store

if TYPE_CHECKING:
    from server.rounds.forwarder import Forwarder


def create_app(settings: Settings, clock: Clock = time.time) -> FastAPI:
    """Open the state and return the application that serves it.

    Args:
        settings: Of this process.
        clock: Seconds since 1970.

    Raises:
        StorageError: The state folder or its database cannot be opened.
        ConfigError: The database belongs to a newer release, or the signing key is not the fleet's.
    """
    store, blobs = open_state(settings)
    return _wire(settings, clock, store, blobs)


def _wire(settings: Settings, clock: Clock, store: Store, blobs: Blobs) -> FastAPI:
    wake = threading.Event()
    registry = Registry(store, KeyRing(store, settings.signing_key_file, clock), clock)
    registry.prepare()
    coordinator = Coordinator(store, blobs, clock, settings.poll_s, wake, registry.catch_up)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        closer = Closer(coordinator, wake, settings.tick_s)
        collecting = Collecting(store, blobs, clock, settings.keep_updates_s)
        collector = Collector(collecting, settings.collect_every_s)
        forwarder = _forwarder(settings, clock, store, blobs, registry)
        closer.start()
        collector.start()
        if forwarder is not None:
            forwarder.start()
        yield
        operating.close(app)
        if forwarder is not None:
            forwarder.stop()
        app.state.tensor_threads.close()
        collector.stop()
        closer.stop()
        store.close()

    # No /docs or /redoc: they run scripts of a stranger beside the dashboard and its token.
    app = FastAPI(lifespan=lifespan, redirect_slashes=False, docs_url=None, redoc_url=None)
    app.state.settings = settings
    app.state.store = store
    app.state.clock = clock
    _guard(app, settings, store, clock)
    app.state.coordinator = coordinator
    app.state.staging = blobs.staging if settings.presigned_uploads else None
    app.state.parts = blobs.parts
    app.state.registry = registry
    app.state.tensor_threads = TensorThreads()
    app.state.refusals = Refusals(clock)
    app.state.evaluations = Evaluations(store)
    app.state.overviews = Overviews(
        store, clock, app.state.refusals, settings.min_evaluating_devices
    )
    app.include_router(entrance_api.router)
    app.include_router(round_api.router)
    app.include_router(staging_api.router)
    app.include_router(parts_api.router)
    app.include_router(registry_api.router)
    app.include_router(evaluation_api.router)
    app.include_router(dashboard_api.router)
    app.include_router(admin_api.router)
    problems.install(app)
    openapi.install(app)
    operating.install(app, store, blobs, clock, settings)
    return app


def _forwarder(
    settings: Settings, clock: Clock, store: Store, blobs: Blobs, registry: Registry
) -> Forwarder | None:
    """Return what makes this server a relay, if it is one; only then it loads an HTTP client."""
    if not settings.upstream:
        return None
    from server.rounds.forwarder import Forwarder

    relay = Relay(store, blobs, clock, registry.catch_up, settings.poll_s)
    return Forwarder(relay, settings)


def _guard(app: FastAPI, settings: Settings, store: Store, clock: Clock) -> None:
    """Give an application what lets devices in and keeps them within bounds."""
    app.state.gate = Gate(store, clock, Credentials(store, clock, settings.access_token_ttl_s))
    app.state.device_rate = RateLimit(settings.device_requests_per_min)
    app.state.entrance_rate = RateLimit(settings.entrance_requests_per_min)
    app.state.upload_quota = UploadQuota(store, clock, settings.device_upload_bytes_per_day)
