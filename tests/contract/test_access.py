"""Over HTTP: who gets in, with what, and every way of being refused."""

from __future__ import annotations

import re
import socket
import time

import pytest
import requests

from edge_sdk.identity.device_key import DeviceKey, make_private_key
from edge_sdk.wire.proofs import access_statement, key_change_statement, leave_statement
from server.access.admins import create_admin, revoke_admin
from server.access.auth import make_enrolment_token, revoke_device, revoke_enrolment_token
from server.access.credentials import Credentials
from server.settings.settings import Settings
from tests.contract.conftest import Service
from tests.contract.documented import operations
from tests.contract.live import live_server
from tests.contract.test_api_errors import check_problem
from tests.server.tasks import TTL_S, Site, TurnedClock, tiny_spec, update_body

PARTS = {"task": "tiny", "number": "1", "version": "0"}
UPDATE = "/v1/tasks/tiny/rounds/1/update"


def paths(scheme):
    """Every operation that asks for a token of this kind."""
    return [
        (method.upper(), re.sub(r"\{(\w+)\}", lambda part: PARTS.get(part[1], "x"), path))
        for method, path, operation in operations()
        if any(scheme in requirement for requirement in operation.get("security", []))
    ]


def call(service, method, path, token, body=True):
    headers = {"Authorization": f"Bearer {token}"} if token is not None else {}
    message = {"base_digest": "ab" * 32, "affordable_k": 1, "examples": 1}
    more = {"json": message} if method == "POST" and body else {}
    return requests.request(method, service.url + path, headers=headers, timeout=30, **more)


def expired(service, device):
    """A token that this server made, and whose time is over."""
    then = TurnedClock(time.time() - 2 * TTL_S)
    with service.site.store.read() as tx:
        row = tx.device(device.id)
    return Credentials(service.site.store, then, TTL_S).access_token(row).access_token


def foreign(tmp_path, device):
    """What another server would give to the same device."""
    other = Site(tmp_path / "foreign", TurnedClock(time.time()))
    other.add_device(device.id)
    with other.store.read() as tx:
        token = Credentials(other.store, other.clock, TTL_S).access_token(tx.device(device.id))
    other.store.close()
    return token.access_token


def test_there_are_endpoints_of_both_kinds():
    assert len(paths("Device")) >= 9
    assert len(paths("Admin")) >= 3


def test_every_endpoint_of_devices_refuses_every_token_that_is_not_good(service, device, tmp_path):
    revoked = service.device("stolen")
    revoke_device(service.site.store, revoked.id, "ann", 0.0)
    admin = create_admin(service.site.store, "ann", "admin", None, "root", 0.0)
    cases = [
        (None, 401, "not_authorized"),
        ("", 401, "not_authorized"),
        ("edge.1.x-1.9999999999." + "0" * 64, 401, "not_authorized"),
        (service.token, 401, "not_authorized"),
        (admin, 401, "not_authorized"),
        (foreign(tmp_path, device), 401, "not_authorized"),
        (expired(service, device), 401, "token_expired"),
        (revoked.token, 403, "revoked"),
    ]
    for method, path in paths("Device"):
        for token, status, code in cases:
            answer = call(service, method, path, token)
            check_problem(answer, status, code)
            assert ("WWW-Authenticate" in answer.headers) is (status == 401)
    assert device.check_in().status_code == 200


def test_every_endpoint_of_admins_refuses_every_token_that_is_not_good(service, device):
    store = service.site.store
    late = create_admin(store, "late", "admin", 1.0, "root", 0.0)
    gone = create_admin(store, "gone", "admin", None, "root", 0.0)
    revoke_admin(store, "gone", "root", 0.0)
    cases = [
        (None, 401, "not_authorized"),
        ("guess", 401, "not_authorized"),
        (service.token, 401, "not_authorized"),
        (device.token, 401, "not_authorized"),
        (late, 401, "token_expired"),
        (gone, 403, "revoked"),
    ]
    for method, path in paths("Admin"):
        for token, status, code in cases:
            check_problem(call(service, method, path, token, body=False), status, code)


def test_devices_are_refused_before_a_byte_of_their_body_is_read(service):
    """The bodies announced here never come; a server that waited for them would not answer."""
    host, port = service.url.removeprefix("http://").split(":")
    for method, path in (("PUT", UPDATE), ("POST", "/v1/tasks/tiny/check-in")):
        with socket.create_connection((host, int(port)), timeout=10) as connection:
            head = f"{method} {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer guess\r\n"
            connection.sendall(f"{head}Content-Length: 1000\r\n\r\n".encode())
            assert connection.recv(12) == b"HTTP/1.1 401"


