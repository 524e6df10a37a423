"""Whatever a server answers, or does not, the device gets one typed error."""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO

import pytest

from edge_sdk.errors import (
    ConfigError,
    DigestMismatch,
    MalformedMessage,
    NotAuthorized,
    NotFound,
    ProtocolMismatch,
    RoundClosed,
    ServerBusy,
    ServerFailed,
    ServerUnreachable,
    TooLarge,
)
from edge_sdk.network import http_link, transport
from edge_sdk.network.store_upload import put_into_store
from edge_sdk.network.transport import MAX_JSON_BYTES, Transport
from edge_sdk.wire.messages import (
    CheckIn,
    CheckInReply,
    Problem,
    Receipt,
    UploadPlace,
    encode_message,
)
from edge_sdk.wire.payload import body_limit, content_digest, digest
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


@contextmanager
def answering() -> Iterator[Answers]:
    server = Answers()
    thread = threading.Thread(target=server.http.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.http.shutdown()
    thread.join()
    server.http.server_close()


@pytest.fixture
def answers() -> Iterator[Answers]:
    with answering() as server:
        yield server


@pytest.fixture
def object_store() -> Iterator[Answers]:
    """Another server, which is no edge-server and whose word nobody takes."""
    with answering() as server:
        yield server


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


@pytest.mark.parametrize("in_s", [3600, "date"])
def test_a_long_retry_after_is_the_callers_and_nobody_asks_before(answers, in_s):
    date = formatdate(time.time() + 3600, usegmt=True)
    after = date if in_s == "date" else str(in_s)
    answers.prepared = [problem(503, "server_busy", **{"Retry-After": after})]
    with pytest.raises(ServerBusy) as busy:
        Transport(answers.address, retries=3).tasks()
    assert 3590 < busy.value.retry_after_s <= 3600
    assert len(answers.requests) == 1


def test_a_proxy_without_a_server_behind_it_is_an_outage(answers):
    answers.prepared = [(502, {}, b"<html>"), (503, {"Retry-After": "7"}, b"<html>")]
    with pytest.raises(ServerUnreachable, match="proxy"):
        Transport(answers.address, retries=0).tasks()
    with pytest.raises(ServerBusy) as busy:
        Transport(answers.address, retries=0).tasks()
    assert busy.value.retry_after_s == 7.0


def test_outage_in_between_is_retried(answers):
    answers.prepared = [(502, {}, b"bad gateway"), (200, {}, b'["t"]')]
    assert Transport(answers.address).tasks() == ["t"]


def test_what_is_sent_again_is_whole(answers):
    receipt = b'{"task":"t","round_number":1,"digest":"d"}'
    answers.prepared = [(502, {}, b"bad gateway"), (200, {}, receipt)]
    Transport(answers.address, retries=1).submit("t", 1, b"12345")
    assert [body for *_, body in answers.requests] == [b"12345"] * 2


def test_unknown_code_and_foreign_page_are_server_failures(answers):
    answers.prepared = [problem(418, "teapot"), (404, {}, b"<html>nginx</html>")]
    transport = Transport(answers.address)
    with pytest.raises(ServerFailed, match="because of x"):
        transport.tasks()
    with pytest.raises(ServerFailed, match="HTTP 404"):
        transport.tasks()


def test_redirect_is_not_followed(answers):
    answers.prepared = [(302, {"Location": "http://127.0.0.1:1/"}, b"")]
    with pytest.raises(ServerFailed, match="302"):
        Transport(answers.address).tasks()


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


def test_bodies_are_counted_both_ways(answers):
    answers.prepared = [(200, {}, b'{"task":"t","round_number":1,"digest":"d"}')]
    transport = Transport(answers.address)
    transport.submit("t", 1, b"12345")
    assert transport.uploaded_bytes == 5
    assert transport.downloaded_bytes == 42
    method, path, headers, body = answers.requests[0]
    assert (method, path, body) == ("PUT", "/v1/tasks/t/rounds/1/update", b"12345")
    assert headers["Content-Digest"] == content_digest(b"12345")


def test_task_name_cannot_leave_its_place_in_the_path(answers):
    answers.prepared = [problem(404, "not_found")]
    with pytest.raises(Exception, match="because of x"):
        Transport(answers.address).adapters("../../enrol?x=")
    assert answers.requests[0][1] == "/v1/tasks/..%2F..%2Fenrol%3Fx%3D/adapters"


BODY = b"0123456789" * 10


@pytest.fixture
def small_pieces(monkeypatch):
    """A piece that was not read whole when the connection was cut does not count."""
    monkeypatch.setattr(http_link, "_CHUNK_BYTES", 10)


def fetch(address: str) -> bytes:
    return Transport(address, retries=0).adapter_body(tiny_spec(), 3, digest(BODY))


def cut(content: bytes) -> tuple[int, dict[str, str], bytes]:
    """An answer whose connection ends too early."""
    return 200, {"Content-Length": str(len(BODY))}, content


def test_a_download_that_is_cut_goes_on_where_it_stopped(answers, small_pieces):
    answers.prepared = [
        cut(BODY[:30]),
        (206, {"Content-Length": "70"}, BODY[30:55]),
        (206, {"Content-Length": "50"}, BODY[50:]),
    ]
    assert fetch(answers.address) == BODY
    asked = [headers.get("Range") for _, _, headers, _ in answers.requests]
    assert asked == [None, "bytes=30-", "bytes=50-"]
    assert answers.requests[1][2]["If-Range"] == f'"{digest(BODY)}"'


def test_a_server_that_has_another_body_now_sends_it_from_the_start(answers, small_pieces):
    answers.prepared = [cut(BODY[:30]), (200, {}, BODY)]
    assert fetch(answers.address) == BODY


def test_a_download_that_gets_no_further_is_given_up(answers, small_pieces):
    answers.prepared = [cut(BODY[:30]), cut(BODY[:30])]
    with pytest.raises(ServerUnreachable):
        fetch(answers.address)
    assert len(answers.requests) == 2


def test_a_refusal_in_the_middle_of_a_download_is_the_servers_error(answers, small_pieces):
    answers.prepared = [cut(BODY[:30]), problem(404, "not_found")]
    with pytest.raises(NotFound, match="because of x"):
        fetch(answers.address)


def test_parts_never_add_up_to_more_than_a_body_may_have(answers, small_pieces):
    size = body_limit(tiny_spec().adapter, 8)
    answers.prepared = [
        (200, {"Content-Length": str(size + 9)}, bytes(size)),
        (206, {}, bytes(10)),
    ]
    with pytest.raises(TooLarge):
        fetch(answers.address)


UPDATE = b"an update of some size"
RECEIPT = (200, {}, encode_message(Receipt(task="t", round_number=1, digest=digest(UPDATE))))
SECRET = "X-Amz-Signature=secret"


def place_at(server: Answers) -> tuple[int, dict[str, str], bytes]:
    """The address that an edge-server gives for an upload."""
    url = f"{server.address.replace('//', '//user:word@')}/staged/d/t/1?{SECRET}"
    return 200, {}, encode_message(UploadPlace(url=url, expires_in_s=300.0))


def offered(answers: Answers, *prepared: tuple[int, dict[str, str], bytes]) -> Transport:
    """A device that was offered the store when it checked in."""
    reply = encode_message(CheckInReply(state="wait", round_number=1))
    answers.prepared = [(200, {"Edge-Uploads": "presigned"}, reply), *prepared]
    transport = Transport(answers.address, retries=0)
    transport.check_in("t", CheckIn(base_digest="ab" * 32, affordable_k=1, examples=1))
    return transport


def asked(answers: Answers) -> list[tuple[str, str]]:
    """Method and end of the path of every request after the check-in."""
    return [(method, path.rpartition("/")[2]) for method, path, *_ in answers.requests[1:]]


def test_an_update_goes_to_the_store_that_was_offered(answers, object_store):
    transport = offered(answers, place_at(object_store), RECEIPT)
    object_store.prepared = [(200, {}, b"")]
    assert transport.submit("t", 1, UPDATE).digest == digest(UPDATE)
    assert asked(answers) == [("POST", "staged"), ("PUT", "staged")]
    assert answers.requests[1][3] == answers.requests[2][3], "the same notice twice"
    ((method, path, _, body),) = object_store.requests
    assert (method, path, body) == ("PUT", f"/staged/d/t/1?{SECRET}", UPDATE)


def test_a_password_for_the_host_does_not_replace_the_access_token(answers, monkeypatch, tmp_path):
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login owner password of-the-owner\n")
    monkeypatch.setenv("NETRC", str(netrc))
    answers.prepared = [(200, {}, b"[]")]
    transport = Transport(answers.address)
    transport._link.session.headers["Authorization"] = "Bearer of-the-device"
    transport.tasks()
    assert answers.requests[0][2]["Authorization"] == "Bearer of-the-device"


def test_the_store_sees_no_credentials(answers, object_store, monkeypatch, tmp_path):
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login owner password of-the-owner\n")
    monkeypatch.setenv("NETRC", str(netrc))
    transport = offered(answers, place_at(object_store), RECEIPT)
    object_store.prepared = [(200, {"Set-Cookie": "a=b"}, b"")]
    transport._link.session.headers["Authorization"] = "Bearer of-the-device"
    transport._link.session.cookies.set("session", "of-the-server")
    transport.submit("t", 1, UPDATE)
    (_, _, headers, _) = object_store.requests[0]
    assert headers.keys().isdisjoint({"Authorization", "Cookie", "Proxy-Authorization"})


@pytest.mark.parametrize(
    "answer",
    [
        (403, {}, b"<Code>AccessDenied</Code><Message>Request has expired</Message>"),
        (500, {}, b""),
        (307, {"Location": "/elsewhere"}, b""),
    ],
    ids=["expired", "broken", "redirect"],
)
def test_an_update_the_store_does_not_take_goes_to_the_server(
    answers, object_store, answer, caplog
):
    caplog.set_level(logging.DEBUG, "edge_sdk")
    transport = offered(answers, place_at(object_store), RECEIPT)
    object_store.prepared = [answer]
    assert transport.submit("t", 1, UPDATE).digest == digest(UPDATE)
    assert asked(answers)[-1] == ("PUT", "update")
    assert answers.requests[-1][3] == UPDATE
    assert len(object_store.requests) == 1
    assert "secret" not in caplog.text


def test_a_store_that_is_away_is_done_without(answers, caplog):
    with answering() as gone:
        place = place_at(gone)
    transport = offered(answers, place, RECEIPT)
    transport.submit("t", 1, UPDATE)
    assert asked(answers) == [("POST", "staged"), ("PUT", "update")]
    assert "secret" not in caplog.text


@pytest.mark.parametrize(
    "refused",
    [(404, "not_found"), (507, "storage_error"), (400, "digest_mismatch")],
)
def test_a_server_that_cannot_take_it_from_the_store_gets_it_itself(answers, object_store, refused):
    transport = offered(answers, place_at(object_store), problem(*refused), RECEIPT)
    object_store.prepared = [(200, {}, b"")]
    transport.submit("t", 1, UPDATE)
    assert asked(answers) == [("POST", "staged"), ("PUT", "staged"), ("PUT", "update")]


@pytest.mark.parametrize(
    ("refused", "error"),
    [((409, "round_closed"), RoundClosed), ((503, "server_busy"), ServerBusy)],
)
def test_what_the_server_refuses_is_not_sent_in_another_way(answers, refused, error):
    transport = offered(answers, problem(*refused))
    with pytest.raises(error):
        transport.submit("t", 1, UPDATE)
    assert asked(answers) == [("POST", "staged")]


def test_a_store_is_used_only_while_it_is_offered(answers):
    transport = offered(answers, (200, {}, b'{"state":"wait","round_number":1}'), RECEIPT)
    transport.check_in("t", CheckIn(base_digest="ab" * 32, affordable_k=1, examples=1))
    transport.submit("t", 1, UPDATE)
    assert asked(answers)[1:] == [("PUT", "update")]


@pytest.mark.parametrize("url", ["http://127.0.0.1:1/", "ftp://h/", "//h/", "https://[", ""])
def test_a_device_of_a_server_with_tls_sends_nothing_without(url, object_store):
    for address in (url, object_store.address):
        assert not put_into_store(address, BytesIO(UPDATE), (1.0, 1.0), needs_tls=True)
    assert object_store.requests == []


def test_a_slow_link_is_not_taken_for_a_dead_one(monkeypatch):
    """A large body takes longer than a connection may, but it never stands still."""
    monkeypatch.setattr(http_link, "CONNECT_TIMEOUT_S", 0.3)
    monkeypatch.setattr(transport, "WHOLE_UP_TO_BYTES", 16 << 20)
    size, piece = 8 << 20, 1 << 16

    def take(listener: socket.socket) -> None:
        with listener.accept()[0] as link:
            head = b""
            while b"\r\n\r\n" not in head:
                head += link.recv(1)
            left = size
            while left:
                left -= len(link.recv(min(piece, left)))
                time.sleep(0.005)
            content = b'{"task":"t","round_number":1,"digest":"d"}'
            link.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(content))
            link.sendall(content)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, piece)
        thread = threading.Thread(target=take, args=(listener,), daemon=True)
        thread.start()
        address = f"http://127.0.0.1:{listener.getsockname()[1]}"
        Transport(address, retries=0).submit("t", 1, bytes(size))
        thread.join()
