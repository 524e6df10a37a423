"""The identity file is private, whole or absent, and never printed with its key."""

from __future__ import annotations

import json
import os
import stat

import pytest

from edge_sdk.errors import ConfigError, StorageError
from edge_sdk.identity.identity import (
    Identity,
    load_identity,
    load_joining,
    save_identity,
    save_joining,
)

IDENTITY = Identity(
    server="http://127.0.0.1:1",
    device_id="d1",
    private_key="not-a-secret",
    name="ada",
    next_private_key="nor-this",
)


@pytest.mark.parametrize("save", [save_identity, save_joining])
def test_identity_survives_a_restart_and_only_its_user_can_read_it(tmp_path, save):
    load, file = {
        save_identity: (load_identity, "device.json"),
        save_joining: (load_joining, "joining.json"),
    }[save]
    save(tmp_path / "state", IDENTITY)
    assert load(tmp_path / "state") == IDENTITY
    mode = (tmp_path / "state" / file).stat().st_mode
    assert stat.S_IMODE(mode) == 0o600


def test_a_file_that_others_could_read_is_replaced_by_one_they_cannot(tmp_path):
    for name in ("device.json", f"device.{os.getpid()}"):
        (tmp_path / name).write_text("left here by somebody")
        (tmp_path / name).chmod(0o644)
    save_identity(tmp_path, IDENTITY)
    assert stat.S_IMODE((tmp_path / "device.json").stat().st_mode) == 0o600
    assert [path.name for path in tmp_path.iterdir()] == ["device.json"]


def test_device_that_never_joined_has_no_identity(tmp_path):
    assert load_identity(tmp_path) is None
    assert load_joining(tmp_path) is None


def test_a_device_that_joined_is_not_joining_any_more(tmp_path):
    save_joining(tmp_path, IDENTITY)
    save_identity(tmp_path, IDENTITY)
    assert load_joining(tmp_path) is None


def test_torn_identity_file_is_named_and_says_what_to_do(tmp_path):
    (tmp_path / "device.json").write_text('{"server": "http')
    with pytest.raises(ConfigError, match=r"device\.json.*join the server again"):
        load_identity(tmp_path)


def test_an_identity_of_the_release_before_keys_says_what_to_do(tmp_path):
    old = {"server": "http://x", "device_id": "d", "device_token": "t", "name": "n"}
    (tmp_path / "device.json").write_text(json.dumps(old))
    with pytest.raises(ConfigError, match=r"device\.json.*join the server again"):
        load_identity(tmp_path)


def test_identity_that_cannot_be_kept_is_a_storage_error(tmp_path):
    (tmp_path / "state").write_text("a file where the folder should be")
    with pytest.raises(StorageError, match="state"):
        save_identity(tmp_path / "state", IDENTITY)


def test_keys_are_not_in_the_text_form():
    assert "not-a-secret" not in repr(IDENTITY)
    assert "nor-this" not in repr(IDENTITY)
