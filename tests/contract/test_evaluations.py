"""What a device may tell about adapter versions, over HTTP."""

from __future__ import annotations

import pytest

from edge_sdk.errors import NotFound
from edge_sdk.network.transport import Transport
from edge_sdk.wire.messages import EvaluationReport
from tests.contract.test_registry import Phone

PATH = "/v1/tasks/tiny/evaluations"
REPORT = {
    "version": 0,
    "examples": 12,
    "loss_before": 2.5,
    "loss_after": 2.25,
    "accepted": True,
}


def sums(service):
    with service.site.store.read() as tx:
        return tx.evaluations("tiny")


def test_a_report_is_taken_without_an_answer_and_counted_once(service, device):
    for changes in ({}, {"loss_after": 9.0}, {}):
        answer = device.call("POST", PATH, json=REPORT | changes)
        assert (answer.status_code, answer.content) == (204, b"")
    (found,) = sums(service)
    assert (found.devices, found.accepted, found.loss_after) == (1, 1, 12 * 2.25)


@pytest.mark.parametrize(
    ("changes", "status", "code"),
    [
        ({"version": 7}, 404, "not_found"),
        ({"version": -1}, 400, "malformed_message"),
        ({"examples": 0}, 400, "malformed_message"),
        ({"examples": 10**6}, 400, "malformed_message"),
        ({"loss_after": "NaN"}, 400, "malformed_message"),
        ({"loss_after": 1e300}, 400, "malformed_message"),
        ({"accepted": 2}, 400, "malformed_message"),
        ({"accuracy": 0.5}, 400, "invalid_config"),
        ({"protocol": 2}, 400, "protocol_mismatch"),
    ],
)
def test_a_report_that_cannot_be_is_refused_and_leaves_no_mark(
    service, device, changes, status, code
):
    answer = device.call("POST", PATH, json=REPORT | changes)
    assert (answer.status_code, answer.json()["code"]) == (status, code)
    assert sums(service) == []
    assert device.call("POST", PATH, json=REPORT).status_code == 204


def test_the_sdk_says_the_same(service, tmp_path):
    phone = Phone(service, tmp_path / "phone")
    assert isinstance(phone.transport, Transport)
    phone.transport.report_evaluation("tiny", EvaluationReport(**REPORT))
    with pytest.raises(NotFound):
        phone.transport.report_evaluation("none", EvaluationReport(**REPORT))
    assert sums(service)[0].devices == 1
