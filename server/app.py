"""Put the parts together; wiring only."""

from __future__ import annotations

import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI

from server import api, openapi, problems
from server.blobs import BlobFolder
from server.closer import Closer
from server.coordinator import Clock, Coordinator
from server.settings import Settings
from server.state import open_state
from server.store import Store

_LEFTOVER_AGE_S = 3600.0


def create_app(settings: Settings, clock: Clock = time.time) -> FastAPI:
    """Open the state and return the application that serves it.

    Args:
        settings: Of this process.
        clock: Seconds since 1970.

    Raises:
        StorageError: The state folder or its database cannot be opened.
        ConfigError: The database belongs to a newer release.
    """
    store, blobs = open_state(settings)
    blobs.remove_leftovers(_LEFTOVER_AGE_S)
    return _wire(settings, clock, store, blobs)


def _wire(settings: Settings, clock: Clock, store: Store, blobs: BlobFolder) -> FastAPI:
    wake = threading.Event()
    coordinator = Coordinator(store, blobs, clock, settings.poll_s, wake)

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        closer = Closer(coordinator, wake, settings.tick_s)
        closer.start()
        yield
        closer.stop()
        store.close()

    app = FastAPI(lifespan=lifespan)
    app.state.settings = settings
    app.state.coordinator = coordinator
    app.include_router(api.health)
    app.include_router(api.router)
    problems.install(app)
    openapi.install(app)
    return app
