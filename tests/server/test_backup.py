import json
import os
import stat
import threading
from dataclasses import replace

import numpy as np
import pytest

from edge_sdk.errors import ConfigError, ServerBusy, StorageError
from server.blobs.blobs import BlobFolder
from server.cli import main
from server.operation.backup import back_up, restore
from server.operation.collecting import COLLECTING
from server.settings.settings import Settings
from server.state import open_state
from tests.server.places import BucketPlace
from tests.server.tasks import Site, tiny_spec
from tests.server.test_blobs import disk_refuses_files_beyond

NOW = 1_000_100.0


@pytest.fixture
def running(site):
    """One closed round, and one with the first of two updates."""
    for device in ("a", "b"):
        site.add_device(device)
    spec = site.add_task(tiny_spec(cohort_size=2, quorum=2, wire_dtype="bf16"))
    for i, device in enumerate(("a", "b")):
        site.train(device, spec, seed=i)
    site.advance()
    site.train("a", spec, seed=10)
    return site


def finish_round(site):
    """Let the second device train, close the round and return the adapter."""
    with site.store.read() as tx:
        spec = tx.task("tiny").spec
    site.train("b", spec, seed=11)
    site.advance()
    return site.master(spec, 2)


def restored(backup, folder):
    restore(Settings(state=folder), backup)
    return Site(folder)


def test_a_restored_server_finishes_the_round_as_the_first_one_does(running, tmp_path):
    copied = back_up(running.settings, tmp_path / "backup", running.clock.now)
    assert copied.missing == ()
    assert copied.tensor_files == len(list(running.blobs.digests())) == 7
    expected = finish_round(running)
    again = restored(tmp_path / "backup", tmp_path / "again")
    again.clock.now = running.clock.now
    found = finish_round(again)
    again.store.close()
    assert found.keys() == expected.keys()
    for name, numbers in expected.items():
        np.testing.assert_array_equal(found[name], numbers)


def test_a_backup_takes_what_is_needed_and_nothing_else(running, tmp_path):
    orphan = running.blobs.put(b"an upload that was refused")
    settings = replace(running.settings, keep_updates_s=100.0)
    copied = back_up(settings, tmp_path / "backup", running.clock.now + 101)
    found = {name for name, _ in BlobFolder(tmp_path / "backup" / "blobs").digests()}
    assert len(found) == copied.tensor_files == 5  # two versions twice, and the open round's update
    assert orphan not in found


def test_every_backup_of_a_busy_server_is_consistent(running, tmp_path):
    """Rounds go on while the database and then its files are copied."""
    is_over = threading.Event()

    def train():
        seed = 100
        while not is_over.is_set():
            spec = running.add_task(tiny_spec(f"task-{seed}", cohort_size=1, quorum=1))
            running.train("a", spec, seed)
            running.advance()
            seed += 1

    thread = threading.Thread(target=train)
    thread.start()
    try:
        backups = [tmp_path / f"backup-{i}" for i in range(3)]
        for backup in backups:
            assert back_up(running.settings, backup, running.clock.now).missing == ()
    finally:
        is_over.set()
        thread.join()
    for backup in backups:
        found = restore(Settings(state=tmp_path / f"of-{backup.name}"), backup)
        assert found.missing == ()


@pytest.mark.parametrize("damage", ["flip", "remove"])
def test_a_damaged_tensor_file_is_named_and_the_rest_is_backed_up(
    running, tmp_path, capsys, damage
):
    (info, *_) = running.coordinator.adapters("tiny")
    path = running.blobs.path(info.digest)
    path.unlink() if damage == "remove" else path.write_bytes(b"x" * info.size_bytes)
    words = ["--state", str(running.settings.state), "--json"]
    assert main(["backup", str(tmp_path / "backup"), *words]) == 1
    captured = capsys.readouterr()
    assert json.loads(captured.out)["missing"] == [info.digest]
    assert info.digest in captured.err
    assert restore(Settings(state=tmp_path / "again"), tmp_path / "backup").missing == (
        info.digest,
    )


def test_a_backup_that_rotted_is_noticed_when_it_is_restored(running, tmp_path):
    back_up(running.settings, tmp_path / "backup", running.clock.now)
    (info, *_) = running.coordinator.adapters("tiny")
    BlobFolder(tmp_path / "backup" / "blobs").path(info.digest).write_bytes(b"rotten")
    found = restore(Settings(state=tmp_path / "again"), tmp_path / "backup")
    assert found.missing == (info.digest,)


def test_a_backup_whose_database_rotted_is_refused(running, tmp_path):
    back_up(running.settings, tmp_path / "backup", running.clock.now)
    file = tmp_path / "backup" / "server.sqlite"
    file.write_bytes(b"rotten" + file.read_bytes()[6:])
    with pytest.raises(StorageError, match="cannot be copied"):
        restore(Settings(state=tmp_path / "again"), tmp_path / "backup")
    assert not (tmp_path / "again" / "server.sqlite").exists()


