"""The server's Ed25519 signing key: a private file, made once and replaced whole."""

from __future__ import annotations

import os
import secrets
from contextlib import suppress
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from edge_sdk.errors import ConfigError, StorageError
from edge_sdk.wire.manifest import (
    Manifest,
    Pointer,
    Signed,
    Succession,
    bytes_to_sign,
    canonical,
    key_id_of,
)


class SigningKey:
    """A private key that makes signed statements.

    Args:
        private: The key itself; it never leaves this object but into its file.

    Attributes:
        public_key: 64 hex digits.
        key_id: The name of the key.
    """

    def __init__(self, private: Ed25519PrivateKey) -> None:
        self._private = private
        self.public_key = private.public_key().public_bytes_raw().hex()
        self.key_id = key_id_of(self.public_key)

    def __repr__(self) -> str:
        return f"SigningKey({self.key_id})"

    def sign(self, statement: Manifest | Pointer | Succession) -> Signed:
        """Sign a statement; the same one gives the same bytes, also on another replica."""
        payload = canonical(statement)
        signature = self._private.sign(bytes_to_sign(type(statement), payload))
        return Signed(payload=payload.decode(), key_id=self.key_id, signature=signature.hex())

    def as_pem(self) -> bytes:
        """Return the private key as its file holds it: PKCS #8, as OpenSSL writes it."""
        return self._private.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )


def make_key() -> SigningKey:
    """Return a new random key."""
    return SigningKey(Ed25519PrivateKey.generate())


def open_key(path: Path) -> SigningKey:
    """Return the key of a file; where there is none, a new one is made and kept there.

    Raises:
        ConfigError: The file holds no Ed25519 private key.
        StorageError: It cannot be read or written.
    """
    found = read_key(path)
    if found is not None:
        return found
    partial = path.with_name(f"{path.name}.{secrets.token_hex(8)}")
    try:
        _write(partial, make_key())
        with suppress(FileExistsError):  # another process was faster: its key counts
            os.link(partial, path)
    except OSError as error:
        raise _refused(path, "made", error) from error
    finally:
        with suppress(OSError):  # there may be no folder either
            partial.unlink(missing_ok=True)
    return open_key(path)


def read_key(path: Path) -> SigningKey | None:
    """Return the key of a file, or None where there is no file.

    Raises:
        ConfigError: The file holds no Ed25519 private key.
        StorageError: It cannot be read.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise _refused(path, "read", error) from error
    try:
        private = serialization.load_pem_private_key(content, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        private = None
    if not isinstance(private, Ed25519PrivateKey):
        raise ConfigError(
            f"{path} holds no unencrypted Ed25519 private key in PEM; make one with: "
            "openssl genpkey -algorithm ed25519"
        )
    return SigningKey(private)


def replace_key(path: Path, key: SigningKey) -> None:
    """Write a key durably, for its owner alone, in place of what was there.

    Raises:
        StorageError: It cannot be written; what was there is as it was.
    """
    partial = path.with_name(f"{path.name}.{secrets.token_hex(8)}")
    try:
        _write(partial, key)
        partial.replace(path)
        _sync_folder(path.parent)
    except OSError as error:
        raise _refused(path, "written", error) from error
    finally:
        with suppress(OSError):  # there may be no folder either
            partial.unlink(missing_ok=True)


def _write(path: Path, key: SigningKey) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as stream:
        stream.write(key.as_pem())
        stream.flush()
        os.fsync(stream.fileno())


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _refused(path: Path, what: str, error: OSError) -> StorageError:
    return StorageError(f"the signing key {path} cannot be {what}: {error.strerror}")
