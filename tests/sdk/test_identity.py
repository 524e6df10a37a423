"""The identity file is private, whole or absent, and never printed with its token."""

from __future__ import annotations

import stat

import pytest

from edge_sdk.errors import ConfigError, StorageError
from edge_sdk.identity import Identity, load_identity, save_identity

IDENTITY = Identity(
    server="http://127.0.0.1:1", device_id="d1", device_token="not-a-secret", name="ada"
)


def test_identity_survives_a_restart_and_only_its_user_can_read_it(tmp_path):
    save_identity(tmp_path / "state", IDENTITY)
    assert load_identity(tmp_path / "state") == IDENTITY
    mode = (tmp_path / "state" / "device.json").stat().st_mode
    assert stat.S_IMODE(mode) == 0o600


def test_device_that_never_joined_has_no_identity(tmp_path):
    assert load_identity(tmp_path) is None


def test_torn_identity_file_is_named_and_says_what_to_do(tmp_path):
    (tmp_path / "device.json").write_text('{"server": "http')
    with pytest.raises(ConfigError, match=r"device\.json.*join the server again"):
        load_identity(tmp_path)


def test_identity_that_cannot_be_kept_is_a_storage_error(tmp_path):
    (tmp_path / "state").write_text("a file where the folder should be")
    with pytest.raises(StorageError, match="state"):
        save_identity(tmp_path / "state", IDENTITY)


def test_token_is_not_in_the_text_form():
    assert "not-a-secret" not in repr(IDENTITY)
