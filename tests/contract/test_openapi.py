"""The description a running server gives of itself; every operation is looked at."""

import re
from pathlib import Path

import jsonschema
import pytest
import requests
from openapi_spec_validator import validate

from edge_sdk.errors import by_code
from server.http.problems import STATUS
from tests.contract.documented import description, operations, problems_of

PROTOCOL = Path(__file__).parents[2] / "docs" / "protocol.md"
BINARY = {"application/vnd.safetensors": {"schema": {"type": "string", "format": "binary"}}}
DEVICE = "/v1/devices/{device_id}"
ENTRANCES = {"/v1/enrol", *(f"{DEVICE}/{x}" for x in ("challenge", "token", "key", "leave"))}
OPEN = {*ENTRANCES, "/healthz", "/readyz"}


@pytest.fixture
def document():
    return description()


def test_the_description_is_valid_openapi(document):
    validate(document)


def test_the_description_has_exactly_the_endpoints_of_the_protocol():
    text = PROTOCOL.read_text(encoding="utf-8")
    documented = {
        (method, path.replace("{n}", "{number}"))
        for method, path in re.findall(r"^\| `(\w+) (/[^`]*)`", text, re.M)
    }
    assert {(method.upper(), path) for method, path, _ in operations()} == documented


def test_every_operation_says_what_it_does_and_who_may_ask(document):
    schemes = document["components"]["securitySchemes"]
    for method, path, operation in operations():
        assert operation["summary"], (method, path)
        assert len(operation["description"]) > 20, (method, path)
        assert operation["tags"], (method, path)
        assert ("security" in operation) is (path not in OPEN), (method, path)
        for requirement in operation.get("security", []):
            assert all(schemes[name]["scheme"] == "bearer" for name in requirement)


def test_every_json_body_has_an_example_that_is_valid(document):
    for method, path, operation in operations():
        bodies = [operation.get("requestBody", {}), *operation["responses"].values()]
        for body in bodies:
            content = body.get("content", {}).get("application/json")
            if content is not None:
                assert "example" in content, (method, path)
                check(document, content["schema"], content["example"])


def check(document, schema, example):
    jsonschema.validate(example, schema | {"components": document["components"]})


def test_every_problem_is_listed_with_its_status_and_an_example(document):
    schema = {"$ref": "#/components/schemas/Problem"}
    for method, path, operation in operations():
        assert "422" not in operation["responses"]
        for status, response in operation["responses"].items():
            if status[0] in "45":
                examples = response["content"]["application/problem+json"]["examples"]
                for code, example in examples.items():
                    assert STATUS[by_code()[code]] == int(status), (method, path)
                    assert example["value"]["code"] == code
                    assert f"`{code}`" in response["description"]
                    check(document, schema, example["value"])


def test_an_operation_lists_the_problems_that_follow_from_what_it_takes():
    for method, path, operation in operations():
        codes = {code for _, code in problems_of(operation)}
        assert "server_failed" in codes, (method, path)
        has_token = path in ENTRANCES - {f"{DEVICE}/challenge"} or "security" in operation
        assert ("not_authorized" in codes) is has_token, (method, path)
        assert ("too_large" in codes) is ("requestBody" in operation), (method, path)
        if "{" in path:
            assert "not_found" in codes, (method, path)


def test_every_code_of_the_server_is_listed_by_some_operation():
    listed = {code for *_, operation in operations() for _, code in problems_of(operation)}
    assert listed == {error.code for error in STATUS} - {"invalid_sketch"}


def test_every_answer_announces_the_id_of_its_request():
    for *_, operation in operations():
        for response in operation["responses"].values():
            assert "X-Request-Id" in response["headers"]


def test_tensor_bodies_are_described_in_both_directions(document):
    paths = document["paths"]
    for path in ("/v1/tasks/{task}/rounds/{number}/slice", "/v1/tasks/{task}/adapters/{version}"):
        answer = paths[path]["get"]["responses"]["200"]
        assert answer["content"] == BINARY
        assert "Content-Digest" in answer["headers"]
    update = paths["/v1/tasks/{task}/rounds/{number}/update"]["put"]
    assert update["requestBody"]["content"] == BINARY
    assert "content-digest" in {parameter["name"] for parameter in update["parameters"]}


def test_every_reference_leads_somewhere(document):
    schemas = document["components"]["schemas"]
    references = set(re.findall(r"#/components/schemas/(\w+)", str(document)))
    assert references <= schemas.keys()
    assert {"TaskSpec", "CheckIn", "CheckInReply", "Receipt", "Problem"} <= references


def test_the_description_can_be_read_without_a_token(service):
    assert requests.get(f"{service.url}/openapi.json", timeout=10).status_code == 200


@pytest.mark.parametrize("page", ["docs", "redoc", "docs/oauth2-redirect"])
def test_no_page_brings_scripts_from_elsewhere(service, page):
    assert requests.get(f"{service.url}/{page}", timeout=10).status_code == 404
