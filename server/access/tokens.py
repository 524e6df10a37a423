"""Random secrets that people copy, and the form in which they are kept."""

from __future__ import annotations

import hashlib
import secrets

_TOKEN_BYTES = 32


def new_token(kind: str = "") -> str:
    """Return a random secret that no shell or command line takes for a flag.

    Args:
        kind: A word in front, so that people can tell tokens apart.
    """
    prefix = f"edge_{kind}_" if kind else "edge_"
    return f"{prefix}{secrets.token_urlsafe(_TOKEN_BYTES)}"


def hash_token(token: str) -> str:
    """Return the SHA-256 of a token; tokens are random, so they need no salt."""
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).hexdigest()
