"""What a device remembers of its server: the first key, and the last word about each task."""

from __future__ import annotations

from dataclasses import replace

import pytest

from edge_sdk.errors import ConfigError, RolledBack, StorageError, UnknownKey
from edge_sdk.identity.trust import Trust, load_trust, pin_key, save_trust
from edge_sdk.wire.manifest import Pointer

SERVER = "http://127.0.0.1:1"
KEY = "ab" * 32


def pointer(sequence: int, version: int = 1, task: str = "tiny") -> Pointer:
    return Pointer(
        task=task,
        sequence=sequence,
        version=version,
        canary_version=None,
        canary_share=0.0,
        created_at=1.5,
    )


def test_the_key_of_the_first_time_stays_when_the_device_joins_again(tmp_path):
    pin_key(tmp_path / "state", SERVER, KEY)
    pin_key(tmp_path / "state", SERVER, "cd" * 32)
    assert load_trust(tmp_path / "state", SERVER).signing_key == KEY


def test_another_server_has_a_key_of_its_own(tmp_path):
    pin_key(tmp_path, SERVER, KEY)
    pin_key(tmp_path, "http://127.0.0.1:2", "cd" * 32)
    assert load_trust(tmp_path, "http://127.0.0.1:2").signing_key == "cd" * 32
    with pytest.raises(UnknownKey, match="join the server again"):
        load_trust(tmp_path, SERVER)


@pytest.mark.parametrize("key", [None, ""])
def test_a_device_without_a_key_trusts_nobody(tmp_path, key):
    if key is not None:
        pin_key(tmp_path, SERVER, key)
    with pytest.raises(UnknownKey, match=SERVER):
        load_trust(tmp_path, SERVER)


def test_what_was_seen_survives_a_restart(tmp_path):
    trust = Trust(server=SERVER, signing_key=KEY).after(pointer(2)).after(pointer(1, task="other"))
    save_trust(tmp_path, trust)
    assert load_trust(tmp_path, SERVER) == trust


def test_a_larger_sequence_may_point_at_an_older_version_and_a_smaller_one_never():
    trust = Trust(server=SERVER, signing_key=KEY).after(pointer(5, version=5))
    back = trust.after(pointer(6, version=3))
    assert back.seen["tiny"].version == 3
    with pytest.raises(RolledBack, match="sequence 5"):
        back.after(pointer(5, version=5))


def test_the_same_pointer_again_changes_nothing_and_a_twin_is_refused():
    trust = Trust(server=SERVER, signing_key=KEY).after(pointer(5))
    assert trust.after(pointer(5)) == trust
    with pytest.raises(RolledBack, match="two different"):
        trust.after(pointer(5, version=2))
    with pytest.raises(RolledBack, match="two different"):
        trust.after(replace(pointer(5), canary_version=2, canary_share=0.5))


def test_tasks_are_counted_apart():
    trust = Trust(server=SERVER, signing_key=KEY).after(pointer(9))
    assert trust.after(pointer(1, task="other")).seen["tiny"].sequence == 9


def test_a_torn_file_is_named(tmp_path):
    (tmp_path / "trust.json").write_text('{"server"')
    with pytest.raises(ConfigError, match=r"trust\.json"):
        load_trust(tmp_path, SERVER)


def test_trust_that_cannot_be_kept_is_a_storage_error(tmp_path):
    (tmp_path / "state").write_text("a file where the folder should be")
    with pytest.raises(StorageError, match="state"):
        save_trust(tmp_path / "state", Trust(server=SERVER, signing_key=KEY))
