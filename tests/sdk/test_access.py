"""The access token is asked for once, and again before it ends or when it is refused."""

from __future__ import annotations

import pytest

from edge_sdk.errors import NotAuthorized, QuotaExceeded, Revoked, TokenExpired
from edge_sdk.identity import access
from edge_sdk.identity.device_key import make_private_key
from edge_sdk.identity.identity import Identity
from edge_sdk.network.transport import Transport
from edge_sdk.wire.credentials import AccessToken, Challenge
from edge_sdk.wire.messages import encode_message
from tests.sdk.test_transport import Answers, answers, problem

__all__ = ["answers"]  # the fixture

TASKS = (200, {}, b'["t"]')
CHALLENGE = (200, {}, encode_message(Challenge(nonce="n", expires_in_s=60.0)))


def token(name: str, expires_in_s: float = 3600.0):
    return 200, {}, encode_message(AccessToken(access_token=name, expires_in_s=expires_in_s))


@pytest.fixture
def transport(answers: Answers) -> Transport:
    identity = Identity(
        server=answers.address, device_id="d/1", private_key=make_private_key(), name="a"
    )
    return Transport(answers.address, identity, retries=0)


def asked(answers: Answers) -> list[tuple[str, str | None]]:
    return [
        (path.rpartition("/")[2], headers.get("Authorization"))
        for _, path, headers, _ in answers.requests
    ]


def test_one_token_serves_many_requests(answers, transport):
    answers.prepared = [CHALLENGE, token("a"), TASKS, TASKS]
    assert transport.tasks() == transport.tasks() == ["t"]
    assert asked(answers) == [
        ("challenge", None),
        ("token", None),
        ("tasks", "Bearer a"),
        ("tasks", "Bearer a"),
    ]
    assert answers.requests[0][1] == "/v1/devices/d%2F1/challenge"


def test_a_token_is_renewed_before_it_ends(answers, transport, monkeypatch):
    now = 100.0
    monkeypatch.setattr(access.time, "monotonic", lambda: now)
    answers.prepared = [CHALLENGE, token("a", 10.0), TASKS, TASKS, CHALLENGE, token("b"), TASKS]
    transport.tasks()
    now += 7.9
    transport.tasks()
    now += 0.2
    transport.tasks()
    assert [who for what, who in asked(answers) if what == "tasks"] == [
        "Bearer a",
        "Bearer a",
        "Bearer b",
    ]


@pytest.mark.parametrize("code", ["not_authorized", "token_expired"])
def test_a_refused_token_is_renewed_once(answers, transport, code):
    refusal = problem(401, code)
    answers.prepared = [CHALLENGE, token("a"), TASKS, refusal, CHALLENGE, token("b"), TASKS]
    assert transport.tasks() == transport.tasks() == ["t"]
    assert asked(answers)[-1] == ("tasks", "Bearer b")


def test_a_token_that_is_refused_again_is_an_error_and_no_endless_loop(answers, transport):
    answers.prepared = [CHALLENGE, token("a"), problem(401, "token_expired")]
    with pytest.raises(TokenExpired):
        transport.tasks()
    answers.prepared = [problem(401, "not_authorized"), CHALLENGE, token("b")]
    answers.prepared += [problem(401, "not_authorized")]
    with pytest.raises(NotAuthorized):
        transport.tasks()
    assert answers.prepared == []


def test_an_answer_to_a_challenge_that_was_lost_is_given_to_another(answers, transport):
    stale = problem(401, "stale_challenge")
    answers.prepared = [CHALLENGE, stale, CHALLENGE, token("a"), TASKS]
    assert transport.tasks() == ["t"]


def test_a_revoked_device_asks_no_further(answers, transport):
    answers.prepared = [CHALLENGE, problem(403, "revoked")]
    with pytest.raises(Revoked):
        transport.tasks()
    assert len(answers.requests) == 2


def test_a_quota_is_told_at_once_instead_of_slept_through(answers):
    """Retry-After may be hours: the caller decides."""
    answers.prepared = [problem(429, "quota_exceeded", **{"Retry-After": "3600"})]
    with pytest.raises(QuotaExceeded) as refused:
        Transport(answers.address, retries=3).tasks()
    assert refused.value.retry_after_s == 3600.0
    assert len(answers.requests) == 1
