"""Updates that come in numbered parts: the places of the parts, and the interface."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from edge_sdk.errors import DigestMismatch
from server.blobs.spool import Upload


@dataclass(frozen=True, slots=True, kw_only=True)
class Parted:
    """One body that one device sends in parts for one round.

    Attributes:
        device_id: Who sends it.
        task: Name of the task.
        number: Of the round.
        digest: SHA-256 of the whole body; parts of another body are never put together with these.
    """

    device_id: str
    task: str
    number: int
    digest: str

    @property
    def place(self) -> str:
        """Where all bodies of the device for the round are."""
        return f"{self.device_id}/{self.task}/{self.number}"

    def key(self, index: int) -> str:
        """Return the name of one part; never that of a blob."""
        return f"{self.place}/{self.digest}/{index:05d}"


@dataclass(frozen=True, slots=True, kw_only=True)
class PartFound:
    """A part that is there: of which body, which one, and how large."""

    digest: str
    index: int
    size_bytes: int


class Parts(Protocol):
    """Where parts wait for the rest. A part shows whole or not at all, on every replica.

    Nothing is believed of them: what they make up is checked, and stored anew as a blob. Every
    method raises StorageError if the place refuses, and ServerBusy if it cannot be reached now.
    """

    def keep(self, body: Parted, index: int, upload: Upload) -> None:
        """Make an upload a part; again replaces it."""

    def found(self, body: Parted) -> list[PartFound]:
        """Return what is there of the device for the round, of this and of other bodies."""

    def stream(self, body: Parted, index: int) -> Iterator[bytes]:
        """Yield the bytes of one part, at most 1 MiB at a time."""

    def remove(self, body: Parted, found: PartFound) -> None:
        """Delete one part; a missing one is as good as deleted."""

    def remove_leftovers(self, older_than_s: float) -> None:
        """Delete what was not touched for so long; its device gave it up."""


def held(found: list[PartFound], body: Parted) -> dict[int, int]:
    """Return the size of every part of one body, by its number."""
    return {part.index: part.size_bytes for part in found if part.digest == body.digest}


def check_complete(sizes: dict[int, int], size_bytes: int) -> None:
    """Refuse to put parts together that are not the whole body.

    Raises:
        DigestMismatch: One is missing, or they have another size.
    """
    is_gapless = sorted(sizes) == list(range(len(sizes)))
    if not is_gapless or sum(sizes.values()) != size_bytes:
        raise DigestMismatch(
            f"{len(sizes)} parts with {sum(sizes.values())} bytes are here, the update was "
            f"announced with {size_bytes}: ask which are here and send the others"
        )


def read_key(key: str) -> tuple[str, int] | None:
    """Return the digest of the body and the number of the part that a name ends with."""
    *_, digest, index = key.split("/")
    return (digest, int(index)) if index.isdecimal() else None
