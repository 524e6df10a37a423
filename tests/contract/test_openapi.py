"""The description a running server gives of itself."""

import re
from pathlib import Path

import pytest
import requests

from server.problems import STATUS

PROTOCOL = Path(__file__).parents[2] / "docs" / "protocol.md"
BINARY = {"application/vnd.safetensors": {"schema": {"type": "string", "format": "binary"}}}


@pytest.fixture
def document(service):
    return requests.get(f"{service.url}/openapi.json", timeout=10).json()


def test_the_description_has_exactly_the_endpoints_of_the_protocol(document):
    text = PROTOCOL.read_text(encoding="utf-8")
    documented = {
        (method, path.replace("{n}", "{number}"))
        for method, path in re.findall(r"^\| `(\w+) (/[^`]*)`", text, re.M)
    }
    served = {
        (method.upper(), path)
        for path, operations in document["paths"].items()
        for method in operations
    }
    assert served == documented


def test_tensor_bodies_are_described_in_both_directions(document):
    paths = document["paths"]
    for path in ("/v1/tasks/{task}/rounds/{number}/slice", "/v1/tasks/{task}/adapters/{version}"):
        answer = paths[path]["get"]["responses"]["200"]
        assert answer["content"] == BINARY
        assert "Content-Digest" in answer["headers"]
    update = paths["/v1/tasks/{task}/rounds/{number}/update"]["put"]
    assert update["requestBody"]["content"] == BINARY
    assert "content-digest" in {parameter["name"] for parameter in update["parameters"]}


def test_every_device_endpoint_describes_its_problems(document):
    schema = document["components"]["schemas"]["Problem"]
    assert {"title", "status", "code", "detail"} <= schema["properties"].keys()
    for path, operations in document["paths"].items():
        for operation in operations.values():
            responses = operation["responses"]
            assert "422" not in responses
            if path.startswith("/v1"):
                for status in set(STATUS.values()):
                    content = responses[str(status)]["content"]
                    assert content == {
                        "application/problem+json": {
                            "schema": {"$ref": "#/components/schemas/Problem"}
                        }
                    }


def test_every_reference_leads_somewhere(document):
    schemas = document["components"]["schemas"]
    references = set(re.findall(r"#/components/schemas/(\w+)", str(document)))
    assert references <= schemas.keys()
    assert {"TaskSpec", "CheckIn", "CheckInReply", "Receipt", "Problem"} <= references


def test_device_endpoints_ask_for_a_bearer_token_and_enrolment_does_not(document):
    for path, operations in document["paths"].items():
        for operation in operations.values():
            is_open = path in {"/v1/enrol", "/healthz"}
            assert ("security" in operation) is not is_open


def test_the_description_can_be_read_by_people_without_a_token(service):
    assert requests.get(f"{service.url}/docs", timeout=10).status_code == 200
