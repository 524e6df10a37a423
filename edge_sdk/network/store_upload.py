"""Put a body into an object store, at an address that the server signed for this device."""

from __future__ import annotations

import logging
from io import BytesIO
from urllib.parse import urlsplit

import requests

log = logging.getLogger("edge_sdk")


def put_into_store(
    url: str, body: BytesIO, timeouts_s: tuple[float, float], *, needs_tls: bool
) -> bool:
    """Put a body at a signed address and say whether the store took it.

    The store is a stranger: it sees no token, password or cookie of this device, and cannot send
    it elsewhere. The address is a secret, so no message contains it.

    Args:
        url: From the server.
        body: What the address is for: a file, as bytes would have to be gone in one timeout.
        timeouts_s: Seconds to wait for a connection, or for the link to take a few more KiB; and
            for the answer.
        needs_tls: Whether to send nothing without TLS, as to the server itself.
    """
    reason = _why_refused(url, body, timeouts_s, needs_tls)
    if reason is not None:
        log.warning("the object store did not get the update: %s", reason)
    return reason is None


def _why_refused(
    url: str, body: BytesIO, timeouts_s: tuple[float, float], needs_tls: bool
) -> str | None:
    try:
        if needs_tls and urlsplit(url).scheme != "https":
            return "it has no TLS, but the server has"
        with requests.put(
            url,
            data=body,
            auth=without_password,
            timeout=timeouts_s,
            stream=True,
            allow_redirects=False,
        ) as response:
            is_taken = 200 <= response.status_code < 300
            return None if is_taken else f"it says HTTP {response.status_code}"
    except (requests.RequestException, ValueError) as error:
        return type(error).__name__


def without_password(request: requests.PreparedRequest) -> requests.PreparedRequest:
    """Add nothing; without this, a password for the host in ``.netrc`` or the URL would be sent."""
    return request
