"""The OpenAPI description, with the problem bodies every request can get."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import TypeAdapter

from edge_sdk.wire.messages import PROTOCOL, Problem
from server.problems import MEDIA_TYPE, STATUS

_METHODS = {"get", "post", "put"}
_PROBLEM = {"schema": {"$ref": "#/components/schemas/Problem"}}


def install(app: FastAPI) -> None:
    """Make an application serve the description at ``/openapi.json`` and ``/docs``."""

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
    for path, operations in document["paths"].items():
        if path.startswith("/v1"):
            for method in _METHODS & operations.keys():
                _describe_problems(operations[method]["responses"])
    return document


def _describe_problems(responses: dict[str, Any]) -> None:
    responses.pop("422", None)
    for status in sorted(set(STATUS.values())):
        codes = sorted(error.code for error, at in STATUS.items() if at == status)
        responses[str(status)] = {
            "description": ", ".join(f"`{code}`" for code in codes),
            "content": {MEDIA_TYPE: _PROBLEM},
        }