def test_every_way_of_not_being_enrolled_has_its_code(service):
    store = service.site.store
    late = make_enrolment_token(store, 0.0, expires_at=1.0)
    once = make_enrolment_token(store, 0.0, uses=1)
    taken_back = make_enrolment_token(store, 0.0, name="taken back")
    with store.read() as tx:
        (row,) = [row for row in tx.enrolment_tokens() if row.name == "taken back"]
    revoke_enrolment_token(store, row.id, "ann", 0.0)
    assert service.enrol(token=once).status_code == 201
    check_problem(service.enrol(token="guess"), 401, "not_authorized")
    check_problem(service.enrol(token=late), 401, "token_expired")
    check_problem(service.enrol(token=once), 401, "token_used_up")
    check_problem(service.enrol(token=taken_back), 403, "revoked")
    check_problem(service.enrol(proof="00" * 64), 401, "bad_proof")
    check_problem(service.enrol(public_key="00"), 400, "malformed_message")
    check_problem(service.enrol(proof="x"), 400, "malformed_message")


def test_every_way_of_getting_no_access_has_its_code(service, device):
    nonce = device.challenge()
    other = service.device("other")
    check_problem(device.ask_access(nonce, signature="00" * 64), 401, "bad_proof")
    check_problem(device.ask_access(nonce, signature="x"), 400, "malformed_message")
    check_problem(device.ask_access(other.challenge()), 401, "stale_challenge")
    assert device.ask_access(nonce).status_code == 200
    check_problem(device.ask_access(nonce), 401, "stale_challenge")
    other.id = device.id
    check_problem(other.ask_access(), 401, "bad_proof")
    other.id = "nobody"
    check_problem(other.ask_access(), 401, "not_authorized")
    revoke_device(service.site.store, device.id, "ann", 0.0)
    check_problem(device.ask_access(), 403, "revoked")
    check_problem(device.check_in(), 403, "revoked")


def test_a_key_change_over_http_closes_what_the_old_key_opened(service, device):
    new, nonce = DeviceKey(make_private_key()), device.challenge()
    statement = key_change_statement(device.id, nonce, device.key.public_key, new.public_key)
    message = {
        "nonce": nonce,
        "public_key": new.public_key,
        "signature": device.key.sign(statement),
        "new_signature": new.sign(statement),
    }
    url = f"{service.url}/v1/devices/{device.id}/key"
    wrong = message | {"new_signature": message["signature"]}
    check_problem(requests.post(url, json=wrong, timeout=30), 401, "bad_proof")
    answer = requests.post(url, json=message, timeout=30)
    check_problem(device.check_in(), 401, "not_authorized")
    device.token = answer.json()["access_token"]
    assert device.check_in().status_code == 200
    check_problem(device.ask_access(), 401, "bad_proof")
    check_problem(requests.post(url, json=message, timeout=30), 401, "bad_proof")


def test_a_device_that_leaves_is_refused_from_then_on_and_the_log_says_who(service, device):
    url = f"{service.url}/v1/devices/{device.id}/leave"

    def say(statement, nonce):
        message = {"nonce": nonce, "signature": device.key.sign(statement(device.id, nonce))}
        return requests.post(url, json=message, timeout=30)

    nonce = device.challenge()
    check_problem(say(access_statement, nonce), 401, "bad_proof")
    assert device.check_in().status_code == 200
    left = say(leave_statement, nonce)
    assert (left.status_code, left.json()["device_id"]) == (200, device.id)
    check_problem(device.check_in(), 403, "revoked")
    check_problem(device.ask_access(), 403, "revoked")
    check_problem(say(leave_statement, nonce), 401, "stale_challenge")
    again = say(leave_statement, device.challenge())
    assert (again.status_code, again.json()) == (200, left.json())
    with service.site.store.read() as tx:
        (entry,) = [row for row in tx.audit(100) if row.action == "device.leave"]
    assert entry.who == f"device {device.id}"


