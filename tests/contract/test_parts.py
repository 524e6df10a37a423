"""Updates that come in numbered parts, over a folder and over a real S3 server."""

import hashlib
from dataclasses import dataclass

import pytest

from edge_sdk.wire import payload
from edge_sdk.wire.update_body import update_limit
from server.access.auth import make_enrolment_token
from server.operation.collecting import Collecting
from server.settings.settings import Settings
from tests.contract.conftest import Device, Service
from tests.contract.live import live_server
from tests.contract.test_api_errors import check_problem
from tests.server.places import BucketPlace
from tests.server.tasks import Site, tiny_spec, update_body

K, QUOTA_BYTES, PARTS = 4, 1_000_000, 4


@dataclass
class House:
    """A server and where it keeps things."""

    service: Service
    site: Site

    def accepted(self, task: str) -> int:
        return self.site.coordinator.round_status(task, 1).accepted

    def counted(self, device: Device) -> int:
        """Bytes of the device's daily quota that are used."""
        with self.site.store.read() as tx:
            return tx.upload_bytes(device.id, int(self.site.clock() // 86_400))


@pytest.fixture(scope="module", params=["folder", "bucket"])
def house(tmp_path_factory, request):
    folder = tmp_path_factory.mktemp("house")
    site, settings = Site(folder), {"state": folder, "device_upload_bytes_per_day": QUOTA_BYTES}
    if request.param == "bucket":
        place = BucketPlace(request.getfixturevalue("s3"), folder / "uploads")
        site.use(place.blobs)
        settings |= {"blob_url": place.url, "blob_endpoint": place.endpoint}
    with live_server(Settings(**settings), site.clock) as url:
        token = make_enrolment_token(site.store, 0.0)
        yield House(Service(url, site, tiny_spec(), token), site)
    site.store.close()


@pytest.fixture
def task(house, request):
    """A new task with one round for two devices."""
    name = f"t{hashlib.sha256(request.node.name.encode()).hexdigest()[:12]}"
    return house.site.add_task(tiny_spec(name, cohort_size=2, quorum=2))


@pytest.fixture
def device(house, task):
    device = house.service.device()
    assert device.check_in(task.name, K).json()["assignment"]["k"] == K
    return device


def cut(body: bytes) -> list[bytes]:
    step = -(-len(body) // PARTS)
    return [body[start : start + step] for start in range(0, len(body), step)]


def place(task) -> str:
    return f"/v1/tasks/{task.name}/rounds/1/parts"


def send(device, task, body, index, content=None, **headers):
    """Send one part, or something else in its place."""
    content = cut(body)[index] if content is None else content
    headers = {"Content-Digest": payload.content_digest(content)} | headers
    path = f"{place(task)}/{payload.digest(body)}/{index}"
    return device.call("PUT", path, data=content, headers=headers)


def held(device, task, body) -> list[int]:
    return device.call("GET", f"{place(task)}/{payload.digest(body)}").json()["parts"]


def finish(device, task, body, **changes):
    notice = {"size_bytes": len(body), "digest": payload.digest(body)} | changes
    return device.call("PUT", place(task), json=notice)


def test_parts_in_any_order_make_one_update_that_counts_once(house, task, device):
    body = update_body(task, K, seed=1)
    for index in (2, 0, 3, 2, 1):
        assert send(device, task, body, index).status_code == 204
    assert held(device, task, body) == [0, 1, 2, 3]
    assert house.accepted(task.name) == 0, "nothing counts before the last word"
    receipt = finish(device, task, body)
    assert receipt.json()["digest"] == payload.digest(body)
    assert finish(device, task, body).json() == receipt.json()
    assert device.put(body, task=task.name).json() == receipt.json()
    assert house.accepted(task.name) == 1
    assert held(device, task, body) == [], "what was put together is not kept twice"
    assert house.site.blobs.read(payload.digest(body)) == body


def test_a_days_quota_counts_the_bytes_that_came_and_no_more(house, task, device):
    body = update_body(task, K, seed=1)
    for index in (0, 1, 2, 3, 3):
        send(device, task, body, index)
    twice = len(cut(body)[3])
    assert house.counted(device) == len(body) + twice
    finish(device, task, body)
    finish(device, task, body)
    assert house.counted(device) == len(body) + twice


def test_a_part_beyond_the_days_quota_is_refused_before_it_is_read(house, task, device):
    body = update_body(task, K, seed=1)
    large = bytes(update_limit(task, K))
    for _ in range(QUOTA_BYTES // len(large)):
        assert send(device, task, body, 0, content=large).status_code == 204
    check_problem(send(device, task, body, 0, content=large), 429, "quota_exceeded")
    assert QUOTA_BYTES - len(large) < house.counted(device) <= QUOTA_BYTES


def test_what_is_not_the_whole_update_is_refused_and_can_be_completed(house, task, device):
    body = update_body(task, K, seed=1)
    for index in (0, 1, 3):
        send(device, task, body, index)
    check_problem(finish(device, task, body), 400, "digest_mismatch")
    assert held(device, task, body) == [0, 1, 3], "a gap costs nothing"
    send(device, task, body, 2)
    assert finish(device, task, body).status_code == 200


def test_parts_that_make_another_body_are_refused_and_dropped(house, task, device):
    body = update_body(task, K, seed=1)
    for index in range(PARTS):
        send(device, task, body, index, content=bytes(len(cut(body)[index])))
    check_problem(finish(device, task, body), 400, "digest_mismatch")
    assert held(device, task, body) == []
    assert house.accepted(task.name) == 0


def test_a_part_that_changed_on_the_way_is_refused(house, task, device):
    body = update_body(task, K, seed=1)
    wrong = {"Content-Digest": payload.content_digest(b"other")}
    check_problem(send(device, task, body, 0, **wrong), 400, "digest_mismatch")
    check_problem(send(device, task, body, 0, content=b""), 400, "malformed_payload")
    assert held(device, task, body) == []


def test_parts_are_never_more_than_an_update_may_have(house, task, device):
    body, limit = update_body(task, K, seed=1), update_limit(task, K)
    check_problem(send(device, task, body, 0, content=bytes(limit + 1)), 413, "too_large")
    assert send(device, task, body, 0, content=bytes(limit - 9)).status_code == 204
    check_problem(send(device, task, body, 1, content=bytes(10)), 413, "too_large")
    assert send(device, task, body, 1, content=bytes(9)).status_code == 204
    check_problem(send(device, task, body, 99, content=b"x"), 413, "too_large")
    check_problem(finish(device, task, body, size_bytes=limit + 1), 413, "too_large")


def test_parts_of_another_update_make_room(house, task, device):
    first, second = (update_body(task, K, seed=seed) for seed in (1, 2))
    send(device, task, first, 0)
    send(device, task, second, 0)
    assert (held(device, task, first), held(device, task, second)) == ([], [0])


def test_nobody_sees_or_completes_the_parts_of_another_device(house, task, device):
    body, other = update_body(task, K, seed=1), house.service.device("other")
    send(device, task, body, 0)
    check_problem(send(other, task, body, 0), 403, "not_assigned")
    check_problem(finish(other, task, body), 403, "not_assigned")
    path = f"{place(task)}/{payload.digest(body)}"
    check_problem(other.call("GET", path), 403, "not_assigned")
    other.check_in(task.name, K)
    assert held(other, task, body) == []


def test_the_collector_removes_parts_that_were_given_up(house, task, device):
    body = update_body(task, K, seed=1)
    send(device, task, body, 0)
    Collecting(house.site.store, house.site.blobs, house.site.clock, 0.0).collect()
    assert held(device, task, body) == [0], "its device may come back within a day"
    house.site.blobs.parts.remove_leftovers(-2.0)
    assert held(device, task, body) == []
