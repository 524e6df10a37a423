"""Headers and bodies that come byte by byte, or never, over real sockets."""

from __future__ import annotations

import pytest

from server.http import limits, patient_http
from tests.hostile.raw import connect, drip, head, status_of

CHECK_IN = "/v1/tasks/tiny/check-in"
UPDATE = "/v1/tasks/tiny/rounds/1/update"
JSON = "Content-Type: application/json"


@pytest.fixture
def impatience(monkeypatch):
    """Minutes become moments."""
    monkeypatch.setattr(patient_http, "_HEADER_S", 0.4)
    monkeypatch.setattr(patient_http, "_REST_S", 0.8)
    monkeypatch.setattr(limits, "_IDLE_S", 0.5)
    monkeypatch.setattr(limits, "_PATIENCE_S", 0.5)


@pytest.mark.parametrize("first", [b"", b"GET /healthz HTTP/1.1\r\nX: "])
def test_a_connection_that_never_completes_a_header_is_closed(impatience, stage, first):
    with connect(stage.url) as connection:
        connection.sendall(first)
        assert 0.3 < drip(connection, b"x" if first else b"", 0.05, 5) < 3


def test_a_connection_that_never_completes_its_next_header_is_closed(impatience, stage):
    with connect(stage.url) as connection:
        connection.sendall(head("GET", "/healthz"))
        said = b""
        while not said.endswith(b'{"status":"ok"}'):
            said += connection.recv(65536)
        assert 0.3 < drip(connection, b"G", 0.05, 5) < 3


def test_the_rest_of_a_refused_body_has_its_time_and_no_more(impatience, stage):
    with connect(stage.url) as connection:
        connection.sendall(head("PUT", UPDATE, "guess", "Content-Length: 1000000"))
        assert status_of(connection) == 401
        while connection.recv(65536):
            pass  # the timeout of the connection is the test


@pytest.mark.parametrize(
    "method_path", [("POST", CHECK_IN), ("POST", "/v1/enrol"), ("PUT", UPDATE)]
)
def test_a_body_that_drips_is_refused_in_time(impatience, stage, method_path):
    method, path = method_path
    with connect(stage.url) as connection:
        connection.sendall(head(method, path, stage.device.token, JSON, "Content-Length: 2000"))
        assert drip(connection, b" ", 0.05, 5) < 3
        connection.settimeout(5)
        assert status_of(connection) == 408


def test_a_request_that_takes_its_time_is_not_cut_off(impatience, stage, monkeypatch):
    """The patience is with headers: a body may take longer, as long as it comes."""
    monkeypatch.setattr(limits, "_IDLE_S", 5.0)
    monkeypatch.setattr(limits, "_PATIENCE_S", 5.0)
    with connect(stage.url) as connection:
        size = "Content-Length: 20"
        connection.sendall(head("POST", CHECK_IN, stage.device.token, JSON, size))
        assert drip(connection, b" ", 0.1, 1.5) >= 1.5
        connection.settimeout(5)
        connection.sendall(b"{}" * 10)
        assert status_of(connection) == 400