def test_the_command_line_backs_up_and_restores(running, tmp_path, capsys):
    """By the clock on the wall the closed round is old: its two updates are not kept."""
    words = ["backup", str(tmp_path / "backup"), "--state", str(running.settings.state)]
    assert main(words) == 0
    assert "5 tensor files" in capsys.readouterr().out
    assert main(words) == 1
    assert "not empty" in capsys.readouterr().err
    assert main(["restore", str(tmp_path / "backup"), "--state", str(tmp_path / "again")]) == 0
    assert "5 tensor files" in capsys.readouterr().out
    assert main(["task", "list", "--state", str(tmp_path / "again")]) == 0
    assert "tiny" in capsys.readouterr().out


def test_a_backup_that_was_cut_off_is_no_backup(running, tmp_path):
    with disk_refuses_files_beyond(4096), pytest.raises(StorageError):
        back_up(running.settings, tmp_path / "backup", running.clock.now)
    with pytest.raises(ConfigError, match="no complete backup"):
        restore(Settings(state=tmp_path / "again"), tmp_path / "backup")


def test_a_restoration_that_was_cut_off_can_be_repeated(running, tmp_path):
    back_up(running.settings, tmp_path / "backup", running.clock.now)
    with disk_refuses_files_beyond(4096), pytest.raises(StorageError):
        restore(Settings(state=tmp_path / "again"), tmp_path / "backup")
    assert not (tmp_path / "again" / "server.sqlite").exists()
    again = restored(tmp_path / "backup", tmp_path / "again")
    assert len(again.coordinator.adapters("tiny")) == 2
    again.store.close()


def test_a_server_that_has_a_database_is_never_overwritten(running, tmp_path):
    back_up(running.settings, tmp_path / "backup", running.clock.now)
    before = len(running.coordinator.adapters("tiny"))
    finish_round(running)
    with pytest.raises(ConfigError, match="is there already"):
        restore(running.settings, tmp_path / "backup")
    assert len(running.coordinator.adapters("tiny")) == before + 1


def test_rows_in_postgresql_are_left_to_pg_dump(tmp_path):
    settings = Settings(state=tmp_path, database_url="postgresql://nobody@nowhere.invalid/edge")
    with pytest.raises(ConfigError, match="pg_dump"):
        back_up(settings, tmp_path / "backup", NOW)
    with pytest.raises(ConfigError, match="pg_dump"):
        restore(settings, tmp_path / "backup")
    assert not (tmp_path / "backup").exists()


def test_a_state_folder_without_a_server_cannot_be_backed_up(tmp_path):
    with pytest.raises(ConfigError, match="--state"):
        back_up(Settings(state=tmp_path / "state"), tmp_path / "backup", NOW)
    assert not (tmp_path / "state").exists()


def test_nothing_is_removed_while_a_backup_is_made(running, tmp_path):
    with running.store.exclusive(COLLECTING), pytest.raises(ServerBusy, match="in a minute"):
        back_up(running.settings, tmp_path / "backup", running.clock.now)


def test_the_signing_key_is_backed_up_for_its_owner_only(running, tmp_path):
    key = running.settings.signing_key_file
    key.write_bytes(b"a private key")
    back_up(running.settings, tmp_path / "backup", running.clock.now)
    restored(tmp_path / "backup", tmp_path / "again").store.close()
    for copy in (tmp_path / "backup" / key.name, tmp_path / "again" / key.name):
        assert copy.read_bytes() == b"a private key"
        assert stat.S_IMODE(os.stat(copy).st_mode) == 0o600
    assert stat.S_IMODE(os.stat(tmp_path / "backup").st_mode) == 0o700


def test_a_copy_of_the_database_is_for_its_owner_only(running, tmp_path):
    for folder in (tmp_path / "backup", tmp_path / "again"):
        folder.mkdir(mode=0o755)
    back_up(running.settings, tmp_path / "backup", running.clock.now)
    restored(tmp_path / "backup", tmp_path / "again").store.close()
    for copy in (tmp_path / "backup", tmp_path / "again"):
        assert stat.S_IMODE((copy / "server.sqlite").stat().st_mode) == 0o600


def test_another_signing_key_is_never_overwritten(running, tmp_path):
    running.settings.signing_key_file.write_bytes(b"a private key")
    back_up(running.settings, tmp_path / "backup", running.clock.now)
    (tmp_path / "again").mkdir()
    (tmp_path / "again" / "signing-key.pem").write_bytes(b"another one")
    with pytest.raises(ConfigError, match="another key"):
        restore(Settings(state=tmp_path / "again"), tmp_path / "backup")
    assert (tmp_path / "again" / "signing-key.pem").read_bytes() == b"another one"


def test_tensor_files_in_a_bucket_are_copied_out_and_back(running, tmp_path, s3):
    places = [BucketPlace(s3, tmp_path / "uploads") for _ in range(2)]
    for name, _ in running.blobs.digests():
        places[0].blobs.put(running.blobs.read(name))
    first, second = (
        replace(running.settings, state=state, blob_url=place.url, blob_endpoint=s3.endpoint)
        for place, state in zip(places, (running.settings.state, tmp_path / "again"), strict=True)
    )
    assert back_up(first, tmp_path / "backup", running.clock.now).tensor_files == 7
    assert restore(second, tmp_path / "backup").tensor_files == 7
    store, blobs = open_state(second)
    with store.read() as tx:
        for row in tx.adapters("tiny"):
            assert blobs.read(row.master_digest)
    store.close()
