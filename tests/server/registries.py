"""A registry over a test's state, and what it signed, opened."""

from __future__ import annotations

from edge_sdk.wire.manifest import Manifest, Pointer, open_signed
from edge_sdk.wire.task import TaskSpec
from server.access.key_ring import KeyRing
from server.registry.registry import Registry
from tests.server.tasks import Site


class Signer:
    """The registry of a site.

    Args:
        site: Its state.
        name: Of the key's file in the state folder.
    """

    def __init__(self, site: Site, name: str = "signing-key.pem") -> None:
        self.site = site
        self.path = site.settings.state / name
        self.keys = KeyRing(site.store, self.path, site.clock)
        self.registry = Registry(site.store, self.keys, site.clock)

    def manifest(self, version: int, task: str = "tiny") -> Manifest:
        signed = self.registry.manifest(task, version)
        return open_signed(Manifest, signed, self.registry.public_key())

    def pointer(self, task: str = "tiny") -> Pointer:
        return open_signed(Pointer, self.registry.pointer(task), self.registry.public_key())

    def close_round(self, spec: TaskSpec, seed: int = 1, **report) -> None:
        """Close a round and sign what it made, as the server does."""
        close_round(self.site, spec, seed, **report)
        self.registry.catch_up(spec.name)


def close_round(site: Site, spec: TaskSpec, seed: int = 1, **report) -> None:
    """Let every device of the quorum train, and close the round."""
    for i in range(spec.policy.quorum):
        device = f"device-{i}"
        with site.store.read() as tx:
            is_new = tx.device(device) is None
        if is_new:
            site.add_device(device)
        site.train(device, spec, seed=10 * seed + i, **report)
    site.advance()
