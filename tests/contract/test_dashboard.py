"""The dashboard over HTTP: a page that needs nothing from elsewhere, JSON for admins only."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import requests

import server
from edge_sdk.wire.messages import decode_message
from server.operation.overview_messages import Overview
from tests.dashboard.access import admin_token

FOLDER = Path(server.__file__).with_name("dashboard")
FILES = sorted(path.name for path in FOLDER.iterdir())
SVG_NAMESPACE = "http://www.w3.org/2000/svg"


def get(service, path, token=None, **more):
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    return requests.get(service.url + path, headers=headers, timeout=10, **more)


@pytest.fixture
def token(service):
    return admin_token(service.site, "read")


def test_the_page_needs_no_token_and_allows_nothing_but_itself(service):
    answer = get(service, "/dashboard")
    assert answer.status_code == 200
    assert answer.headers["Content-Type"] == "text/html; charset=utf-8"
    policy = answer.headers["Content-Security-Policy"].split("; ")
    assert {"default-src 'none'", "script-src 'self'", "style-src 'self'"} <= set(policy)
    assert {"frame-ancestors 'none'", "base-uri 'none'", "form-action 'none'"} <= set(policy)
    assert not re.search(r"unsafe|\*|https?:|data:", " ".join(policy))
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert answer.headers["Referrer-Policy"] == "no-referrer"


def test_every_file_of_the_folder_is_served_with_its_type(service):
    kinds = {".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}
    for name in FILES:
        if name == "page.html":
            continue
        answer = get(service, f"/dashboard/{name}")
        assert answer.headers["Content-Type"].split(";")[0] == kinds[Path(name).suffix]
        assert answer.content == (FOLDER / name).read_bytes()
        assert "Content-Security-Policy" in answer.headers


@pytest.mark.parametrize(
    "path",
    ["page.html", "no-such.js", "..%2fapp.py", "%2e%2e/app.py", "..%5capp.py", "page.js%00", "a/b"],
)
def test_nothing_else_is_served(service, path):
    request = requests.Request("GET", service.url).prepare()
    request.url = f"{service.url}/dashboard/{path}"  # as it stands, dots and all
    answer = requests.Session().send(request, timeout=10)
    assert (answer.status_code, answer.json()["code"]) == (404, "not_found")


@pytest.mark.parametrize("name", FILES)
def test_a_file_names_no_other_server_and_no_inline_code(name):
    text = (FOLDER / name).read_text(encoding="utf-8").replace(SVG_NAMESPACE, "")
    assert not re.search(r"https?:|[\"'(]//", text)
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(", text)
    if name == "page.html":
        assert not re.search(r"<style|\sstyle=|\son\w+=|<script(?![^>]*\ssrc=)", text)


def test_every_file_the_page_names_is_there():
    named = set()
    for name in FILES:
        text = (FOLDER / name).read_text(encoding="utf-8")
        named |= set(re.findall(r"(?:from \"\./|\"dashboard/)([\w.]+)\"", text))
    assert named == set(FILES) - {"page.html"}


def test_the_overview_is_the_message_it_says(service, token, device):
    device.train(service.spec)
    answer = get(service, "/v1/admin/overview", token)
    assert answer.headers["Cache-Control"] == "no-store"
    found = decode_message(Overview, answer.content)
    assert (found.tasks_total, found.task.line.name) == (1, "tiny")
    assert (found.task.running.assigned, found.task.running.accepted) == (1, 1)
    assert found.task.rounds[0].upload_bytes > 0


def test_the_overview_of_an_unknown_task_is_not_found(service, token):
    answer = get(service, "/v1/admin/overview", token, params={"task": "no-such"})
    assert (answer.status_code, answer.json()["code"]) == (404, "not_found")


@pytest.mark.parametrize("token", [None, "edge_wrong"])
def test_without_an_admin_token_there_is_no_overview(service, token):
    answer = get(service, "/v1/admin/overview", token)
    assert (answer.status_code, answer.json()["code"]) == (401, "not_authorized")


def test_a_device_may_not_see_the_overview(service, device):
    assert get(service, "/v1/admin/overview", device.token).status_code in (401, 403)


def test_what_was_refused_is_counted_with_its_reason(service, token, device):
    device.check_in()
    assert device.put(b"not tensors").status_code == 400
    assert device.put(b"not tensors").status_code == 400
    assert device.check_in(base_digest="cd" * 32).status_code == 409
    found = decode_message(Overview, get(service, "/v1/admin/overview", token).content)
    refused = {line.code: (line.count, line.task) for line in found.refusals}
    assert refused == {"malformed_payload": (2, "tiny"), "wrong_base_model": (1, "tiny")}
    (latest,) = [line for line in found.refusals if line.code == "malformed_payload"]
    assert "safetensors" in latest.detail


def test_the_overview_changes_nothing(service, token):
    with service.site.store.read() as tx:
        rounds = tx.rounds("tiny")
    for method in ("POST", "PUT", "DELETE", "PATCH"):
        headers = {"Authorization": f"Bearer {token}"}
        url = f"{service.url}/v1/admin/overview"
        assert requests.request(method, url, headers=headers, timeout=10).status_code in (404, 405)
    get(service, "/v1/admin/overview", token)
    with service.site.store.read() as tx:
        assert tx.rounds("tiny") == rounds
