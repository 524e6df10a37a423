"""Access, for every route there is: one that is added tomorrow is in these tests as well."""

from __future__ import annotations

import re

import pytest
import requests

from server.app import create_app
from server.settings.settings import Settings
from tests.contract.documented import description, operations
from tests.contract.test_api_errors import check_problem
from tests.hostile.conftest import ROLES

OPEN_PAGES = {
    "/dashboard",
    "/dashboard/{name}",
    "/openapi.json",
}
LEAST_ROLE = {
    ("GET", "/metrics"): "read",
    ("GET", "/v1/admin/overview"): "read",
    ("GET", "/v1/admin/devices"): "read",
    ("POST", "/v1/admin/devices/{device_id}/revoke"): "operate",
    ("GET", "/v1/admin/audit"): "admin",
}
MALFORMED = [
    "Bearer",
    "Bearer  ",
    "Bearer null",
    "Bearer \t",
    "Bearer é",
    "Bearer \xff\xfe",
    "Bearer %00",
    "Bearer ....",
    "Bearer edge.1",
    "Bearer edge.1.x-1.9999999999.",
    "Bearer edge.-1.x-1.9999999999." + "0" * 64,
    "Bearer edge.1.x-1." + "9" * 5000 + "." + "0" * 64,
    "Bearer edge." + "9" * 5000 + ".x-1.1." + "0" * 64,
    "Bearer edge.1.x.9999999999." + "0" * 64,
    "Bearer edge.1.../..-1.9999999999." + "0" * 64,
    "Bearer eyJhbGciOiJub25lIn0.eyJzdWIiOiJhZG1pbiJ9.",
    "Bearer ' OR 1=1 --",
    "Bearer " + "x" * 30_000,
    "Digest username=admin",
    "edge.1.x-1.9999999999." + "0" * 64,
]


def guarded(scheme: str | None = None):
    """Method and template of every operation that wants a token, of one scheme or of any."""
    return [
        (method.upper(), path)
        for method, path, operation in operations()
        for requirement in operation.get("security", [])
        if scheme in (None, *requirement)
    ]


def ask(stage, method, template, **more) -> requests.Response:
    """Ask about things that exist; a check-in is complete, so that only the token is wrong."""
    path = re.sub(r"\{(\w+)\}", lambda part: str(stage.parts()[part[1]]), template)
    if template.endswith("check-in"):
        more["json"] = {"base_digest": "ab" * 32, "affordable_k": 1, "examples": 1}
    return requests.request(method, stage.url + path, timeout=30, **more)


def routes_of(router, prefix=""):
    """Every path template below a router, however routers are nested."""
    for route in router.routes:
        if hasattr(route, "path"):
            yield prefix + route.path
        else:
            yield from routes_of(route.original_router, prefix)


def test_every_route_is_described_or_known_to_be_open(tmp_path):
    app = create_app(Settings(state=tmp_path))
    assert set(routes_of(app)) == description()["paths"].keys() | OPEN_PAGES
    app.state.store.close()


def test_the_pages_that_are_open_hold_nothing_of_this_server(stage):
    secrets = {stage.device.id, stage.victim.id, stage.device.token, stage.service.token, "tiny"}
    for page in OPEN_PAGES - {"/dashboard/{name}", "/openapi.json"}:
        answer = requests.get(stage.url + page, timeout=30)
        assert answer.ok
        assert not any(secret in answer.text for secret in secrets), page


@pytest.mark.parametrize("header", MALFORMED)
def test_a_malformed_token_opens_nothing(stage, header):
    headers = {"Authorization": header.encode("latin-1")}
    for method, template in guarded():
        check_problem(ask(stage, method, template, headers=headers), 401, "not_authorized")


def test_a_good_token_opens_nothing_from_another_place_than_its_header(stage):
    for scheme in ("Device", "Admin"):
        token = stage.token_for({scheme})
        places = [
            {"params": {"access_token": token, "token": token, "Authorization": f"Bearer {token}"}},
            {"cookies": {"access_token": token, "Authorization": f"Bearer {token}"}},
            {"headers": {"X-Authorization": f"Bearer {token}", "Proxy-Authorization": token}},
            {"auth": ("device", token)},
        ]
        for method, template in guarded(scheme):
            for place in places:
                check_problem(ask(stage, method, template, **place), 401, "not_authorized")


def test_the_token_of_a_device_opens_nothing_of_admins_and_the_other_way_round(stage):
    for scheme, other in (("Device", "Admin"), ("Admin", "Device")):
        headers = {"Authorization": f"Bearer {stage.token_for({other})}"}
        for method, template in guarded(scheme):
            check_problem(ask(stage, method, template, headers=headers), 401, "not_authorized")


def test_every_endpoint_of_admins_lets_in_its_role_and_those_above_and_nobody_else(stage):
    assert set(guarded("Admin")) == LEAST_ROLE.keys()
    for (method, template), least in LEAST_ROLE.items():
        for role in ROLES:
            headers = {"Authorization": f"Bearer {stage.admins[role]}"}
            answer = ask(stage, method, template, headers=headers)
            if ROLES.index(role) >= ROLES.index(least):
                assert answer.ok, (role, template)
            else:
                check_problem(answer, 403, "not_allowed")
