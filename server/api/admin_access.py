"""What an admin endpoint asks for: the admin behind a request, of a role or above."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from server.access.admins import authenticate_admin
from server.storage.access_store import AdminRow, Role

_bearer = HTTPBearer(
    auto_error=False, scheme_name="Admin", description="Token from `edge-server admin create`"
)
_Credentials = Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)]


def _reader(request: Request, credentials: _Credentials) -> AdminRow:
    return _authenticate(request, credentials, "read")


def _operator(request: Request, credentials: _Credentials) -> AdminRow:
    return _authenticate(request, credentials, "operate")


def _admin(request: Request, credentials: _Credentials) -> AdminRow:
    return _authenticate(request, credentials, "admin")


Reader = Annotated[AdminRow, Depends(_reader)]
Operator = Annotated[AdminRow, Depends(_operator)]
Admin = Annotated[AdminRow, Depends(_admin)]


def _authenticate(
    request: Request, credentials: HTTPAuthorizationCredentials | None, role: Role
) -> AdminRow:
    token = credentials.credentials if credentials else None
    state = request.app.state
    return authenticate_admin(state.store, token, role, state.clock())
