"""Updates that devices put into an object store by themselves: their places, the interface."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

EXPIRES_S = 300.0
"""Seconds within which an upload to a signed address must begin."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """The one place of a device for one round; it never has the name of a blob.

    The same for every attempt, so that a device leaves one object behind at most.
    """

    device_id: str
    task: str
    number: int

    @property
    def key(self) -> str:
        """Name of the object, behind the prefix that all of them share."""
        return f"{self.device_id}/{self.task}/{self.number}"


class Staging(Protocol):
    """Where they are. Nothing of them is believed: what is fetched is checked and stored anew."""

    def sign(self, stage: Stage) -> str:
        """Return a secret address that takes one kind of request, ``PUT``, to one place.

        Raises:
            StorageError: There are no credentials to sign with.
            ServerBusy: They cannot be had now.
        """

    def fetch(self, stage: Stage, size_bytes: int, limit: int) -> Iterator[bytes]:
        """Yield what a device put into its place, at most 1 MiB at a time.

        An address cannot bound what is put there, so the size is looked at before a byte is read,
        and no more bytes than that are asked for.

        Args:
            stage: Of the device.
            size_bytes: What the device says it has put there.
            limit: Bytes it may have.

        Raises:
            NotFound: There is nothing.
            TooLarge: It has more than ``limit``; it is removed.
            DigestMismatch: It has another size than the device says.
            StorageError: The store refused.
            ServerBusy: It cannot be reached now.
        """

    def remove(self, stage: Stage) -> None:
        """Empty a place; if the store refuses, the collector does it later."""
