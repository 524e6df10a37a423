"""Whatever a server answers, or does not, the device gets one typed error."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from edge_sdk.errors import (
    ConfigError,
    DigestMismatch,
    MalformedMessage,
    NotAuthorized,
    ProtocolMismatch,
    RoundClosed,
    ServerBusy,
    ServerFailed,
    ServerUnreachable,
    TooLarge,
)
from edge_sdk.transport import MAX_JSON_BYTES, Transport
from edge_sdk.wire.messages import Problem, encode_message
from edge_sdk.wire.payload import content_digest
from tests.server.tasks import tiny_spec


class Answers:
    """An HTTP server that gives the prepared answers in turn and remembers the requests."""

    def __init__(self) -> None:
        self.prepared: list[tuple[int, dict[str, str], bytes]] = []
        self.requests: list[tuple[str, str, dict[str, str], bytes]] = []
        answers = self

        class Handler(BaseHTTPRequestHandler):
            def _answer(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                answers.requests.append((self.command, self.path, dict(self.headers), body))
                status, headers, content = answers.prepared.pop(0)
                self.send_response(status)
                for name, value in {"Content-Length": str(len(content)), **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(content)

            do_GET = do_POST = do_PUT = _answer

            def log_message(self, *_: object) -> None:
                return

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.http.server_address[1]}"


@pytest.fixture
def answers() -> Iterator[Answers]:
    server = Answers()
    thread = threading.Thread(target=server.http.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.http.shutdown()
    thread.join()
    server.http.server_close()


def problem(status: int, code: str, **headers: str) -> tuple[int, dict[str, str], bytes]:
    body = Problem(title="t", status=status, code=code, detail="because of x")
    return status, headers, encode_message(body)


@pytest.mark.parametrize("address", ["", "localhost:80", "ftp://x", "http://", "C:/server"])
def test_address_that_is_none_is_refused(address):
    with pytest.raises(ConfigError, match="http://host:port"):
        Transport(address)


def test_server_away_is_unreachable_and_names_the_address():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{listener.getsockname()[1]}"
    with pytest.raises(ServerUnreachable, match=address):
        Transport(address, retries=0).tasks()


@pytest.mark.parametrize(
    ("status", "code", "error"),
    [(401, "not_authorized", NotAuthorized), (409, "round_closed", RoundClosed)],
)
def test_problem_becomes_the_exception_the_server_raised(answers, status, code, error):
    answers.prepared = [problem(status, code)]
    with pytest.raises(error, match="because of x"):
        Transport(answers.address).tasks()


def test_busy_server_says_when_to_come_back(answers):
    answers.prepared = [problem(503, "server_busy", **{"Retry-After": "0"})] * 2
    with pytest.raises(ServerBusy) as busy:
        Transport(answers.address, retries=1).tasks()
    assert busy.value.retry_after_s == 0.0
    assert len(answers.requests) == 2, "it was tried again once"


def test_outage_in_between_is_retried(answers):
    answers.prepared = [(502, {}, b"bad gateway"), (200, {}, b'["t"]')]
    assert Transport(answers.address).tasks() == ["t"]


def test_unknown_code_and_foreign_page_are_server_failures(answers):
    answers.prepared = [problem(418, "teapot"), (404, {}, b"<html>nginx</html>")]
    transport = Transport(answers.address)
    with pytest.raises(ServerFailed, match="because of x"):
        transport.tasks()
    with pytest.raises(ServerFailed, match="HTTP 404"):
        transport.tasks()


def test_redirect_is_not_followed_with_the_token(answers):
    answers.prepared = [(302, {"Location": "http://127.0.0.1:1/"}, b"")]
    with pytest.raises(ServerFailed, match="302"):
        Transport(answers.address, "token").tasks()


def test_answer_that_is_not_json_is_malformed(answers):
    answers.prepared = [(200, {}, b"\xff\xfe{")]
    with pytest.raises(MalformedMessage):
        Transport(answers.address).tasks()


def test_endless_answer_is_cut_off(answers):
    answers.prepared = [(200, {}, b" " * (MAX_JSON_BYTES + 1))]
    with pytest.raises(TooLarge):
        Transport(answers.address).tasks()


def test_task_of_another_protocol_is_refused(answers):
    message = encode_message(tiny_spec()).replace(b'"protocol":1', b'"protocol":2')
    answers.prepared = [(200, {}, message)]
    with pytest.raises(ProtocolMismatch, match="protocol 2"):
        Transport(answers.address).task("t")


def test_slice_that_changed_on_the_way_is_refused(answers):
    task = tiny_spec()
    answers.prepared = [(200, {"Content-Digest": content_digest(b"sent")}, b"came")]
    with pytest.raises(DigestMismatch):
        Transport(answers.address).slice_body(task, 1, 1)


def test_truncated_answer_is_unreachable_not_half_read(answers):
    answers.prepared = [(200, {"Content-Length": "50"}, b'["t"]')]
    with pytest.raises(ServerUnreachable):
        Transport(answers.address, retries=0).tasks()


def test_bodies_are_counted_both_ways_and_the_token_is_sent(answers):
    answers.prepared = [(200, {}, b'{"task":"t","round_number":1,"digest":"d"}')]
    transport = Transport(answers.address, "abc")
    transport.submit("t", 1, b"12345")
    assert transport.uploaded_bytes == 5
    assert transport.downloaded_bytes == 42
    method, path, headers, body = answers.requests[0]
    assert (method, path, body) == ("PUT", "/v1/tasks/t/rounds/1/update", b"12345")
    assert headers["Authorization"] == "Bearer abc"
    assert headers["Content-Digest"] == content_digest(b"12345")


def test_task_name_cannot_leave_its_place_in_the_path(answers):
    answers.prepared = [problem(404, "not_found")]
    with pytest.raises(Exception, match="because of x"):
        Transport(answers.address).adapters("../../enrol?x=")
    assert answers.requests[0][1] == "/v1/tasks/..%2F..%2Fenrol%3Fx%3D/adapters"
