import io
import json
import logging
import re
import sys
from contextlib import contextmanager

import pytest

from server.http.exchanges import Exchange
from server.http.request_ids import RequestIds
from server.operation import logs
from server.operation.logs import JsonLines, TextLines, log_exchange
from tests.server.asgi import exchange_with

EXCHANGE = Exchange(
    method="GET",
    route="/v1/tasks/{task}",
    status=200,
    seconds=0.25,
    bytes_in=3,
    bytes_out=5,
    device_id="d1",
)


@pytest.fixture
def lines():
    """What the server's logger writes through a formatter."""
    log, stream = logging.getLogger("server"), io.StringIO()
    handler, level = logging.StreamHandler(stream), log.level
    log.addHandler(handler)
    log.setLevel("DEBUG")

    def formatted_by(formatter):
        handler.setFormatter(formatter)
        return stream

    yield formatted_by
    log.removeHandler(handler)
    log.setLevel(level)


def test_a_json_line_has_time_level_message_and_the_facts_of_the_request(lines):
    stream = lines(JsonLines())
    log_exchange(EXCHANGE)
    line = json.loads(stream.getvalue())
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", line.pop("time"))
    assert line == {
        "level": "info",
        "logger": "server.operation.logs",
        "message": "GET /v1/tasks/{task}: 200 in 0.250 s, 3 bytes in, 5 bytes out",
        "request_id": None,
        "method": "GET",
        "route": "/v1/tasks/{task}",
        "status": 200,
        "seconds": 0.25,
        "bytes_in": 3,
        "bytes_out": 5,
        "device_id": "d1",
    }


def test_a_traceback_is_part_of_its_json_line(lines):
    stream = lines(JsonLines())
    try:
        raise ValueError("why")
    except ValueError:
        logging.getLogger("server.x").exception("it failed")
    (line,) = map(json.loads, stream.getvalue().splitlines())
    assert "ValueError: why" in line["exception"]
    assert (line["level"], line["message"]) == ("error", "it failed")


def test_a_text_line_is_for_people(lines):
    stream = lines(TextLines())
    log_exchange(EXCHANGE)
    text = stream.getvalue()
    assert re.match(r"\d{4}-\S+Z INFO GET /v1/tasks/\{task\}: 200 in 0\.250 s", text)
    assert text.endswith(", device d1\n")


@pytest.mark.parametrize("formatter", [TextLines(), JsonLines()])
def test_what_comes_from_outside_begins_no_line_of_its_own(lines, formatter):
    stream = lines(formatter)
    logging.getLogger("server.x").warning("device %s", "a\n2026-01-01T00:00:00.000Z INFO\r\x1b[2J")
    assert stream.getvalue().count("\n") == 1
    assert not {"\r", "\x1b"} & set(stream.getvalue())


@pytest.mark.parametrize(("formatter", "shown"), [(TextLines(), "[r1]"), (JsonLines(), '"r1"')])
def test_whatever_a_request_logs_has_its_id(lines, formatter, shown):
    stream = lines(formatter)

    async def answer(_scope, _receive, send):
        logging.getLogger("server.x").info("hello")
        await send({"type": "http.response.start", "status": 200, "headers": []})

    exchange_with(RequestIds(answer), headers={"X-Request-Id": "r1"})
    assert shown in stream.getvalue()


@pytest.mark.parametrize("route", ["/healthz", "/readyz", "/metrics"])
def test_probes_that_go_well_are_of_level_debug_and_others_are_not(caplog, route):
    caplog.set_level("DEBUG", "server")
    for status in (200, 503, None):
        facts = {"method": "GET", "seconds": 0.0, "bytes_in": 0, "bytes_out": 0, "device_id": None}
        log_exchange(Exchange(route=route, status=status, **facts))
    assert [record.levelname for record in caplog.records] == ["DEBUG", "INFO", "INFO"]


@contextmanager
def fresh_logging():
    """Logging as in a fresh process, and afterwards as it was."""
    root, ours = logging.getLogger(), logging.getLogger("server")
    before = (root.handlers[:], root.level, ours.level)
    root.handlers[:] = []
    yield
    root.handlers[:] = before[0]
    root.setLevel(before[1])
    ours.setLevel(before[2])


def test_a_process_logs_its_own_lines_from_the_level_and_warnings_of_libraries(
    monkeypatch,
):
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    with fresh_logging():
        logs.configure("json", "info")
        for name in ("server.rounds.closing", "alembic.runtime"):
            logging.getLogger(name).debug("too little")
            logging.getLogger(name).info("some")
            logging.getLogger(name).warning("much")
    written = map(json.loads, stream.getvalue().splitlines())
    said = [(line["logger"], line["message"]) for line in written]
    assert said == [
        ("server.rounds.closing", "some"),
        ("server.rounds.closing", "much"),
        ("alembic.runtime", "much"),
    ]
