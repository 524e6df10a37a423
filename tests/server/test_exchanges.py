import asyncio
import json

import pytest
from fastapi import FastAPI, Request, Response
from fastapi.responses import StreamingResponse

from edge_sdk.errors import NotFound
from server.http import problems
from server.http.exchanges import Exchanges
from tests.server.asgi import exchange_with


@pytest.fixture
def seen():
    return []


@pytest.fixture
def app(seen):
    """A small application that is measured."""
    found = FastAPI()
    problems.install(found)

    @found.put("/things/{name}")
    async def put(name: str, request: Request) -> Response:
        if name == "broken":
            raise RuntimeError("a secret cause")
        if name == "missing":
            raise NotFound("there is no such thing")
        request.state.device_id = "d1"
        body = b"".join([chunk async for chunk in request.stream()])
        return Response(2 * body, status_code=201)

    @found.get("/half")
    def half() -> Response:
        def chunks():
            yield b"first"
            raise RuntimeError("the disk is gone")

        return StreamingResponse(chunks())

    found.add_middleware(Exchanges, observers=[seen.append])
    return found


def test_an_exchange_is_measured_by_its_template_with_the_bytes_of_both_bodies(app, seen):
    answer = exchange_with(app, "PUT", "/things/red", pieces=[b"abc", b"de"])
    (exchange,) = seen
    assert (exchange.method, exchange.route, exchange.status) == ("PUT", "/things/{name}", 201)
    assert (exchange.bytes_in, exchange.bytes_out, answer.body) == (5, 10, b"abcdeabcde")
    assert exchange.device_id == "d1"
    assert 0 < exchange.seconds < 10


@pytest.mark.parametrize(
    ("method", "path", "route", "status"),
    [
        ("PUT", "/things/missing", "/things/{name}", 404),
        ("GET", "/nowhere/abc", None, 404),
        ("POST", "/things/red", "/things/{name}", 404),
    ],
)
def test_a_refused_request_is_measured_too(app, seen, method, path, route, status):
    answer = exchange_with(app, method, path)
    (exchange,) = seen
    assert (exchange.route, exchange.status, answer.status) == (route, status, status)
    assert exchange.device_id is None


def test_a_failure_nobody_foresaw_is_logged_and_answered_without_its_cause(app, seen, caplog):
    answer = exchange_with(app, "PUT", "/things/broken")
    assert (answer.status, json.loads(answer.body)["code"]) == (500, "server_failed")
    assert "secret" not in answer.body.decode()
    assert "a secret cause" in caplog.text
    assert seen[0].status == 500


def test_an_answer_that_breaks_off_is_logged_and_not_begun_again(app, seen, caplog):
    answer = exchange_with(app, "GET", "/half")
    assert (answer.status, answer.body) == (200, b"first")
    assert "the disk is gone" in caplog.text
    assert seen[0].bytes_out == 5


def test_an_exchange_that_is_cut_off_is_measured_without_a_status(seen):
    async def wait_forever(_scope, _receive, _send):
        await asyncio.sleep(3600)

    async def cut_off():
        scope = {"type": "http", "method": "GET", "headers": []}
        await asyncio.wait_for(Exchanges(wait_forever, [seen.append])(scope, None, None), 0.01)

    with pytest.raises(asyncio.TimeoutError):
        asyncio.run(cut_off())
    assert seen[0].status is None
