"""Which problems an operation can answer with: by what it takes, and its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from edge_sdk import errors
from server.http.problems import STATUS

_TASK = "/v1/tasks/{task}"
_ROUND = f"{_TASK}/rounds/{{number}}"
_DEVICE = "/v1/devices/{device_id}"
_SIGNED = (errors.NotAuthorized, errors.BadProof, errors.StaleChallenge, errors.Revoked)
_ENTRANCES = ("/v1/enrol", _DEVICE)
_UPDATE = (
    errors.NotAssigned,
    errors.RoundClosed,
    errors.UpdateConflict,
    errors.DigestMismatch,
    errors.MalformedPayload,
    errors.NotFinite,
    errors.ProtocolMismatch,
    errors.QuotaExceeded,
)

# What an operation refuses for reasons that cannot be seen from its parameters.
_OWN: Mapping[tuple[str, str], Sequence[type[errors.EdgeError]]] = {
    ("post", "/v1/enrol"): (
        errors.NotAuthorized,
        errors.TokenExpired,
        errors.TokenUsedUp,
        errors.BadProof,
        errors.Revoked,
    ),
    ("post", f"{_DEVICE}/token"): _SIGNED,
    ("post", f"{_DEVICE}/leave"): (
        errors.NotAuthorized,
        errors.BadProof,
        errors.StaleChallenge,
    ),
    ("post", f"{_DEVICE}/key"): (*_SIGNED, errors.ConfigError),
    ("post", "/v1/admin/devices/{device_id}/revoke"): (errors.NotAllowed,),
    ("get", "/v1/admin/overview"): (errors.NotFound,),
    ("get", "/v1/admin/audit"): (errors.NotAllowed,),
    ("post", f"{_TASK}/check-in"): (
        errors.ProtocolMismatch,
        errors.WrongBaseModel,
        errors.ConfigError,
    ),
    ("get", f"{_ROUND}/slice"): (
        errors.NotAssigned,
        errors.RoundClosed,
        errors.RangeNotSatisfiable,
    ),
    ("put", f"{_ROUND}/update"): _UPDATE,
    ("post", f"{_ROUND}/staged"): (
        errors.NotAssigned,
        errors.RoundClosed,
        errors.UpdateConflict,
        errors.QuotaExceeded,
    ),
    ("put", f"{_ROUND}/staged"): _UPDATE,
    ("get", f"{_ROUND}/parts/{{digest}}"): (
        errors.NotAssigned,
        errors.RoundClosed,
        errors.UpdateConflict,
    ),
    ("put", f"{_ROUND}/parts/{{digest}}/{{index}}"): (
        errors.NotAssigned,
        errors.RoundClosed,
        errors.DigestMismatch,
        errors.MalformedPayload,
        errors.QuotaExceeded,
    ),
    ("put", f"{_ROUND}/parts"): _UPDATE,
    ("post", f"{_TASK}/evaluations"): (errors.ProtocolMismatch, errors.ConfigError),
    ("get", f"{_TASK}/adapters/{{version}}"): (errors.RangeNotSatisfiable,),
    ("get", "/readyz"): (errors.ServerBusy,),
}


def problems_of(
    method: str, path: str, operation: Mapping[str, Any]
) -> dict[int, list[type[errors.EdgeError]]]:
    """Return the errors an operation can answer with, by status.

    Args:
        method: Of HTTP, in small letters.
        path: Template of its path.
        operation: As OpenAPI describes it.
    """
    found: set[type[errors.EdgeError]] = {errors.ServerFailed, *_OWN.get((method, path), ())}
    if path.startswith("/v1/"):
        found |= {errors.ServerBusy, errors.StorageError}
    if operation.get("security"):
        found |= {errors.NotAuthorized, errors.TokenExpired, errors.Revoked}
        found |= {errors.ServerBusy, errors.StorageError}
    is_for_devices = any("Device" in scheme for scheme in operation.get("security", []))
    if path.startswith(_ENTRANCES) or is_for_devices:
        found.add(errors.TooManyRequests)
    if operation.get("parameters") or "requestBody" in operation:
        found.add(errors.MalformedMessage)
    if "requestBody" in operation:
        found |= {errors.TooLarge, errors.TooSlow}
    if "{" in path:
        found.add(errors.NotFound)
    by_status: dict[int, list[type[errors.EdgeError]]] = {}
    for error in sorted(found, key=lambda error: (STATUS[error], error.code)):
        by_status.setdefault(STATUS[error], []).append(error)
    return by_status
