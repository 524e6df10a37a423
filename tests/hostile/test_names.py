"""Names in paths that try to be something else: other files, other routes, other tasks."""

from __future__ import annotations

import http.client
import json
import re
from urllib.parse import quote, urlsplit

import pytest

from edge_sdk.errors import ConfigError
from edge_sdk.wire.messages import decode_message
from edge_sdk.wire.task import TaskSpec
from tests.contract.documented import operations
from tests.server.tasks import tiny_spec

TRICKS = [
    "..",
    "../..",
    "%2e%2e",
    "%2e%2e%2f%2e%2e%2fetc%2fpasswd",
    "..%5c..%5cserver.sqlite",
    "%252e%252e%252f",
    "..;",
    "tiny%00",
    "%00",
    "%0d%0aSet-Cookie:%20a=b",
    "tiny%2f..%2ftiny",
    "tiny/../tiny",
    "./tiny",
    "tiny.",
    "TINY",
    "tiny%20",
    quote("\uff54\uff49\uff4e\uff59"),  # full width
    quote("tiny\u200b"),
    quote("t\u0456ny"),  # Cyrillic
    quote("\u202eynit"),
    "%ff%fe",
    "%c0%ae%c0%ae%c0%af",
    "%ed%a0%80",
    "%",
    "%zz",
    "tiny%3fx=1",
    "tiny'--",
    "tiny%27%20OR%20%271%27=%271",
    "{task}",
    "x" * 10_000,
    quote("é" * 5_000),
]
NUMBERS = ["-1", "1e9", "0x1", "1%00", "1/1", "%D9%A1", "2147483648", "9" * 5_000, "NaN", ""]


@pytest.fixture(scope="module")
def connection(stage):
    """Sends paths byte for byte; other libraries would tidy them up first."""
    found = http.client.HTTPConnection(urlsplit(stage.url).netloc, timeout=30)
    yield found
    found.close()


def exchange(connection, method, path, token) -> tuple[int, str, bytes]:
    """Return status, content type and body of an answer."""
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    if method == "POST":
        headers["Content-Type"] = "application/json"
    body = json.dumps({"base_digest": "ab" * 32, "affordable_k": 1, "examples": 1})
    connection.request(method, path, body if method == "POST" else None, headers)
    answer = connection.getresponse()
    return answer.status, answer.headers["Content-Type"], answer.read()


def targets(*parameters):
    """Every operation with one of these parameters in its path, and which of them it is."""
    for method, path, operation in operations():
        for name in re.findall(r"\{(\w+)\}", path):
            if name in parameters and path != "/v1/devices/{device_id}/challenge":
                yield method.upper(), path, name, operation


def put_in(stage, path, parameter, trick) -> str:
    values = {**stage.parts(), parameter: trick}
    return re.sub(r"\{(\w+)\}", lambda part: str(values[part[1]]), path)


def files_of(stage):
    """What is in and around the state folder, without the database's own journal."""
    folder = stage.service.site.settings.state.parent
    return {path for path in folder.rglob("*") if "sqlite" not in path.name}


@pytest.mark.parametrize("trick", TRICKS, ids=range(len(TRICKS)))
def test_a_name_that_tries_a_trick_is_nobody(stage, connection, trick):
    before = files_of(stage)
    for method, path, parameter, operation in targets("task", "device_id"):
        schemes = {name for requirement in operation.get("security", []) for name in requirement}
        asked = put_in(stage, path, parameter, trick)
        status, kind, body = exchange(connection, method, asked, stage.token_for(schemes))
        assert status in (400, 401, 404), (asked[:200], status, body[:300])
        assert b"Traceback" not in body
        assert b"root:" not in body
        assert len(body) < 4000, "an answer does not repeat a long name"
        assert kind in ("application/problem+json", "text/plain; charset=utf-8")
    assert files_of(stage) == before


@pytest.mark.parametrize("trick", NUMBERS, ids=range(len(NUMBERS)))
def test_a_number_that_tries_a_trick_is_malformed_or_not_found(stage, connection, trick):
    for method, path, parameter, _ in targets("number", "version"):
        asked = put_in(stage, path, parameter, trick)
        status, _, body = exchange(connection, method, asked, stage.device.token)
        assert status in (400, 404), (asked[:200], status, body[:300])
        assert len(body) < 4000


@pytest.mark.parametrize("trick", [*TRICKS, "page.html", "page.js%00.css"])
def test_the_dashboard_serves_its_own_files_only(connection, trick):
    for path in (f"/dashboard/{trick}", f"/docs/{trick}", f"/v1/{trick}", f"/{trick}"):
        status, _, body = exchange(connection, "GET", path, None)
        assert status in (400, 401, 404), (path[:200], status)
        assert len(body) < 4000


@pytest.mark.parametrize("trick", TRICKS, ids=range(len(TRICKS)))
def test_a_task_of_such_a_name_cannot_be_made(trick):
    with pytest.raises(ConfigError, match="name"):
        tiny_spec(name=trick)


def test_a_good_name_is_somebody(stage, connection):
    """The tricks above fail because of what they are, not because nothing is there."""
    status, _, body = exchange(connection, "GET", "/v1/tasks/tiny", stage.device.token)
    assert status == 200
    assert decode_message(TaskSpec, body).name == "tiny"
