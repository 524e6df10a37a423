"""What an operator and a load balancer see of a live server."""

import io
import json
import logging
import re
import shutil

import pytest
import requests
from prometheus_client.parser import text_string_to_metric_families

from edge_sdk.wire.messages import Problem, decode_message
from server.access.admins import create_admin
from server.operation.logs import JsonLines
from server.settings.settings import Settings
from tests.contract.live import live_server
from tests.server.tasks import wait_until


@pytest.fixture
def log_lines():
    """Every line the server logs while the test runs, as JSON; call it to read them."""
    log, stream = logging.getLogger("server"), io.StringIO()
    handler, level = logging.StreamHandler(stream), log.level
    handler.setFormatter(JsonLines())
    log.addHandler(handler)
    log.setLevel("DEBUG")
    yield lambda: [json.loads(line) for line in stream.getvalue().splitlines()]
    log.removeHandler(handler)
    log.setLevel(level)


@pytest.fixture
def reader(service):
    """The headers of an admin who may read."""
    token = create_admin(service.site.store, "watcher", "read", None, "test", 0.0)
    return {"Authorization": f"Bearer {token}"}


def get(service, path, **headers):
    return requests.get(service.url + path, headers=headers, timeout=30)


def requests_logged(lines):
    return [line for line in lines if "route" in line]


def test_a_ready_server_says_so_to_anybody(service):
    answer = get(service, "/readyz")
    assert (answer.status_code, answer.json()) == (200, {"status": "ready"})


def test_a_server_whose_blobs_are_gone_is_alive_but_not_ready(service):
    folder = service.site.settings.blob_folder
    shutil.rmtree(folder)
    folder.write_text("in the way")
    answer = get(service, "/readyz")
    problem = decode_message(Problem, answer.content)
    assert (answer.status_code, problem.code) == (503, "server_busy")
    assert "blobs" in problem.detail
    assert "database" not in problem.detail
    assert str(folder) not in answer.text
    assert int(answer.headers["Retry-After"]) >= 1
    assert get(service, "/healthz").status_code == 200


def test_the_id_of_a_request_is_in_its_answer_its_problem_and_its_log_line(service, log_lines):
    answer = get(service, "/v1/tasks", **{"X-Request-Id": "trace-1"})
    assert answer.headers["X-Request-Id"] == "trace-1"
    assert decode_message(Problem, answer.content).request_id == "trace-1"
    wait_until(lambda: requests_logged(log_lines()))
    (line,) = requests_logged(log_lines())
    assert (line["request_id"], line["route"], line["status"]) == ("trace-1", "/v1/tasks", 401)


def test_a_request_without_an_id_gets_one(service):
    answer = get(service, "/v1/nowhere")
    assert re.fullmatch("[0-9a-f]{32}", answer.headers["X-Request-Id"])
    assert decode_message(Problem, answer.content).request_id == answer.headers["X-Request-Id"]


def test_the_line_of_a_request_names_template_and_device_and_no_secret(service, device, log_lines):
    device.train(service.spec)
    wait_until(lambda: len(requests_logged(log_lines())) == 2)
    check_in, update = requests_logged(log_lines())
    assert check_in["route"] == "/v1/tasks/{task}/check-in"
    assert update["route"] == "/v1/tasks/{task}/rounds/{number}/update"
    assert (update["method"], update["status"]) == ("PUT", 200)
    assert update["bytes_in"] > 1000
    assert 0 < update["bytes_out"] < 1000
    assert re.fullmatch("[0-9a-f]{16}", update["device_id"])
    assert check_in["device_id"] == update["device_id"]
    text = json.dumps(log_lines())
    assert device.token not in text
    assert service.token not in text
    assert service.spec.base.digest not in text


def test_an_id_follows_a_request_into_its_worker_thread(service, device, log_lines):
    """A step down is logged deep in the coordinator, on another thread than the request's."""
    device.check_in(affordable_k=8)
    device.call(
        "POST",
        "/v1/tasks/tiny/check-in",
        json={"base_digest": service.spec.base.digest, "affordable_k": 1, "examples": 5},
        headers={"X-Request-Id": "step-down"},
    )
    (line,) = [line for line in log_lines() if "stepped down" in line["message"]]
    assert line["request_id"] == "step-down"


def test_a_failure_nobody_foresaw_is_found_in_the_log_by_the_id_of_its_answer(
    service, device, log_lines, monkeypatch
):
    def fail(*_args):
        raise RuntimeError("a bug")

    monkeypatch.setattr("server.rounds.coordinator.Coordinator.tasks", fail)
    answer = device.call("GET", "/v1/tasks")
    assert (answer.status_code, answer.json()["code"]) == (500, "server_failed")
    (line,) = [line for line in log_lines() if "a bug" in line.get("exception", "")]
    assert line["request_id"] == answer.headers["X-Request-Id"] == answer.json()["request_id"]


def test_metrics_need_an_admin_who_may_read(service, device, reader):
    for headers in ({}, {"Authorization": f"Bearer {device.token}"}):
        answer = get(service, "/metrics", **headers)
        assert (answer.status_code, answer.json()["code"]) == (401, "not_authorized")
    assert get(service, "/metrics", **reader).status_code == 200


def test_metrics_may_be_opened_to_anybody(service):
    settings = Settings(state=service.site.settings.state, metrics_open=True)
    with live_server(settings) as url:
        answer = requests.get(f"{url}/metrics", timeout=30)
    assert answer.headers["Content-Type"].startswith("text/plain; version=0.0.4")
    assert "edge_server_tasks 1.0" in answer.text


def test_metrics_count_requests_by_template_and_rounds_by_state(service, device, reader):
    device.train(service.spec)
    device.call("GET", "/v1/tasks/no-such-task")
    get(service, "/a/path/nobody/serves")
    families = text_string_to_metric_families(get(service, "/metrics", **reader).text)
    found = {
        (sample.name, tuple(sample.labels[name] for name in sorted(sample.labels))): sample.value
        for family in families
        for sample in family.samples
    }
    update = ("PUT", "/v1/tasks/{task}/rounds/{number}/update", "2xx")
    assert found["edge_server_http_requests_total", update] == 1
    assert found["edge_server_http_requests_total", ("GET", "/v1/tasks/{task}", "4xx")] == 1
    assert found["edge_server_http_requests_total", ("GET", "none", "4xx")] == 1
    assert found["edge_server_rounds", ("open", "tiny")] == 1
    assert found["edge_server_updates", ("on_time", "tiny")] == 1
    assert found["edge_server_devices", ()] == 1


def test_every_route_that_is_counted_is_one_of_the_description(service, device, reader):
    device.train(service.spec)
    paths = get(service, "/openapi.json").json()["paths"].keys()
    text = get(service, "/metrics", **reader).text
    routes = set(re.findall(r'edge_server_http_requests_total\{[^}]*route="([^"]*)"', text))
    assert {"/v1/tasks/{task}/check-in"} < routes <= {*paths, "none", "/openapi.json"}
