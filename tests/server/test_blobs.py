import os
import resource
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from edge_sdk.errors import StorageError
from edge_sdk.wire.payload import digest
from server.blobs import BlobFolder

BODY = bytes(range(256)) * 100


@contextmanager
def disk_refuses_files_beyond(size_bytes: int):
    """Make every write past this size fail in this process, as a full disk does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def files_under(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def test_what_was_put_is_read_back_under_its_digest(tmp_path):
    blobs = BlobFolder(tmp_path / "blobs")
    name = blobs.put(BODY)
    assert name == digest(BODY)
    assert blobs.read(name) == BODY
    assert files_under(tmp_path) == [blobs.path(name)]


def test_putting_twice_is_putting_once(tmp_path):
    blobs = BlobFolder(tmp_path)
    assert blobs.put(BODY) == blobs.put(BODY)
    assert len(files_under(tmp_path)) == 1


def test_an_upload_that_is_not_kept_leaves_nothing(tmp_path):
    blobs = BlobFolder(tmp_path)
    with blobs.upload() as upload:
        upload.write(BODY)
        assert files_under(tmp_path) == [upload.path]
    assert files_under(tmp_path) == []


def test_an_upload_in_pieces_reads_back_whole_before_and_after_it_is_kept(tmp_path):
    blobs = BlobFolder(tmp_path)
    with blobs.upload() as upload:
        upload.write(BODY[:1000])
        upload.write(BODY[1000:])
        assert upload.read() == BODY
        blobs.keep(upload, digest(BODY))
    assert blobs.read(digest(BODY)) == BODY


@pytest.mark.parametrize("damage", ["flip", "cut", "remove"])
def test_a_damaged_blob_is_never_handed_out(tmp_path, damage):
    blobs = BlobFolder(tmp_path)
    path = blobs.path(blobs.put(BODY))
    if damage == "flip":
        path.write_bytes(b"\xff" + BODY[1:])
    elif damage == "cut":
        path.write_bytes(BODY[:-1])
    else:
        path.unlink()
    with pytest.raises(StorageError, match=digest(BODY)):
        blobs.read(digest(BODY))


@pytest.mark.parametrize("size", [len(BODY), 1 << 22])
def test_a_full_disk_is_a_storage_error_and_leaves_nothing_half_written(tmp_path, size):
    blobs = BlobFolder(tmp_path)
    body = os.urandom(size)
    with disk_refuses_files_beyond(4096), pytest.raises(StorageError, match="large"):
        blobs.put(body)
    assert files_under(tmp_path) == []
    assert blobs.put(body) == digest(body)


def test_a_folder_that_cannot_be_made_is_a_storage_error(tmp_path):
    (tmp_path / "blobs").write_text("in the way")
    with pytest.raises(StorageError, match="cannot be made"):
        BlobFolder(tmp_path / "blobs").put(BODY)


def test_only_old_partial_files_are_cleared_away(tmp_path):
    blobs = BlobFolder(tmp_path)
    kept = blobs.put(BODY)
    for name, age_s in (("old", 7200), ("new", 0)):
        path = tmp_path / "partial" / name
        path.write_bytes(b"x")
        os.utime(path, (time.time() - age_s,) * 2)
    blobs.remove_leftovers(3600)
    assert sorted(path.name for path in files_under(tmp_path)) == sorted(["new", kept])
