"""Bodies that lie about their length, never end or unpack to much: what they cost a process."""

from __future__ import annotations

import gzip
import itertools
import re
from functools import cache

import psutil
import pytest
import requests

from server.access.auth import make_enrolment_token
from tests.contract.conftest import Service
from tests.contract.documented import operations
from tests.hostile.raw import connect, drip, head, push, status_of
from tests.processes import ServerProcess
from tests.server.tasks import Site, tiny_spec

pytestmark = pytest.mark.processes

CHECK_IN = "/v1/tasks/tiny/check-in"
UPDATE = "/v1/tasks/tiny/rounds/1/update"
PARTS = {"task": "tiny", "number": "1", "version": "0", "device_id": "x"} | {
    "digest": "ab" * 32,
    "index": "0",
}
JSON = "Content-Type: application/json"
MIB = 1 << 20
MOST_GROWTH_BYTES = 24 * MIB
CHUNK = b"10000\r\n" + bytes(1 << 16) + b"\r\n"


@pytest.fixture(scope="module")
def process(tmp_path_factory):
    """A server process, a device at work in it, and the memory it needs at rest."""
    site = Site(tmp_path_factory.mktemp("connections") / "state")
    spec = site.add_task(tiny_spec())
    token = make_enrolment_token(site.store, 0.0)
    with ServerProcess(site.settings.state) as process:
        device = Service(process.address, site, spec, token).device()
        assert device.check_in().ok
        yield process, device
    site.store.close()


@pytest.fixture
def growth(process):
    """Return by how many bytes the process has grown since the test began."""
    running = psutil.Process(process[0].pid)
    before = running.memory_info().rss
    return lambda: running.memory_info().rss - before


def with_bodies():
    """Every operation as a request for something that is there."""
    for method, path, operation in operations():
        path = re.sub(r"\{(\w+)\}", lambda part: PARTS[part[1]], path)
        yield method.upper(), path, "requestBody" in operation


def test_no_operation_reads_a_body_that_is_announced_beyond_all_measure(process, growth):
    server, device = process
    for method, path, has_body in with_bodies():
        request = head(method, path, device.token, JSON, f"Content-Length: {10**12}")
        status = push(server.address, request, [bytes(MIB)] * 4)
        assert status == 413 if has_body else status < 500, (method, path, status)
    assert growth() < MOST_GROWTH_BYTES


def test_no_operation_reads_a_body_without_an_end(process, growth):
    server, device = process
    for method, path, has_body in with_bodies():
        request = head(method, path, device.token, JSON, "Transfer-Encoding: chunked")
        status = push(server.address, request, itertools.repeat(CHUNK, 64))
        assert status == 413 if has_body else status < 500, (method, path, status)
    assert growth() < MOST_GROWTH_BYTES


@cache
def bomb() -> bytes:
    return gzip.compress(b"[" + bytes(40 * MIB), 9)


@pytest.mark.parametrize("coding", ["gzip", "deflate", "gzip, gzip"])
def test_a_compressed_body_is_not_unpacked(process, growth, coding):
    server, device = process
    size = f"Content-Length: {len(bomb())}"
    for method, path in (("POST", CHECK_IN), ("POST", "/v1/enrol"), ("PUT", UPDATE)):
        request = head(method, path, device.token, JSON, size, f"Content-Encoding: {coding}")
        assert push(server.address, request, [bomb()]) in (400, 413)
    assert growth() < MOST_GROWTH_BYTES


@pytest.mark.parametrize(
    "headers",
    [
        ["Content-Length: -1"],
        ["Content-Length: +2"],
        ["Content-Length: 0x2"],
        ["Content-Length: 2", "Content-Length: 3"],
        ["Content-Length: " + "9" * 5000],
        ["Transfer-Encoding: gzip"],
        ["Transfer-Encoding: chunked, chunked"],
        ["Transfer-Encoding: chunked", "Transfer-Encoding: identity"],
    ],
)
def test_a_length_that_can_be_read_in_two_ways_is_refused(process, headers):
    server, device = process
    request = head("POST", CHECK_IN, device.token, JSON, *headers)
    assert push(server.address, request, [b"{}"]) in (400, 413, 501)


@pytest.mark.parametrize("size", [b"-1", b"0x5", b"g", b"ffffffffffffffffffffff", b"1 0"])
def test_a_chunk_of_no_possible_size_is_refused(process, size):
    server, device = process
    request = head("POST", CHECK_IN, device.token, JSON, "Transfer-Encoding: chunked")
    assert push(server.address, request, [size + b"\r\n" + b"x" * 100]) in (None, 400)


def test_what_follows_a_body_is_another_request_and_has_no_token(process):
    server, device = process
    second = head("GET", "/v1/tasks")
    request = head("POST", CHECK_IN, device.token, JSON, "Content-Length: 2") + b"{}" + second
    with connect(server.address) as connection:
        connection.sendall(request)
        said = b""
        while said.count(b"HTTP/1.1") < 2:
            piece = connection.recv(65536)
            assert piece, "the second request was not answered"
            said += piece
    assert re.findall(rb"HTTP/1.1 (\d+)", said) == [b"400", b"401"]


def test_unfinished_headers_on_many_connections_cost_bounded_memory(process, growth):
    server, _ = process
    connections = [connect(server.address) for _ in range(200)]
    try:
        for connection in connections:
            connection.sendall(b"GET / HTTP/1.1\r\nX: " + b"x" * 50_000)
        assert requests.get(f"{server.address}/healthz", timeout=20).ok
        assert growth() < 200 * 50_000 * 3 + MOST_GROWTH_BYTES
    finally:
        for connection in connections:
            connection.close()


def test_a_header_beyond_64_kib_is_refused(process):
    server, _ = process
    with connect(server.address) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nX: ")
        assert drip(connection, b"x" * 20_000, 0.01, 10) < 10
        assert status_of(connection) == 400
