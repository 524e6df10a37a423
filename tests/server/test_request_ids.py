import re

import pytest
from fastapi.concurrency import run_in_threadpool

from server.http.request_ids import RequestIds, current_request_id
from tests.server.asgi import exchange_with


def ask(headers):
    """Send one request; returns the id its handler saw and the one of the answer."""
    seen = set()

    async def answer(_scope, _receive, send):
        seen.add(current_request_id())
        seen.add(await run_in_threadpool(current_request_id))
        await send({"type": "http.response.start", "status": 200, "headers": []})

    found = exchange_with(RequestIds(answer), headers=headers)
    (request_id,) = seen
    return request_id, found.headers["x-request-id"]


@pytest.mark.parametrize("given", ["a", "5f0c-1A.b_2", "x" * 64])
def test_a_valid_id_is_taken_and_returned_and_worker_threads_know_it(given):
    assert ask({"X-Request-Id": given}) == (given, given)


@pytest.mark.parametrize("given", ["", "x" * 65, "a b", "a\nb", "<script>", "\u00fc", '"'])
def test_an_id_that_is_not_valid_is_replaced(given):
    seen, returned = ask({"X-Request-Id": given})
    assert seen == returned
    assert re.fullmatch("[0-9a-f]{32}", seen)


def test_every_request_without_one_gets_its_own():
    assert ask({})[0] != ask({})[0]


def test_outside_a_request_there_is_none():
    ask({"X-Request-Id": "a"})
    assert current_request_id() is None
