"""The OpenAPI description: every operation with examples and the problems it can answer with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import TypeAdapter

from edge_sdk import errors
from edge_sdk.wire.messages import Problem
from edge_sdk.wire.protocol import PROTOCOL
from server.api.openapi_examples import INLINE, message_examples
from server.api.problem_codes import problems_of
from server.http.problems import MEDIA_TYPE

_JSON = "application/json"
_METHODS = {"get", "post", "put", "patch", "delete"}
_REQUEST_ID = {
    "X-Request-Id": {
        "description": "As the request gave it, or made by the server; its log has it too",
        "schema": {"type": "string"},
    }
}


def install(app: FastAPI) -> None:
    """Make an application serve the description at ``/openapi.json``."""

    def describe() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _describe(app)
        return app.openapi_schema

    app.openapi = describe  # type: ignore[method-assign]


def _describe(app: FastAPI) -> dict[str, Any]:
    document = get_openapi(
        title="Edge aggregation server",
        version=f"protocol {PROTOCOL}",
        description="Rounds of federated sketched LoRA. Errors are RFC 9457 problem bodies.",
        routes=app.routes,
    )
    schemas = document["components"]["schemas"]
    schemas["Problem"] = TypeAdapter(Problem).json_schema()
    for unused in ("HTTPValidationError", "ValidationError"):
        schemas.pop(unused, None)
    examples = message_examples()
    for path, operations in document["paths"].items():
        for method in _METHODS & operations.keys():
            operation = operations[method]
            operation["responses"].pop("422", None)
            _add_examples(operation, examples, INLINE.get(path))
            _add_problems(operation["responses"], problems_of(method, path, operation))
            for response in operation["responses"].values():
                response["headers"] = {**_REQUEST_ID, **response.get("headers", {})}
    return document


def _add_examples(
    operation: dict[str, Any], examples: Mapping[str, Any], inline: object | None
) -> None:
    """Give every JSON body of an operation an example."""
    bodies = [operation.get("requestBody", {}), *operation["responses"].values()]
    for body in bodies:
        content = body.get("content", {})
        if _JSON in content:
            found = _example_of(content[_JSON].get("schema", {}), examples, inline)
            if found is not None:
                content[_JSON]["example"] = found


def _example_of(
    schema: Mapping[str, Any], examples: Mapping[str, Any], inline: object | None
) -> object | None:
    if "$ref" in schema:
        return examples.get(schema["$ref"].rpartition("/")[2])
    if "$ref" in schema.get("items", {}):
        item = _example_of(schema["items"], examples, None)
        return None if item is None else [item]
    return inline


def _add_problems(
    responses: dict[str, Any], problems: Mapping[int, Sequence[type[errors.EdgeError]]]
) -> None:
    for status, found in problems.items():
        responses[str(status)] = {
            "description": ", ".join(f"`{error.code}`" for error in found),
            "content": {
                MEDIA_TYPE: {
                    "schema": {"$ref": "#/components/schemas/Problem"},
                    "examples": {error.code: _problem_example(status, error) for error in found},
                }
            },
        }


def _problem_example(status: int, error: type[errors.EdgeError]) -> dict[str, Any]:
    meaning = (error.__doc__ or error.code).partition("\n")[0]
    return {
        "summary": meaning,
        "value": {
            "type": "about:blank",
            "title": error.code.replace("_", " "),
            "status": status,
            "code": error.code,
            "detail": meaning,
            "request_id": "5f0c1a2b3d4e",
        },
    }
