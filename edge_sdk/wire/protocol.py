"""The version of the protocol, and the limits that every message keeps."""

from __future__ import annotations

import re

from edge_sdk.errors import ProtocolMismatch

PROTOCOL = 1
"""Version of messages, payloads and endpoints; both sides refuse any other."""

MAX_COUNT = 2**53
"""Largest integer that every JSON reader and database keeps exactly."""

MAX_VERSION = 2**31 - 1
"""Largest number of an adapter version that every database keeps in a plain integer."""

DIGEST = re.compile(r"[0-9a-f]{64}")
"""What a SHA-256 digest or an Ed25519 public key looks like."""


def check_protocol(theirs: int) -> None:
    """Refuse to talk across protocol versions.

    Raises:
        ProtocolMismatch: The other side speaks another version.
    """
    if theirs != PROTOCOL:
        raise ProtocolMismatch(
            f"the other side speaks protocol {theirs}, this side {PROTOCOL}: "
            "install the same release on both"
        )
