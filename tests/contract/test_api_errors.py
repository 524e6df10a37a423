"""Every refusal of a live server: its status, its code, and that it changed nothing."""

import http.client
import json
import socket
import sqlite3

import numpy as np
import pytest
import requests

from edge_sdk.errors import by_code
from edge_sdk.wire import payload
from edge_sdk.wire.messages import Problem, UpdateReport, decode_message, encode_message
from server.http.problems import STATUS
from server.storage import sqlite_engine
from tests.contract.conftest import MAX_JSON_BYTES, Device
from tests.contract.documented import is_announced
from tests.server.tasks import random_arrays, update_body, wait_until

UPDATE = "/v1/tasks/tiny/rounds/1/update"


def check_problem(answer, status, code):
    """The answer is a problem of this status and code, and no more than that."""
    assert answer.headers["Content-Type"] == "application/problem+json"
    problem = decode_message(Problem, answer.content)
    assert (answer.status_code, problem.status, problem.code) == (status, status, code)
    assert by_code()[code] in STATUS
    request = answer.request
    assert is_announced(request.method, request.url, status, code)
    assert "Traceback" not in problem.detail
    return problem


GUARDED = [
    ("GET", "/v1/tasks"),
    ("GET", "/v1/tasks/tiny"),
    ("POST", "/v1/tasks/tiny/check-in"),
    ("GET", "/v1/tasks/tiny/rounds/1"),
    ("GET", "/v1/tasks/tiny/rounds/1/slice"),
    ("PUT", UPDATE),
    ("GET", "/v1/tasks/tiny/adapters"),
    ("GET", "/v1/tasks/tiny/adapters/0"),
]


@pytest.mark.parametrize(("method", "path"), GUARDED)
def test_every_endpoint_of_devices_needs_a_device_token(service, method, path):
    message = {"base_digest": "ab" * 32, "affordable_k": 1, "examples": 1}
    body = {"json": message} if method == "POST" else {}
    for header in (None, "Bearer wrong", "Bearer ", "Basic YTpi", "wrong"):
        headers = {} if header is None else {"Authorization": header}
        answer = requests.request(method, service.url + path, headers=headers, timeout=10, **body)
        check_problem(answer, 401, "not_authorized")
        assert answer.headers["WWW-Authenticate"] == "Bearer"


def test_an_enrolment_token_is_no_device_token_and_the_other_way_round(service, device):
    check_problem(Device(service.url, service.token).check_in(), 401, "not_authorized")
    check_problem(service.enrol(token=device.token), 401, "not_authorized")


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"base_digest": "x"}', b'{"affordable_k": 0}'],
)
def test_a_malformed_message_is_a_problem_of_the_protocol(device, body):
    answer = device.call(
        "POST",
        "/v1/tasks/tiny/check-in",
        data=body,
        headers={"Content-Type": "application/json"},
    )
    check_problem(answer, 400, "malformed_message")


def test_a_message_says_which_field_is_wrong(device):
    problem = check_problem(device.check_in(affordable_k="many"), 400, "malformed_message")
    assert "affordable_k" in problem.detail
    problem = check_problem(device.check_in(examples=0), 400, "malformed_message")
    assert "examples=0" in problem.detail


@pytest.mark.parametrize("name", ["", "x" * 101, "tab\t", "\ud800"])
def test_a_device_name_that_cannot_be_shown_is_refused(service, name):
    check_problem(service.enrol(name=name), 400, "malformed_message")


def test_unknown_fields_are_ignored(device):
    assert device.check_in(favourite_colour="blue").status_code == 200


@pytest.mark.parametrize("number", ["0", "-1", "x", "1.5", "9" * 30])
def test_a_round_number_that_cannot_be_is_malformed(device, number):
    answer = device.call("GET", f"/v1/tasks/tiny/rounds/{number}")
    check_problem(answer, 400, "malformed_message")


def test_a_check_in_that_does_not_fit_the_task_is_refused(device):
    check_problem(device.check_in(protocol=2), 400, "protocol_mismatch")
    check_problem(device.check_in(base_digest="cd" * 32), 409, "wrong_base_model")
    check_problem(device.check_in("none"), 404, "not_found")
    check_problem(device.call("GET", "/v1/tasks/tiny/rounds/1"), 404, "not_found")


