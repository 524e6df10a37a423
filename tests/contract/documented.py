"""What the OpenAPI description of a running server announces."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import requests

from server.settings.settings import Settings
from tests.contract.live import live_server

Operation = dict[str, Any]


@cache
def description() -> dict[str, Any]:
    """Return the description; it is the same for every server of this release."""
    with (
        tempfile.TemporaryDirectory() as folder,
        live_server(Settings(state=Path(folder))) as url,
    ):
        return requests.get(f"{url}/openapi.json", timeout=30).json()


def operations() -> Iterator[tuple[str, str, Operation]]:
    """Yield method, path and description of every operation."""
    for path, found in description()["paths"].items():
        for method, operation in found.items():
            yield method, path, operation


def problems_of(operation: Operation) -> set[tuple[int, str]]:
    """Return status and code of every problem an operation announces."""
    return {
        (int(status), code)
        for status, response in operation["responses"].items()
        for media_type, content in response.get("content", {}).items()
        for code in content.get("examples", {})
        if media_type == "application/problem+json"
    }


def is_announced(method: str, url: str, status: int, code: str) -> bool:
    """Say whether a problem is one that its operation announces, if there is such an operation."""
    for described, path, operation in operations():
        pattern = re.sub(r"\{\w+\}", "[^/]+", path)
        if described == method.lower() and re.fullmatch(pattern, urlsplit(url).path):
            return (status, code) in problems_of(operation)
    return code == "not_found"
