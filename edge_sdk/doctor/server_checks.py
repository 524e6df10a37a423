"""Checks of the way to the server: proxy, certificate, answer, clock, and this device's access."""

from __future__ import annotations

import os
import time
from email.utils import parsedate_to_datetime
from pathlib import Path
from urllib.parse import urlsplit

import requests

from edge_sdk.doctor.finding import Finding, Outcome
from edge_sdk.errors import ConfigError, EdgeError, NotAuthorized, Revoked, ServerUnreachable
from edge_sdk.identity.identity import Identity, load_identity
from edge_sdk.network.transport import Transport

_TIMEOUT_S = 10.0
_SKEW_S, _LARGE_SKEW_S = 30.0, 300.0
_PROXIES = ("HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY", "NO_PROXY")
_JOIN = "edge-sdk join SERVER --token TOKEN, with both from the operator"


def check_server(folder: Path, server: str | None) -> list[Finding]:
    """Ask the server, if one is known, with at most 10 s for each answer.

    Args:
        folder: The state folder, where this device's identity is.
        server: Base address; None takes the server this device joined.
    """
    try:
        identity, refusal = load_identity(folder), None
    except ConfigError as error:
        identity, refusal = None, _said("token", "fail", str(error), _JOIN)
    address = server or (identity.server if identity is not None else None)
    if address is None:
        found = "this device has not joined a server"
        unknown = [_said(name, "skipped", found, _JOIN) for name in ("server", "clock")]
        return [_proxy(None), *unknown, refusal or _said("token", "skipped", found, _JOIN)]
    begun = time.time()
    try:
        answer = requests.get(
            f"{address.rstrip('/')}/healthz", timeout=_TIMEOUT_S, allow_redirects=False
        )
    except (requests.RequestException, ValueError) as error:
        unknown = [
            _said(name, "skipped", "no answer from the server") for name in ("clock", "token")
        ]
        return [_proxy(address), _no_answer(address, error), *unknown[:1], refusal or unknown[1]]
    now = (begun + time.time()) / 2
    return [
        _proxy(address),
        _answered(address, answer),
        _clock(answer.headers.get("Date"), now),
        refusal or _token(address, identity),
    ]


def _proxy(address: str | None) -> Finding:
    """Name the proxies in use, without the passwords in their addresses."""
    told = {name: os.environ.get(name) or os.environ.get(name.lower()) for name in _PROXIES}
    used = [f"{name}={_public(name, value)}" for name, value in told.items() if value]
    if not used:
        return _said("proxy", "ok", "none is set")
    if address is not None and requests.utils.should_bypass_proxies(address, no_proxy=None):
        return _said("proxy", "ok", f"the server is reached without it: {', '.join(used)}")
    return _said("proxy", "ok", ", ".join(used))


def _public(name: str, value: str) -> str:
    if name == "NO_PROXY":
        return value
    try:
        parts = urlsplit(value if "://" in value else f"http://{value}")
        return f"{parts.hostname}:{parts.port}" if parts.port else str(parts.hostname)
    except ValueError:
        return "not an address"


def _no_answer(address: str, error: Exception) -> Finding:
    if isinstance(error, requests.exceptions.SSLError):
        found, fix = _tls_fault(str(error))
        return _said("server", "fail", f"{_host(address)}: {found}", fix)
    if isinstance(error, requests.exceptions.ProxyError):
        fix = "correct HTTPS_PROXY, or add the server to NO_PROXY"
        return _said("server", "fail", f"{_host(address)}: the proxy does not let it through", fix)
    if isinstance(error, (requests.exceptions.InvalidURL, ValueError)) and not isinstance(
        error, requests.exceptions.ConnectionError
    ):
        return _said("server", "fail", "its address is none", "name one like http://host:port")
    kind = type(error).__name__
    fix = "check the address, the network and that edge-server serves there"
    return _said("server", "fail", f"{_host(address)}: no answer ({kind})", fix)


def _tls_fault(text: str) -> tuple[str, str]:
    """Return what is wrong with TLS, and what to do about it."""
    if "certificate has expired" in text or "not yet valid" in text:
        return "its TLS certificate is not valid today", "set the clock, or tell the operator"
    if "mismatch" in text or "doesn't match" in text:
        return "its TLS certificate is for another name", "use the name the operator gave"
    if "CERTIFICATE_VERIFY_FAILED" in text:
        fix = "name the authority's certificate file in REQUESTS_CA_BUNDLE"
        return "its TLS certificate is of an authority that is not trusted here", fix
    return "TLS fails", "does the address begin with http:// in truth? ask the operator"


def _host(address: str) -> str:
    """Return an address as it may be shown: without a user and a password in it."""
    parts = urlsplit(address)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"


def _answered(address: str, answer: requests.Response) -> Finding:
    if answer.ok:
        took_ms = answer.elapsed.total_seconds() * 1000
        return _said("server", "ok", f"{_host(address)} answers in {took_ms:.0f} ms")
    found = f"{_host(address)} answers {answer.status_code} to /healthz"
    return _said("server", "fail", found, "is this the address of an edge-server? ask the operator")


def _clock(date: str | None, now: float) -> Finding:
    try:
        skew_s = now - parsedate_to_datetime(date or "").timestamp()
    except (TypeError, ValueError):
        return _said("clock", "skipped", "the server does not say what time it has")
    if abs(skew_s) <= _SKEW_S:
        return _said("clock", "ok", "agrees with the server's")
    side = "ahead of" if skew_s > 0 else "behind"
    found = f"{abs(skew_s):.0f} s {side} the server's"
    outcome: Outcome = "fail" if abs(skew_s) > _LARGE_SKEW_S else "warn"
    return _said("clock", outcome, found, "switch network time on: timedatectl set-ntp true")


def _token(address: str, identity: Identity | None) -> Finding:
    if identity is None:
        return _said("token", "skipped", "this device has not joined a server", _JOIN)
    if address.rstrip("/") != identity.server.rstrip("/"):
        found = f"this device belongs to {_host(identity.server)}: nothing was shown to another"
        return _said("token", "skipped", found, _JOIN)
    try:
        tasks = Transport(address, identity, retries=0).tasks()
    except Revoked:
        return _said("token", "fail", "the operator revoked this device", "ask the operator")
    except NotAuthorized as error:
        return _said("token", "fail", f"the server does not know this device: {error}", _JOIN)
    except ServerUnreachable as error:
        return _said("token", "fail", str(error), "check the network, then run doctor again")
    except EdgeError as error:
        return _said("token", "fail", str(error), "ask the operator to look into the server's log")
    found = f"opens the server for {identity.name}: {len(tasks)} task(s)"
    return _said("token", "ok", found)


def _said(check: str, outcome: Outcome, found: str, fix: str = "") -> Finding:
    return Finding(check=check, outcome=outcome, found=found, fix=fix)
