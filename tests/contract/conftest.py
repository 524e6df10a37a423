"""A live server with two tasks and a device, for every contract test."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import requests

from edge_sdk.wire import payload
from edge_sdk.wire.messages import TaskSpec
from server.auth import make_enrolment_token
from server.settings import Settings
from tests.contract.live import live_server
from tests.server.tasks import BASE_DIGEST, Site, tiny_spec, update_body

MAX_JSON_BYTES = 4096


@dataclass
class Device:
    """One enrolled device that speaks plain HTTP."""

    url: str
    token: str

    def call(self, method: str, path: str, **more) -> requests.Response:
        headers = {"Authorization": f"Bearer {self.token}"} | more.pop("headers", {})
        return requests.request(method, self.url + path, headers=headers, timeout=60, **more)

    def check_in(self, task: str = "tiny", affordable_k: int = 8, **changes) -> requests.Response:
        message = {"base_digest": BASE_DIGEST, "affordable_k": affordable_k, "examples": 5}
        return self.call("POST", f"/v1/tasks/{task}/check-in", json=message | changes)

    def put(self, body: bytes, number: int = 1, task: str = "tiny", **headers) -> requests.Response:
        digest = {"Content-Digest": payload.content_digest(body)}
        path = f"/v1/tasks/{task}/rounds/{number}/update"
        return self.call("PUT", path, data=body, headers=digest | headers)

    def train(self, spec: TaskSpec, seed: int = 1) -> requests.Response:
        work = self.check_in(spec.name).json()["assignment"]
        body = update_body(spec, work["k"], seed)
        return self.put(body, work["round_number"], spec.name)


@dataclass
class Service:
    """A running server as its operator and its devices see it."""

    url: str
    site: Site
    spec: TaskSpec
    token: str

    def enrol(self, name: str = "phone", token: str | None = None) -> requests.Response:
        message = {"enrolment_token": token or self.token, "name": name}
        return requests.post(f"{self.url}/v1/enrol", json=message, timeout=60)

    def device(self, name: str = "phone") -> Device:
        return Device(self.url, self.enrol(name).json()["device_token"])


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    """A server with the task ``tiny``: three devices, closed by two updates."""
    site = Site(tmp_path / "state")
    spec = site.add_task(tiny_spec(cohort_size=3, quorum=2, rounds=2))
    token = make_enrolment_token(site.store, 0.0)
    settings = Settings(
        state=site.settings.state, poll_s=0.25, tick_s=0.05, max_json_bytes=MAX_JSON_BYTES
    )
    with live_server(settings) as url:
        yield Service(url, site, spec, token)
    site.store.close()


@pytest.fixture
def device(service: Service) -> Device:
    return service.device()