def test_a_device_that_can_afford_no_sketch_is_told_the_smallest(service, device):
    from tests.server.tasks import tiny_spec

    service.site.add_task(tiny_spec("coarse", sketch_sizes=[4, 8]))
    problem = check_problem(device.check_in("coarse", affordable_k=3), 400, "invalid_config")
    assert "k=4" in problem.detail


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/"),
        ("GET", "/v1"),
        ("GET", "/v2/tasks"),
        ("DELETE", "/v1/tasks/tiny"),
        ("POST", UPDATE),
        ("GET", "/v1/tasks/none"),
        ("GET", "/v1/tasks/none/adapters"),
        ("GET", "/v1/tasks/tiny/adapters/7"),
        ("GET", "/v1/tasks/tiny/rounds/7"),
        ("GET", "/v1/tasks/tiny/rounds/7/slice"),
        ("PUT", "/v1/tasks/tiny/rounds/7/update"),
        ("GET", "/v1/tasks/%ff/rounds/1"),
    ],
)
def test_what_does_not_exist_is_not_found(device, method, path):
    check_problem(device.call(method, path), 404, "not_found")


def test_a_name_that_no_database_can_hold_is_malformed(device):
    check_problem(device.call("GET", "/v1/tasks/%00/rounds/1"), 400, "malformed_message")


def test_work_of_another_device_is_not_assigned(service, device):
    device.check_in()
    other = service.device("other")
    answer = other.call("GET", "/v1/tasks/tiny/rounds/1/slice")
    check_problem(answer, 403, "not_assigned")
    check_problem(other.put(update_body(service.spec, 8, 1)), 403, "not_assigned")


def test_another_update_conflicts_and_a_late_one_finds_the_round_closed(service, device):
    other, late = service.device("other"), service.device("late")
    late.check_in()
    device.train(service.spec, seed=1)
    check_problem(device.put(update_body(service.spec, 8, seed=2)), 409, "update_conflict")
    other.train(service.spec, seed=3)
    check_problem(late.put(update_body(service.spec, 8, seed=4)), 409, "round_closed")
    answer = late.call("GET", "/v1/tasks/tiny/rounds/1/slice")
    check_problem(answer, 409, "round_closed")


def bad_updates(spec):
    report = encode_message(UpdateReport(examples=1, loss=1.0, seconds=1.0, peak_rss_bytes=1))
    arrays = random_arrays(spec.adapter, 8, 1)
    broken = arrays | {"score.bias": np.array([np.nan, 0], np.float32)}
    foreign = json.dumps(json.loads(report) | {"protocol": 2}).encode()
    return {
        "malformed_payload": payload.encode(random_arrays(spec.adapter, 4, 1), "fp32", report),
        "malformed_message": payload.encode(arrays, "fp32", b'{"examples": "all"}'),
        "not_finite": payload.encode(broken, "fp32", report),
        "protocol_mismatch": payload.encode(arrays, "fp32", foreign),
    }


@pytest.mark.parametrize(
    "code", ["malformed_payload", "malformed_message", "not_finite", "protocol_mismatch"]
)
def test_a_bad_update_is_refused_by_its_code_and_a_good_one_still_taken(service, device, code):
    device.check_in()
    check_problem(device.put(bad_updates(service.spec)[code]), 400, code)
    assert device.call("GET", "/v1/tasks/tiny/rounds/1").json()["accepted"] == 0
    assert device.train(service.spec).status_code == 200


def test_a_body_that_is_not_what_was_announced_is_refused(service, device):
    device.check_in()
    body = update_body(service.spec, 8, seed=1)
    for header in (payload.content_digest(body + b"x"), "nonsense"):
        check_problem(device.put(body, **{"Content-Digest": header}), 400, "digest_mismatch")
    check_problem(device.call("PUT", UPDATE, data=body), 400, "digest_mismatch")


