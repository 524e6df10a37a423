"""Updates that go by way of a real S3 server, at addresses the server signs."""

import hashlib
import hmac
from dataclasses import dataclass, replace
from urllib.parse import parse_qs, quote, urlsplit

import pytest
import requests

from edge_sdk.network.transport import Transport
from edge_sdk.wire import payload
from edge_sdk.wire.messages import CheckIn
from edge_sdk.wire.update_body import update_limit
from server.access.auth import make_enrolment_token
from server.settings.settings import Settings
from tests.contract.conftest import Device, Service
from tests.contract.live import live_server
from tests.contract.test_api_errors import check_problem
from tests.numpy_device import enrol_one
from tests.server.places import BucketPlace
from tests.server.tasks import BASE_DIGEST, Site, tiny_spec, update_body

K, QUOTA_BYTES = 4, 100_000


@dataclass
class House:
    """A server that offers its bucket, and the bucket."""

    service: Service
    place: BucketPlace
    settings: Settings

    def staged(self) -> set[str]:
        """What devices put there and nobody took away."""
        store = self.place.blobs.staging._store
        return {found["path"] for batch in store.list() for found in batch}

    def accepted(self, task: str) -> int:
        return self.service.site.coordinator.round_status(task, 1).accepted

    def wasted(self, device: Device) -> int:
        with self.service.site.store.read() as tx:
            return tx.upload_bytes(device.id, int(self.service.site.clock() // 86_400))


@pytest.fixture(scope="module")
def house(tmp_path_factory, s3):
    """One for all tests: each has a task and devices of its own."""
    folder = tmp_path_factory.mktemp("house")
    site, place = Site(folder), BucketPlace(s3, folder / "uploads")
    site.use(place.blobs)
    settings = Settings(
        state=folder,
        blob_url=place.url,
        blob_endpoint=place.endpoint,
        presigned_uploads=True,
        device_upload_bytes_per_day=QUOTA_BYTES,
    )
    with live_server(settings, site.clock) as url:
        service = Service(url, site, tiny_spec(), make_enrolment_token(site.store, 0.0))
        yield House(service, place, settings)
    site.store.close()


@pytest.fixture
def task(house, request):
    """A new task with one round for two devices."""
    name = f"t{hashlib.sha256(request.node.name.encode()).hexdigest()[:12]}"
    return house.service.site.add_task(tiny_spec(name, cohort_size=2, quorum=2))


def assigned(house, task) -> Device:
    """A device with work at k=4 in round 1."""
    device = house.service.device()
    assert device.check_in(task.name, K).json()["assignment"]["k"] == K
    return device


def notice_of(body: bytes, **changes):
    return {"size_bytes": len(body), "digest": payload.digest(body)} | changes


def staged(device, task, method, body, **changes):
    path = f"/v1/tasks/{task.name}/rounds/1/staged"
    return device.call(method, path, json=notice_of(body, **changes))


def put_at_signed(device, task, body, sent=None) -> str:
    """Announce a body and put it, or something else, where the server says; returns the address."""
    url = staged(device, task, "POST", body).json()["url"]
    assert requests.put(url, data=body if sent is None else sent, timeout=30).ok
    return url


def test_an_update_goes_by_way_of_the_store_and_counts_once(house, task):
    device = assigned(house, task)
    body = update_body(task, K, seed=1)
    url = put_at_signed(device, task, body)
    assert house.staged() == {f"{device.id}/{task.name}/1"}
    assert house.accepted(task.name) == 0, "only what the device tells of is looked at"
    receipt = staged(device, task, "PUT", body)
    assert receipt.json()["digest"] == payload.digest(body)
    assert house.place.blobs.read(payload.digest(body)) == body
    assert (house.accepted(task.name), house.staged()) == (1, set())
    assert staged(device, task, "PUT", body).json() == receipt.json()
    assert device.put(body, task=task.name).json() == receipt.json()
    assert house.accepted(task.name) == 1
    assert urlsplit(url).path.startswith(urlsplit(house.place.address).path + "/staged/")


def test_an_update_in_codes_goes_by_way_of_the_store_up_to_its_own_limit(house, task):
    coded = tiny_spec(f"{task.name}c", cohort_size=2, quorum=2, update_encoding="int4")
    house.service.site.add_task(coded)
    device = assigned(house, coded)
    body = update_body(coded, K, seed=1)
    large = staged(device, coded, "POST", body, size_bytes=update_limit(coded, K) + 1)
    check_problem(large, 413, "too_large")
    put_at_signed(device, coded, body)
    assert staged(device, coded, "PUT", body).json()["digest"] == payload.digest(body)
    assert house.accepted(coded.name) == 1


def test_the_sdk_uses_the_store_by_itself(house, task, monkeypatch):
    identity = enrol_one(house.service.url, house.service.token, "a")
    transport = Transport(house.service.url, identity, retries=0)
    transport.check_in(task.name, CheckIn(base_digest=BASE_DIGEST, affordable_k=K, examples=5))
    paths = []
    exchange = transport._receive

    def watch(method, path, *more):
        paths.append((method, path.rpartition("/")[2]))
        return exchange(method, path, *more)

    monkeypatch.setattr(transport, "_receive", watch)
    body = update_body(task, K, seed=1)
    assert transport.submit(task.name, 1, body).digest == payload.digest(body)
    assert paths == [("POST", "staged"), ("PUT", "staged")]
    assert house.accepted(task.name) == 1
    assert transport.uploaded_bytes > len(body)


def signature_of(method, url, secret="edge-tests"):
    """Sign a request as the manual of AWS Signature Version 4 says, by its query."""
    parts = urlsplit(url)
    query = {name: values[0] for name, values in parse_qs(parts.query).items()}
    given = query.pop("X-Amz-Signature")
    scope = query["X-Amz-Credential"].partition("/")[2]
    pairs = [f"{quote(n, safe='')}={quote(v, safe='')}" for n, v in sorted(query.items())]
    canonical = [method, parts.path, "&".join(pairs), f"host:{parts.netloc}\n", "host"]
    digest = hashlib.sha256("\n".join([*canonical, "UNSIGNED-PAYLOAD"]).encode()).hexdigest()
    text = "\n".join(["AWS4-HMAC-SHA256", query["X-Amz-Date"], scope, digest])
    key = f"AWS4{secret}".encode()
    for part in (*scope.split("/"), text):
        key = hmac.new(key, part.encode(), hashlib.sha256).digest()
    return given, key.hex(), query


def test_an_address_is_good_for_one_kind_of_request_to_one_place_for_five_minutes(house, task):
    device = assigned(house, task)
    answer = staged(device, task, "POST", b"x").json()
    given, expected, query = signature_of("PUT", answer["url"])
    assert given == expected
    assert answer["expires_in_s"] == float(query["X-Amz-Expires"]) == 300
    for method, changed in (("GET", ""), ("DELETE", ""), ("PUT", "x")):
        other = answer["url"].replace("/1?", f"/1{changed}?")
        assert signature_of(method, other)[1] != given


def test_nothing_is_signed_that_is_of_no_use(house, task):
    device, stranger = assigned(house, task), house.service.device()
    body = update_body(task, K, seed=1)
    limit = payload.body_limit(task.adapter, K)
    check_problem(staged(stranger, task, "POST", body), 403, "not_assigned")
    large = staged(device, task, "POST", body, size_bytes=limit + 1)
    check_problem(large, 413, "too_large")
    for wrong in ({"size_bytes": 0}, {"digest": "../" * 21 + "x"}):
        check_problem(staged(device, task, "POST", body, **wrong), 400, "malformed_message")
    device.put(body, task=task.name)
    other = update_body(task, K, seed=2)
    for method in ("POST", "PUT"):
        check_problem(staged(device, task, method, other), 409, "update_conflict")


def test_a_late_device_gets_no_address_and_its_staged_update_is_not_read(house, task):
    device, other = assigned(house, task), assigned(house, task)
    body = update_body(task, K, seed=1)
    put_at_signed(device, task, body)
    other.put(update_body(task, K, seed=2), task=task.name)
    house.service.site.clock.now += task.policy.deadline_s + 1
    for method in ("POST", "PUT"):
        check_problem(staged(device, task, method, body), 409, "round_closed")
    assert house.wasted(device) == 0


def test_a_day_that_is_full_is_told_before_anything_is_signed_or_read(house, task):
    device = assigned(house, task)
    body = update_body(task, K, seed=1)
    put_at_signed(device, task, body)
    with house.service.site.store.write() as tx:
        day = int(house.service.site.clock() // 86_400)
        tx.add_wasted_bytes(device.id, day, QUOTA_BYTES - len(body) + 1)
    for method in ("POST", "PUT"):
        check_problem(staged(device, task, method, body), 429, "quota_exceeded")
    assert house.accepted(task.name) == 0


def test_what_is_staged_and_too_large_is_not_read_and_removed(house, task):
    device = assigned(house, task)
    body = update_body(task, K, seed=1)
    limit = payload.body_limit(task.adapter, K)
    put_at_signed(device, task, body, sent=bytes(limit + 1))
    check_problem(staged(device, task, "PUT", body), 413, "too_large")
    assert house.wasted(device) == 0
    assert f"{device.id}/{task.name}/1" not in house.staged()


@pytest.mark.parametrize("change", [lambda body: body[:-1], lambda body: body[:-1] + b"?"])
def test_other_bytes_than_announced_are_refused_and_count_for_the_day(house, task, change):
    device = assigned(house, task)
    body = update_body(task, K, seed=1)
    sent = change(body)
    put_at_signed(device, task, body, sent=sent)
    check_problem(staged(device, task, "PUT", body), 400, "digest_mismatch")
    assert house.wasted(device) == (len(body) if len(sent) == len(body) else 0)
    assert house.accepted(task.name) == 0
    assert device.put(body, task=task.name).ok, "the direct way stays"


def test_what_is_staged_goes_through_the_same_checks(house, task):
    device = assigned(house, task)
    for body, code in (
        (b"no tensors", "malformed_payload"),
        (update_body(task, 1, seed=1), "malformed_payload"),
        (update_body(task, K, seed=1, scale=float("nan")), "not_finite"),
    ):
        put_at_signed(device, task, body)
        check_problem(staged(device, task, "PUT", body), 400, code)
    assert house.accepted(task.name) == 0


def test_a_device_cannot_name_what_another_has_staged(house, task):
    owner, thief = assigned(house, task), assigned(house, task)
    body = update_body(task, K, seed=1)
    put_at_signed(owner, task, body)
    check_problem(staged(thief, task, "PUT", body), 404, "not_found")
    assert staged(owner, task, "PUT", body).ok
    assert house.accepted(task.name) == 1


def test_an_address_used_again_after_the_receipt_changes_nothing(house, task):
    device = assigned(house, task)
    body, other = update_body(task, K, seed=1), update_body(task, K, seed=2)
    url = put_at_signed(device, task, body)
    receipt = staged(device, task, "PUT", body).json()
    assert requests.put(url, data=other, timeout=30).ok
    check_problem(staged(device, task, "PUT", other), 409, "update_conflict")
    assert house.place.blobs.read(receipt["digest"]) == body
    assert staged(device, task, "PUT", body).json() == receipt
    assert house.staged().isdisjoint({f"{device.id}/{task.name}/1"})


def test_a_server_that_was_not_asked_to_offers_nothing_though_it_has_a_bucket(house, task):
    settings = replace(house.settings, presigned_uploads=False)
    with live_server(settings, house.service.site.clock) as url:
        device = replace(house.service.device(), url=url)
        answer = device.check_in(task.name, K)
        assert (answer.status_code, "Edge-Uploads" in answer.headers) == (200, False)
        for method in ("POST", "PUT"):
            check_problem(staged(device, task, method, b"x"), 404, "not_found")
