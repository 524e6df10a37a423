"""Every endpoint of a live server, as docs/protocol.md promises it."""

import time

import numpy as np
import pytest
import requests

from edge_sdk.wire import payload
from edge_sdk.wire.credentials import Enrolment
from edge_sdk.wire.messages import AdapterInfo, CheckInReply, Receipt, RoundStatus, decode_message
from edge_sdk.wire.task import TaskSpec
from tests.server.tasks import tiny_spec, update_body

TENSORS = "application/vnd.safetensors"


def wait_for_state(device, state, number=1):
    until = time.monotonic() + 20
    while True:
        answer = device.call("GET", f"/v1/tasks/tiny/rounds/{number}")
        status = decode_message(RoundStatus, answer.content)
        if status.state == state:
            return status
        assert time.monotonic() < until, status
        time.sleep(0.02)


def test_health_needs_no_token(service):
    answer = requests.get(f"{service.url}/healthz", timeout=10)
    assert (answer.status_code, answer.json()) == (200, {"status": "ok"})


def test_enrolment_creates_an_identity(service):
    answer = service.enrol()
    assert answer.status_code == 201
    assert decode_message(Enrolment, answer.content).device_id


def test_tasks_are_listed_and_described(service, device):
    assert device.call("GET", "/v1/tasks").json() == ["tiny"]
    answer = device.call("GET", "/v1/tasks/tiny")
    assert decode_message(TaskSpec, answer.content) == service.spec


def test_check_in_gives_work_and_the_same_work_again(device):
    first = decode_message(CheckInReply, device.check_in(affordable_k=3).content)
    assert (first.state, first.round_number, first.assignment.k) == ("assigned", 1, 2)
    assert 599 < first.assignment.deadline_s <= 600
    again = decode_message(CheckInReply, device.check_in(affordable_k=8).content)
    assert (again.assignment.k, again.assignment.seed) == (2, first.assignment.seed)


def test_a_device_that_is_done_waits_and_is_told_how_long(service, device):
    device.train(service.spec)
    reply = decode_message(CheckInReply, device.check_in().content)
    assert (reply.state, reply.retry_after_s, reply.assignment) == ("wait", 0.25, None)


def test_the_slice_has_the_shapes_of_the_assignment_and_its_digest(service, device):
    k = device.check_in(affordable_k=4).json()["assignment"]["k"]
    answer = device.call("GET", "/v1/tasks/tiny/rounds/1/slice")
    assert answer.status_code == 200
    assert answer.headers["Content-Type"] == TENSORS
    assert int(answer.headers["Content-Length"]) == len(answer.content)
    payload.check_content_digest(answer.content, answer.headers["Content-Digest"])
    shapes = payload.adapter_shapes(service.spec.adapter, k)
    arrays, _ = payload.decode(answer.content, shapes)
    assert arrays.keys() == shapes.keys()


def test_an_update_gets_a_receipt_and_the_same_one_again(service, device):
    k = device.check_in().json()["assignment"]["k"]
    body = update_body(service.spec, k, seed=1)
    first, again = device.put(body), device.put(body)
    assert first.status_code == again.status_code == 200
    assert first.json() == again.json()
    receipt = decode_message(Receipt, first.content)
    assert receipt == Receipt(task="tiny", round_number=1, digest=payload.digest(body))
    assert wait_for_state(device, "open").accepted == 1


def test_an_update_in_pieces_of_unannounced_length_is_taken(service, device):
    k = device.check_in().json()["assignment"]["k"]
    body = update_body(service.spec, k, seed=1)
    pieces = (body[i : i + 100] for i in range(0, len(body), 100))
    answer = device.call(
        "PUT",
        "/v1/tasks/tiny/rounds/1/update",
        data=pieces,
        headers={"Content-Digest": payload.content_digest(body)},
    )
    assert answer.json()["digest"] == payload.digest(body)


@pytest.mark.parametrize("encoding", ["float16", "int8", "int4"])
def test_an_update_in_codes_is_taken_and_one_of_another_encoding_is_not(service, encoding):
    ways = {"cohort_size": 1, "quorum": 1, "update_encoding": encoding, "error_feedback": True}
    spec = service.site.add_task(tiny_spec("coded", **ways))
    device = service.device()
    k = device.check_in("coded").json()["assignment"]["k"]
    assert decode_message(TaskSpec, device.call("GET", "/v1/tasks/coded").content) == spec
    refused = device.put(update_body(service.spec, k, seed=1), task="coded")
    assert (refused.status_code, refused.json()["code"]) == (400, "malformed_payload")
    body = update_body(spec, k, seed=1)
    assert device.put(body, task="coded").json()["digest"] == payload.digest(body)


def test_a_whole_task_runs_to_its_end_over_http(service):
    devices = [service.device(name) for name in ("a", "b")]
    for number in (1, 2):
        for i, device in enumerate(devices):
            assert device.train(service.spec, seed=10 * number + i).status_code == 200
        assert wait_for_state(devices[0], "closed", number).adapter_version == number
    reply = decode_message(CheckInReply, devices[0].check_in().content)
    assert (reply.state, reply.round_number) == ("finished", 2)
    infos = [
        decode_message(AdapterInfo, requests.models.complexjson.dumps(info).encode())
        for info in devices[0].call("GET", "/v1/tasks/tiny/adapters").json()
    ]
    assert [(info.version, info.round_number) for info in infos] == [(0, 0), (1, 1), (2, 2)]
    for info in infos:
        answer = devices[1].call("GET", f"/v1/tasks/tiny/adapters/{info.version}")
        assert answer.headers["Content-Type"] == TENSORS
        assert len(answer.content) == info.size_bytes
        digest = payload.check_content_digest(answer.content, answer.headers["Content-Digest"])
        assert digest == info.digest
        shapes = payload.adapter_shapes(service.spec.adapter, service.spec.adapter.r)
        arrays, _ = payload.decode(answer.content, shapes)
        assert all(np.isfinite(array).all() for array in arrays.values())


def test_a_body_larger_than_one_chunk_arrives_whole(service, device):
    """The adapter file is streamed in pieces; a wrong border would change the digest."""
    from tests.server.tasks import tiny_spec

    wide = tiny_spec("wide", r=8)
    layers = [
        type(layer)(name=layer.name, d_in=60_000, d_out=30_000) for layer in wide.adapter.layers
    ]
    adapter = type(wide.adapter)(
        r=8, lora_alpha=16.0, target_modules=wide.adapter.target_modules, layers=layers
    )
    spec = type(wide)(
        name="wide", base=wide.base, adapter=adapter, training=wide.training, policy=wide.policy
    )
    service.site.add_task(spec)
    device.check_in("wide")
    for path in ("/v1/tasks/wide/adapters/0", "/v1/tasks/wide/rounds/1/slice"):
        answer = device.call("GET", path)
        assert len(answer.content) > 5 * 2**20
        payload.check_content_digest(answer.content, answer.headers["Content-Digest"])
    assert device.train(spec).status_code == 200
