"""The key pair of a device; its private half never leaves this machine."""

from __future__ import annotations

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from edge_sdk.errors import ConfigError


class DeviceKey:
    """An Ed25519 key that signs for one device.

    Args:
        private_key: 64 hex digits, as the state file has them.

    Raises:
        ConfigError: They are no key.
    """

    def __init__(self, private_key: str) -> None:
        try:
            self._key = Ed25519PrivateKey.from_private_bytes(bytes.fromhex(private_key))
        except ValueError as error:
            raise ConfigError(
                "the device's private key is damaged: delete its state file and join again"
            ) from error
        self.public_key = self._key.public_key().public_bytes_raw().hex()

    def sign(self, statement: bytes) -> str:
        """Return the signature over a statement, 128 hex digits."""
        return self._key.sign(statement).hex()


def make_private_key() -> str:
    """Return a new private key, 64 hex digits."""
    return Ed25519PrivateKey.generate().private_bytes_raw().hex()
