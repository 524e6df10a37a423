"""What the server remembers of signed adapters: the rows, and what a transaction does with them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True, kw_only=True)
class SigningKeyRow:
    """One public key the server signs or signed with.

    Attributes:
        number: From 1; the largest is the one that counts.
        key_id: Name of the key.
        public_key: 64 hex digits.
        succession: The signed word of the key before it, as JSON; None for the first.
        created_at: Seconds since 1970.
    """

    number: int
    key_id: str
    public_key: str
    succession: str | None
    created_at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class PointerRow:
    """One state of a task's channel ``stable``; all but the last are history.

    Attributes:
        task: Name of the task.
        sequence: From 1, growing.
        version: What devices use.
        canary_version: What devices of the canary use; None without a canary.
        canary_share: Share of the devices in the canary, 0 to 1.
        follows_latest: Whether the next version is promoted by itself.
        created_at: Seconds since 1970.
        signed: The signed pointer as JSON.
    """

    task: str
    sequence: int
    version: int
    canary_version: int | None
    canary_share: float
    follows_latest: bool
    created_at: float
    signed: str


class RegistryTransaction(Protocol):
    """Signing keys, manifests and channels."""

    def add_signing_key(self, row: SigningKeyRow) -> None:
        """Insert a public key."""

    def signing_keys(self) -> list[SigningKeyRow]:
        """Return all public keys, oldest first."""

    def add_manifest(self, task: str, version: int, signed: str) -> None:
        """Insert the signed manifest of an adapter version, as JSON."""

    def manifest(self, task: str, version: int) -> str | None:
        """Return the signed manifest of an adapter version."""

    def manifests(self) -> list[tuple[str, int, str]]:
        """Return task, version and signed manifest of every version that has one."""

    def replace_manifest(self, task: str, version: int, signed: str) -> None:
        """Change the signature of a manifest."""

    def unsigned_versions(self, task: str) -> list[int]:
        """Return the adapter versions that have no manifest yet, in order."""

    def add_pointer(self, row: PointerRow) -> None:
        """Insert a state of a channel."""

    def pointers(self, task: str) -> list[PointerRow]:
        """Return all states of a task's channel, oldest first."""

    def last_pointer(self, task: str) -> PointerRow | None:
        """Return the state a task's channel has now."""

    def replace_pointer(self, row: PointerRow, signed: str) -> None:
        """Change the signature of a pointer."""
