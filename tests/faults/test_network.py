"""Rounds over a bad network: each is finished with one update, or given up with a typed error.

``EDGE_TEST_KILLS``, if it is set, lets the server be killed at every point of an upload in parts.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from edge_sdk.errors import ServerUnreachable
from edge_sdk.network.transport import Transport
from edge_sdk.rounds import membership
from edge_sdk.rounds.round_loop import RoundLoop
from edge_sdk.wire.messages import CheckIn
from edge_sdk.wire.payload import digest
from edge_sdk.wire.task import AdapterSpec, LayerSpec, TaskSpec
from server.access.auth import make_enrolment_token
from server.failpoints import PART_POINTS
from server.rounds.adapters import AdapterShelf
from server.rounds.tasks import create_task
from server.settings.settings import Settings
from server.state import open_state
from tests.contract.live import live_server
from tests.faults.proxy import Fault, Proxy, proxy_to
from tests.numpy_device import enrol_one, wait_for
from tests.processes import ServerProcess
from tests.server.tasks import BASE_DIGEST, Site, tiny_spec, update_body
from tests.tiny_model import write_jsonl

CASES = {
    "undisturbed": [],
    "delayed": [Fault(delay_s=0.2, times=9)],
    "throttled": [Fault(bytes_per_s=40_000, times=9)],
    "check-in refused by the proxy": [Fault(path="/check-in", is_refused=True, times=2)],
    "check-in reset": [Fault(path="/check-in", is_reset=True, times=2)],
    "check-in answered to nobody": [Fault(path="/check-in", is_lost=True)],
    "check-in twice": [Fault(path="/check-in", is_twice=True)],
    "slice cut": [Fault(path="/slice", cut_down=1000), Fault(path="/slice", cut_down=700)],
    "slice reset": [Fault(path="/slice", is_reset=True, times=2)],
    "update cut": [Fault(path="/update", cut_up=500, times=3)],
    "update answered to nobody": [Fault(path="/update", is_lost=True, times=2)],
    "update twice": [Fault(path="/update", is_twice=True)],
    "update late": [Fault(path="/update", is_late=True)],
    "update late and cut": [Fault(path="/update", is_late=True), Fault(path="/update", cut_up=1)],
    "answer cut": [Fault(path="/update", cut_down=10)],
    "all reset for a while": [Fault(is_reset=True, times=12)],
    "all refused for a while": [Fault(is_refused=True, times=12)],
}
"""In "late", an old request reaches the server after a newer one was answered."""

KILL_POINTS = (
    [*PART_POINTS, "before-update-kept", "after-update-commit"]
    if "EDGE_TEST_KILLS" in os.environ
    else ["after-part-kept", "before-parts-removed"]
)

pytestmark = pytest.mark.processes


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(membership, "FIRST_OUTAGE_WAIT_S", 0.02)
    monkeypatch.setattr(membership, "LONGEST_OUTAGE_WAIT_S", 0.1)
    monkeypatch.setattr("edge_sdk.network.short_retries._FIRST_BACKOFF_S", 0.01)


@pytest.fixture
def learner(tmp_path: Path, tiny_llama: Path) -> Iterator[tuple[Proxy, RoundLoop]]:
    """A device of a task with a round for each case, behind a proxy."""
    data = write_jsonl(tmp_path / "d.jsonl", [{"prompt": "what is", "completion": " one"}] * 3)
    with ServerProcess(tmp_path / "server") as server, proxy_to(server.port) as proxy:
        server.command(
            *("task", "create", "t", "--model", str(tiny_llama), "--rank", "4"),
            *("--sketch-sizes", "4", "--rounds", str(len(CASES)), "--cohort-size", "1"),
            *("--local-steps", "1"),
        )
        token = server.command("token", "create")["enrolment_token"]
        yield (
            proxy,
            RoundLoop(
                data=data,
                server=proxy.address,
                model=str(tiny_llama),
                enrolment_token=token,
                state_folder=tmp_path / "device",
                outage_patience_s=20.0,
            ),
        )


def test_every_round_over_a_bad_network_ends_with_one_update(learner, hasty):
    proxy, loop = learner
    rounds = loop.rounds()
    for number, (name, faults) in enumerate(CASES.items(), 1):
        proxy.faults[:] = faults
        done = next(rounds)
        assert (done.round_number, done.counted) == (number, True), name
        assert not [fault for fault in proxy.faults if fault.path and fault.times], name
        status = loop.membership.transport.round_status("t", number)
        assert status.accepted == 1, name
    proxy.faults.clear()
    assert next(rounds, None) is None, "the task is finished"


def test_a_server_that_stays_away_ends_a_round_with_a_typed_error(learner, hasty, monkeypatch):
    proxy, loop = learner
    monkeypatch.setattr(loop.membership, "_outage_patience_s", 0.3)
    rounds = loop.rounds()
    next(rounds)
    proxy.faults[:] = [Fault(is_reset=True, times=10_000)]
    with pytest.raises(ServerUnreachable):
        next(rounds)


def large_spec(name: str, width: int) -> TaskSpec:
    """An adapter whose update at k = 4 has about 16 times ``width`` bytes."""
    spec = tiny_spec(name, r=4, dense=False, sketch_sizes=[4], cohort_size=2, quorum=2)
    layer = LayerSpec(name="model.layers.0.self_attn.q_proj", d_in=width // 2, d_out=width // 2)
    adapter = AdapterSpec(r=4, lora_alpha=8.0, target_modules=["q_proj"], layers=[layer])
    return TaskSpec(
        name=name, base=spec.base, adapter=adapter, training=spec.training, policy=spec.policy
    )


@dataclass
class Uplink:
    """A device with a large update to send, behind a proxy."""

    site: Site
    proxy: Proxy
    spec: TaskSpec
    token: str

    def body(self, seed: int = 1) -> bytes:
        return update_body(self.spec, 4, seed)

    def device(self, **more) -> Transport:
        """A new device with work; more is said to its transport."""
        self.identity = enrol_one(self.proxy.address, self.token, "d")
        transport = self.transport(**more)
        ready = CheckIn(base_digest=BASE_DIGEST, affordable_k=4, examples=5)
        assert transport.check_in(self.spec.name, ready).assignment is not None
        return transport

    def transport(self, **more) -> Transport:
        """Another process of the same device."""
        return Transport(self.proxy.address, self.identity, **({"retries": 0} | more))

    def accepted(self) -> int:
        return self.site.coordinator.round_status(self.spec.name, 1).accepted


@pytest.fixture
def uplink(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Uplink]:
    """By default the update has 2 MB."""
    site = Site(tmp_path)
    spec = site.add_task(large_spec("large", getattr(request, "param", 1 << 17)))
    with (
        live_server(Settings(state=tmp_path), site.clock) as url,
        proxy_to(int(url.rpartition(":")[2])) as proxy,
    ):
        yield Uplink(site, proxy, spec, make_enrolment_token(site.store, 0.0))
    site.store.close()


@pytest.mark.parametrize("uplink", [20_000_000 // 16], indirect=True)
def test_an_upload_cut_at_90_percent_sends_at_most_15_percent_again(uplink):
    """Also if the device is started again in between."""
    device, body = uplink.device(), uplink.body()
    assert len(body) > 19_000_000
    before = uplink.proxy.up_bytes
    uplink.proxy.cut_up_at = before + int(0.9 * len(body))
    with pytest.raises(ServerUnreachable):
        device.submit("large", 1, body)
    came = uplink.proxy.up_bytes - before
    assert came >= 0.9 * len(body)
    restarted = uplink.transport()
    assert restarted.submit("large", 1, body).digest == digest(body)
    again = came + restarted.uploaded_bytes - len(body)
    assert 0 < again <= 0.15 * len(body)
    assert uplink.proxy.up_bytes - before - len(body) <= 0.15 * len(body)
    assert uplink.accepted() == 1


@pytest.mark.parametrize(
    "fault",
    [
        Fault(path="/1", is_late=True),
        Fault(path="/1", is_twice=True),
        Fault(path="/1", is_lost=True),
        Fault(path="/parts", is_lost=True),
        Fault(path="/parts", is_late=True),
        Fault(path="/parts", is_twice=True),
    ],
    ids=["part late", "part twice", "part lost", "last lost", "last late", "last twice"],
)
def test_parts_that_come_late_twice_or_without_answer_make_one_update(uplink, fault):
    device, body = uplink.device(retries=3), uplink.body()
    uplink.proxy.faults.append(fault)
    assert device.submit("large", 1, body).digest == digest(body)
    assert fault.times == 0
    assert uplink.accepted() == 1
    assert not list(uplink.site.settings.blob_folder.glob("parts/*")), "no part is left behind"


@pytest.mark.parametrize("point", KILL_POINTS)
def test_a_server_killed_between_parts_or_at_the_last_word_loses_nothing(tmp_path, point):
    spec = large_spec("large", 1 << 17)
    with ServerProcess(tmp_path) as server:
        settings = Settings(state=tmp_path)
        store, blobs = open_state(settings)
        create_task(store, AdapterShelf(blobs), spec, 1, 0.0)
        identity = enrol_one(server.address, make_enrolment_token(store, time.time()), "d")
        body = update_body(spec, 4, 1)
        ready = CheckIn(base_digest=BASE_DIGEST, affordable_k=4, examples=5)
        Transport(server.address, identity).check_in("large", ready)
        server.kill()
        server.start(failpoint=f"{point}:5" if point.endswith("part-kept") else point)
        device = Transport(server.address, identity, retries=0)
        with pytest.raises(ServerUnreachable):
            device.submit("large", 1, body)
        wait_for(lambda: server.has_died)
        server.kill()
        server.start()
        before = device.uploaded_bytes
        assert device.submit("large", 1, body).digest == digest(body)
        assert device.uploaded_bytes - before < 0.7 * len(body), "what was there is not sent again"
        assert device.round_status("large", 1).accepted == 1
        store.close()


def test_a_capped_device_is_no_faster_than_its_owner_allows(uplink):
    rate = 1_500_000.0
    capped = {"max_upload_bytes_per_s": rate, "max_download_bytes_per_s": 2 * rate}
    device, body = uplink.device(**capped), uplink.body()
    started = time.perf_counter()
    device.slice_body(uplink.spec, 1, 4)
    fetched = time.perf_counter()
    device.submit("large", 1, body)
    ended = time.perf_counter()
    assert fetched - started > 0.8 * (len(body) / (2 * rate) - 0.3)
    assert ended - fetched > 0.8 * (len(body) / rate - 0.3)


def test_a_slice_that_is_cut_again_and_again_is_fetched_once(uplink):
    device = uplink.device()
    uplink.proxy.faults += [Fault(path="/slice", cut_down=700_000) for _ in range(2)]
    before = uplink.proxy.down_bytes
    whole = device.slice_body(uplink.spec, 1, 4)
    assert uplink.proxy.down_bytes - before < 1.1 * len(whole)
    assert uplink.transport().slice_body(uplink.spec, 1, 4) == whole


def test_a_proxy_of_the_environment_is_used_with_its_password(uplink, monkeypatch):
    place = uplink.proxy.address.removeprefix("http://")
    uplink.device()
    monkeypatch.setenv("HTTP_PROXY", f"http://owner:word@{place}")
    for name in ("NO_PROXY", "no_proxy", "http_proxy"):
        monkeypatch.delenv(name, raising=False)
    behind = Transport("http://edge.invalid:8765", uplink.identity, retries=0)
    assert behind.tasks() == ["large"], "only the proxy knows that name"
    assert uplink.proxy.seen[-1] == "http://edge.invalid:8765/v1/tasks"
    assert uplink.proxy.passwords[-1].startswith("Basic ")
    monkeypatch.setenv("NO_PROXY", "edge.invalid")
    with pytest.raises(ServerUnreachable):
        Transport("http://edge.invalid:8765", uplink.identity, retries=0).tasks()


def test_a_server_that_moved_behind_its_name_is_found_again(uplink, monkeypatch):
    uplink.device()
    look_up, place = socket.getaddrinfo, ["127.0.0.1"]

    def resolve(host, *more, **named):
        return look_up(place[0] if host == "edge.invalid" else host, *more, **named)

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    monkeypatch.setenv("NO_PROXY", "*")
    with proxy_to(uplink.proxy.port) as first:
        port = int(first.address.rpartition(":")[2])
        device = Transport(f"http://edge.invalid:{port}", uplink.identity, retries=0)
        assert device.tasks() == ["large"]
    with pytest.raises(ServerUnreachable):
        device.tasks()
    with proxy_to(uplink.proxy.port, "127.0.0.2", port):
        place[0] = "127.0.0.2"
        assert device.tasks() == ["large"]
