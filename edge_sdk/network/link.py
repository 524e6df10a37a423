"""The rate of the link to the server, measured on the transfers a round makes anyway."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path

import msgspec

from edge_sdk.files.whole_file import write_whole
from edge_sdk.wire.typed_json import decode_json

_FILE = "link.json"
_LEAST_BYTES = 64 << 10  # below, an exchange measures the latency


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """Rates in bytes per second; None where nothing large enough was moved yet."""

    uplink_bytes_per_s: float | None = None
    downlink_bytes_per_s: float | None = None


class LinkMeter:
    """Adds up the exchanges of one connection that move much in one direction."""

    def __init__(self) -> None:
        self._sent_bytes, self._sending_s = 0, 0.0
        self._received_bytes, self._receiving_s = 0, 0.0

    def add(self, sent_bytes: int, received_bytes: int, seconds: float) -> None:
        """Count one exchange; the server's own time counts as the link's."""
        if sent_bytes >= _LEAST_BYTES:
            self._sent_bytes += sent_bytes
            self._sending_s += seconds
        elif received_bytes >= _LEAST_BYTES:
            self._received_bytes += received_bytes
            self._receiving_s += seconds

    def link(self) -> Link:
        """Return the mean rates so far."""
        return Link(
            uplink_bytes_per_s=_rate(self._sent_bytes, self._sending_s),
            downlink_bytes_per_s=_rate(self._received_bytes, self._receiving_s),
        )


def load_link(folder: Path) -> Link:
    """Return the link as it was last measured; unknown if it never was, or the file is damaged."""
    try:
        return decode_json((folder / _FILE).read_bytes(), Link)
    except (OSError, msgspec.DecodeError):
        return Link()


def save_link(folder: Path, link: Link) -> None:
    """Remember the link for the next plan; a folder that cannot be written is no error."""
    with contextlib.suppress(OSError):
        write_whole(folder / _FILE, msgspec.json.encode(link))


def _rate(amount: int, seconds: float) -> float | None:
    return amount / seconds if amount and seconds > 0 else None
