"""A live server with two tasks and a device, for every contract test."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import requests

from edge_sdk.identity.device_key import DeviceKey, make_private_key
from edge_sdk.wire import payload
from edge_sdk.wire.proofs import access_statement, enrolment_statement
from edge_sdk.wire.task import TaskSpec
from server.access.auth import make_enrolment_token
from server.settings.settings import Settings
from tests.contract.live import live_server
from tests.server.tasks import BASE_DIGEST, Site, tiny_spec, update_body

MAX_JSON_BYTES = 4096


@dataclass
class Device:
    """One device that speaks plain HTTP, with an access token."""

    url: str
    token: str
    id: str = ""
    key: DeviceKey | None = None

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

    def challenge(self) -> str:
        answer = requests.post(f"{self.url}/v1/devices/{self.id}/challenge", timeout=60)
        return answer.json()["nonce"]

    def ask_access(self, nonce: str | None = None, **changes) -> requests.Response:
        """Answer a challenge, a new one unless another is given."""
        nonce = nonce or self.challenge()
        message = {"nonce": nonce, "signature": self.key.sign(access_statement(self.id, nonce))}
        path = f"{self.url}/v1/devices/{self.id}/token"
        return requests.post(path, json=message | changes, timeout=60)


@dataclass
class Service:
    """A running server as its operator and its devices see it."""

    url: str
    site: Site
    spec: TaskSpec
    token: str

    def enrol(
        self, name: str = "phone", token: str | None = None, key: DeviceKey | None = None, **changes
    ) -> requests.Response:
        token, key = token or self.token, key or DeviceKey(make_private_key())
        message = {
            "enrolment_token": token,
            "name": name,
            "public_key": key.public_key,
            "proof": key.sign(enrolment_statement(token, key.public_key)),
        }
        return requests.post(f"{self.url}/v1/enrol", json=message | changes, timeout=60)

    def device(self, name: str = "phone") -> Device:
        key = DeviceKey(make_private_key())
        device = Device(self.url, "", self.enrol(name, key=key).json()["device_id"], key)
        device.token = device.ask_access().json()["access_token"]
        return device


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