@pytest.mark.parametrize("is_announced", [True, False])
def test_an_update_beyond_its_limit_is_refused_however_it_is_sent(service, device, is_announced):
    device.check_in()
    size = 20 << 20
    body = bytes(size) if is_announced else (bytes(1 << 16) for _ in range(size >> 16))
    check_problem(device.call("PUT", UPDATE, data=body), 413, "too_large")
    assert device.train(service.spec).status_code == 200


@pytest.mark.parametrize("is_announced", [True, False])
@pytest.mark.parametrize("path", ["/v1/enrol", "/v1/tasks/tiny/check-in"])
def test_json_beyond_its_limit_is_refused_however_it_is_sent(device, path, is_announced):
    size = MAX_JSON_BYTES + 1
    body = b" " * size if is_announced else iter([b" "] * size)
    answer = device.call("POST", path, data=body, headers={"Content-Type": "application/json"})
    check_problem(answer, 413, "too_large")


def test_a_refusal_reaches_a_device_that_is_still_sending_a_large_body(service, device):
    """A connection that is reset instead would never tell a plain client what is wrong."""
    connection = http.client.HTTPConnection(service.url.removeprefix("http://"), timeout=30)
    for token, status in (("wrong", 401), (device.token, 404), (device.token, 404)):
        headers = {"Authorization": f"Bearer {token}"}
        connection.request("PUT", UPDATE, body=bytes(20 << 20), headers=headers)
        answer = connection.getresponse()
        assert (answer.status, json.loads(answer.read())["status"]) == (status, status)
    connection.close()


@pytest.fixture
def impatience(monkeypatch):
    """Connections opened from now on wait for a lock only briefly."""
    monkeypatch.setattr(sqlite_engine, "_BUSY_TIMEOUT_MS", 50)


def test_a_device_that_vanishes_while_sending_leaves_nothing(service, device, caplog):
    device.check_in()
    partial = service.site.settings.blob_folder / "partial"
    host, port = service.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        head = f"PUT {UPDATE} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {device.token}\r\n"
        connection.sendall(f"{head}Content-Length: 5000\r\n\r\n".encode() + b"x" * 1000)
        wait_until(lambda: list(partial.iterdir()))
    wait_until(lambda: not list(partial.iterdir()))
    assert device.train(service.spec).status_code == 200
    assert "Traceback" not in caplog.text


def test_a_locked_database_is_busy_and_says_when_to_come_back(impatience, service, device):
    path = service.site.settings.state / "server.sqlite"
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    answer = device.check_in()
    other.execute("ROLLBACK")
    other.close()
    check_problem(answer, 503, "server_busy")
    assert int(answer.headers["Retry-After"]) >= 1
    assert device.check_in().status_code == 200


def test_a_lost_adapter_file_is_a_storage_error(service, device):
    device.check_in()
    (info,) = device.call("GET", "/v1/tasks/tiny/adapters").json()
    service.site.blobs.path(info["digest"]).unlink()
    check_problem(device.call("GET", "/v1/tasks/tiny/adapters/0"), 507, "storage_error")
    check_problem(device.call("GET", "/v1/tasks/tiny/rounds/1/slice"), 507, "storage_error")


def test_an_adapter_file_of_another_length_is_a_storage_error(service, device):
    (info,) = device.call("GET", "/v1/tasks/tiny/adapters").json()
    service.site.blobs.path(info["digest"]).write_bytes(b"short")
    check_problem(device.call("GET", "/v1/tasks/tiny/adapters/0"), 507, "storage_error")


def test_a_failure_nobody_foresaw_is_logged_and_tells_nothing(service, device, caplog):
    path = service.site.settings.state / "server.sqlite"
    other = sqlite3.connect(path)
    other.execute("UPDATE tasks SET spec = x'736563726574'")
    other.commit()
    other.close()
    answer = device.call("GET", "/v1/tasks/tiny")
    problem = check_problem(answer, 500, "server_failed")
    assert "secret" not in problem.detail
    wait_until(lambda: "Traceback" in caplog.text)  # logged after the answer is sent


def test_tokens_never_reach_the_log(service, caplog):
    caplog.set_level("DEBUG")
    device = service.device()
    device.train(service.spec)
    Device(service.url, device.token + "x").check_in()
    assert device.token not in caplog.text
    assert service.token not in caplog.text
