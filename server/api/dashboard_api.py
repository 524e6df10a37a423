"""The dashboard: one read-only page, and the JSON it shows."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import FileResponse

from edge_sdk.errors import NotFound
from server.api.admin_access import Reader
from server.operation.overview import Overviews
from server.operation.overview_messages import Overview

_FOLDER = Path(__file__).parents[1] / "dashboard"
_PARTS = {
    "page.js": "text/javascript",
    "summary.js": "text/javascript",
    "sections.js": "text/javascript",
    "parts.js": "text/javascript",
    "charts.js": "text/javascript",
    "elements.js": "text/javascript",
    "amounts.js": "text/javascript",
    "style.css": "text/css",
    "icon.svg": "image/svg+xml",
}
_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
        "require-trusted-types-for 'script'; trusted-types 'none'"
    ),
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Cache-Control": "no-cache",
}

router = APIRouter()


@router.get("/dashboard", include_in_schema=False)
def page() -> Response:
    """Send the page; it holds nothing secret and asks for a token."""
    return FileResponse(_FOLDER / "page.html", media_type="text/html", headers=_HEADERS)


@router.get("/dashboard/{name}", include_in_schema=False)
def part(name: str) -> Response:
    """Send a script, the style or the icon of the page."""
    if name not in _PARTS:
        raise NotFound(f"the dashboard has no file {name[:60]!r}: it is at /dashboard")
    return FileResponse(_FOLDER / name, media_type=_PARTS[name], headers=_HEADERS)


@router.get("/v1/admin/overview", tags=["admin"])
def overview(
    request: Request,
    response: Response,
    _reader: Reader,
    task: Annotated[
        str | None,
        Query(max_length=63, description="Name; without it, the first that runs"),
    ] = None,
) -> Overview:
    """Return all tasks, and one of them in detail, with sizes that do not grow with the fleet."""
    overviews: Overviews = request.app.state.overviews
    response.headers["Cache-Control"] = "no-store"
    return overviews.build(task)