def test_an_operator_revokes_a_device_over_http_and_the_log_says_who(service, device):
    store = service.site.store
    tokens = {
        role: create_admin(store, f"{role}er", role, None, "root", 0.0)
        for role in ("read", "operate", "admin")
    }
    url = f"/v1/admin/devices/{device.id}/revoke"
    check_problem(call(service, "POST", url, tokens["read"], False), 403, "not_allowed")
    check_problem(call(service, "GET", "/v1/admin/audit", tokens["operate"]), 403, "not_allowed")
    check_problem(
        call(service, "POST", "/v1/admin/devices/nobody/revoke", tokens["admin"], False),
        404,
        "not_found",
    )
    (before,) = call(service, "GET", "/v1/admin/devices", tokens["read"]).json()
    assert (before["device_id"], before["name"], before["revoked_at"]) == (
        device.id,
        "phone",
        None,
    )
    answer = call(service, "POST", url, tokens["operate"], False)
    assert answer.json()["revoked_at"] > before["enrolled_at"]
    check_problem(device.check_in(), 403, "revoked")
    assert call(service, "POST", url, tokens["admin"], False).json() == answer.json()
    log = call(service, "GET", "/v1/admin/audit?last=1", tokens["admin"]).json()
    assert [(x["who"], x["action"], x["subject"]) for x in log] == [
        ("operateer", "device.revoke", f"{device.id} phone")
    ]


@pytest.mark.parametrize("last", ["0", "1001", "x"])
def test_a_number_of_log_entries_that_cannot_be_is_malformed(service, last):
    token = create_admin(service.site.store, "ann", "admin", None, "root", 0.0)
    answer = call(service, "GET", f"/v1/admin/audit?last={last}", token)
    check_problem(answer, 400, "malformed_message")


@pytest.fixture
def strict(tmp_path):
    """A server that lets nobody do much."""
    site = Site(tmp_path / "state")
    spec = site.add_task(tiny_spec())
    settings = Settings(
        state=site.settings.state,
        device_requests_per_min=4,
        entrance_requests_per_min=8,
        device_upload_bytes_per_day=30_000,
        forwarded_allow_ips=("127.0.0.1",),
    )
    with live_server(settings) as url:
        yield Service(url, site, spec, make_enrolment_token(site.store, 0.0))
    site.store.close()


def test_a_device_that_asks_too_often_is_told_when_to_come_back(strict):
    device, other = strict.device("a"), strict.device("b")
    answers = [device.call("GET", "/v1/tasks") for _ in range(5)]
    assert [answer.status_code for answer in answers] == [200] * 4 + [429]
    check_problem(answers[-1], 429, "too_many_requests")
    assert 1 <= int(answers[-1].headers["Retry-After"]) <= 15
    check_problem(device.put(b"x" * 1000), 429, "too_many_requests")
    assert other.call("GET", "/v1/tasks").status_code == 200


def test_an_address_that_tries_to_enrol_too_often_is_told_when_to_come_back(strict):
    answers = [strict.enrol(token="guess") for _ in range(9)]
    assert [answer.status_code for answer in answers] == [401] * 8 + [429]
    check_problem(strict.enrol(), 429, "too_many_requests")
    assert int(answers[-1].headers["Retry-After"]) >= 1


def test_addresses_behind_a_trusted_proxy_are_told_apart(strict):
    url = f"{strict.url}/v1/devices/x/challenge"

    def ask(address):
        return requests.post(url, headers={"X-Forwarded-For": address}, timeout=30).status_code

    assert [ask("192.0.2.1") for _ in range(9)] == [200] * 8 + [429]
    assert ask("192.0.2.2") == 200


def test_forwarded_headers_of_anybody_else_are_not_believed(tmp_path):
    """By default no proxy is trusted: a new address with every request does not help."""
    with live_server(Settings(state=tmp_path, entrance_requests_per_min=3)) as url:
        statuses = [
            requests.post(
                f"{url}/v1/devices/x/challenge",
                headers={"X-Forwarded-For": f"192.0.2.{i}"},
                timeout=30,
            ).status_code
            for i in range(4)
        ]
    assert statuses == [200, 200, 200, 429]


def test_a_device_may_send_so_many_bytes_a_day_and_no_more(strict):
    device = strict.device()
    device.check_in(affordable_k=1)
    limit_bytes = 30_000
    body = b"x" * 9_000
    for _ in range(2):
        assert device.put(body).status_code == 400
    with strict.site.store.read() as tx:
        assert tx.upload_bytes(device.id, int(time.time() // 86_400)) == 18_000
    with strict.site.store.write() as tx:
        tx.add_wasted_bytes(device.id, int(time.time() // 86_400), limit_bytes - 18_000)
    answer = device.put(update_body(strict.spec, 1, seed=1))
    check_problem(answer, 429, "quota_exceeded")
    assert 0 < int(answer.headers["Retry-After"]) <= 86_400
