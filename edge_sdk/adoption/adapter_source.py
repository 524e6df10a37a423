"""Fetch the adapter a device shall use; nothing is handed out that was not checked."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from edge_sdk.errors import DigestMismatch, ForeignAdapter
from edge_sdk.identity.trust import Trust, load_trust, save_trust
from edge_sdk.network.transport import Transport
from edge_sdk.wire.manifest import (
    Manifest,
    Pointer,
    Signed,
    follow_successions,
    key_id_of,
    open_signed,
    spec_digest,
)
from edge_sdk.wire.payload import Arrays, adapter_shapes, decode, digest
from edge_sdk.wire.task import TaskSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckedAdapter:
    """An adapter version whose origin and content are right.

    Attributes:
        manifest: What it is.
        signed: The same, with the server's signature.
        arrays: Every tensor at rank r, float32.
    """

    manifest: Manifest
    signed: Signed
    arrays: Arrays


class AdapterSource:
    """The signed adapter versions of one server.

    Args:
        transport: To the server.
        state_folder: Where the trusted key and the last pointers are kept.
        server: Base address, as it was when the device joined.
        device_id: Of this device; decides whether it is in a canary.
    """

    def __init__(
        self, transport: Transport, state_folder: Path, server: str, device_id: str
    ) -> None:
        self._transport = transport
        self._state = state_folder
        self._server = server
        self._device_id = device_id

    def version(self, task: TaskSpec) -> int:
        """Return which version this device shall use now, without fetching it.

        Raises:
            UntrustedAdapter: As :meth:`fetch`.
        """
        trust, version = self._pointed(task)
        save_trust(self._state, trust)
        return version

    def fetch(self, task: TaskSpec) -> CheckedAdapter:
        """Return the version this device shall use now.

        Raises:
            UnknownKey: Signed by a key that the pinned one never gave way to.
            BadSignature: Changed after it was signed.
            ForeignAdapter: Of another task, base model, rank or scaling.
            RolledBack: Older than what this device was told before.
            DigestMismatch: The tensors are not those of the manifest.
            MalformedPayload: The tensors are not those of the task.
        """
        trust, version = self._pointed(task)
        signed = self._transport.manifest(task.name, version)
        manifest = open_signed(Manifest, signed, trust.signing_key)
        _check_manifest(manifest, task, version)
        save_trust(self._state, trust)
        body = self._transport.adapter_body(task, version, manifest.digest)
        if digest(body) != manifest.digest:
            raise DigestMismatch(
                f"adapter version {version} of {task.name!r} has SHA-256 {digest(body)[:12]}…, its "
                f"manifest says {manifest.digest[:12]}…: the server's file was changed"
            )
        shapes = adapter_shapes(task.adapter, task.adapter.r)
        arrays, _ = decode(body, shapes, task.adapter.wire_dtype)
        return CheckedAdapter(manifest=manifest, signed=signed, arrays=arrays)

    def _pointed(self, task: TaskSpec) -> tuple[Trust, int]:
        """Return the version the server points at, and the trust after having seen that."""
        trust = load_trust(self._state, self._server)
        signed = self._transport.pointer(task.name)
        trust = self._with_key_of(trust, signed)
        pointer = open_signed(Pointer, signed, trust.signing_key)
        _check_task("pointer", pointer.task, task.name)
        return trust.after(pointer), pointer.version_for(self._device_id)

    def _with_key_of(self, trust: Trust, signed: Signed) -> Trust:
        """Follow the server's changes of keys, if something is not signed by the trusted one."""
        if signed.key_id == key_id_of(trust.signing_key):
            return trust
        successions = self._transport.key_successions()
        return replace(trust, signing_key=follow_successions(trust.signing_key, successions))


def _check_task(what: str, found: str, wanted: str) -> None:
    if found != wanted:
        raise ForeignAdapter(f"the {what} the server sent is for task {found!r}, not {wanted!r}")


def _check_manifest(manifest: Manifest, task: TaskSpec, version: int) -> None:
    _check_task("manifest", manifest.task, task.name)
    if manifest.version != version:
        raise ForeignAdapter(
            f"the manifest is of version {manifest.version}, the server points at {version}"
        )
    if manifest.base_digest != task.base.digest:
        raise ForeignAdapter(
            f"version {version} of {task.name!r} belongs to base weights "
            f"{manifest.base_digest[:12]}…, not to {task.base.digest[:12]}… of {task.base.model}"
        )
    if manifest.spec_digest != spec_digest(task.adapter):
        raise ForeignAdapter(
            f"version {version} of {task.name!r} was signed with another rank, scaling or set of "
            "layers than the task has now: the task was changed on the server"
        )
