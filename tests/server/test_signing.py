"""The file of the private key: made once, for its owner alone, replaced whole."""

from __future__ import annotations

import os
import stat

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from edge_sdk.errors import ConfigError, StorageError
from edge_sdk.wire.manifest import Succession, open_signed
from server.access.signing import make_key, open_key, read_key, replace_key
from tests.server.tasks import in_parallel

STATEMENT = Succession(public_key="ab" * 32, created_at=1.0)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "state" / "signing-key.pem"


def test_the_first_opening_makes_a_key_that_only_its_owner_can_read(path):
    assert read_key(path) is None
    made = open_key(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert open_key(path).key_id == read_key(path).key_id == made.key_id
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_the_same_key_and_statement_give_the_same_signature_on_every_replica(path):
    one, other = open_key(path), open_key(path)
    assert one.sign(STATEMENT) == other.sign(STATEMENT)
    assert open_signed(Succession, one.sign(STATEMENT), other.public_key) == STATEMENT


def test_processes_that_start_at_once_agree_on_one_key(path):
    keys = in_parallel([lambda: open_key(path).key_id] * 8)
    assert len(set(keys)) == 1
    assert keys[0] == open_key(path).key_id
    assert len(list(path.parent.iterdir())) == 1


def test_a_key_made_elsewhere_in_pem_is_taken(path):
    path.parent.mkdir()
    private = Ed25519PrivateKey.generate()
    path.write_bytes(_pem(private))
    assert open_key(path).public_key == private.public_key().public_bytes_raw().hex()


@pytest.mark.parametrize("kind", ["text", "empty", "other algorithm", "encrypted", "public"])
def test_a_file_that_holds_no_usable_key_is_named_and_left_alone(path, kind):
    private = Ed25519PrivateKey.generate()
    content = {
        "text": b"secret",
        "empty": b"",
        "other algorithm": _pem(generate_private_key(SECP256R1())),
        "encrypted": _pem(private, serialization.BestAvailableEncryption(b"word")),
        "public": private.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        ),
    }[kind]
    path.parent.mkdir()
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"signing-key\.pem holds no unencrypted Ed25519"):
        open_key(path)
    assert path.read_bytes() == content


def test_a_replaced_key_is_the_new_one_and_still_private(path):
    open_key(path)
    new = make_key()
    replace_key(path, new)
    assert open_key(path).key_id == new.key_id
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert len(list(path.parent.iterdir())) == 1


def test_a_folder_that_cannot_be_written_is_a_storage_error(tmp_path):
    (tmp_path / "file").write_text("in the way")
    for write in (open_key, lambda path: replace_key(path, make_key())):
        with pytest.raises(StorageError, match="the signing key"):
            write(tmp_path / "file" / "signing-key.pem")


def test_the_private_half_is_never_shown(path):
    key = open_key(path)
    assert repr(key) == f"SigningKey({key.key_id})"
    assert os.fsencode(key.as_pem().split(b"\n")[1]) not in repr(vars(key)).encode()


def _pem(private, encryption=None) -> bytes:
    return private.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        encryption or serialization.NoEncryption(),
    )
