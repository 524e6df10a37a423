"""What the server relies on where tensors live, the same in a folder and in a bucket."""

import hashlib
import os
import resource
import time
from contextlib import contextmanager
from itertools import count
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    invariant,
    rule,
    run_state_machine_as_test,
)

from edge_sdk.errors import StorageError
from server.blobs.blobs import CHUNK_BYTES, BlobFolder
from tests.server.places import BucketPlace, FolderPlace, digest_of

BODY = bytes(range(256)) * 100
LONG = hashlib.shake_128(b"long").digest(2 * CHUNK_BYTES + 7)
BODIES = [b"", b"x", BODY, LONG[:CHUNK_BYTES], LONG[: CHUNK_BYTES + 1], LONG]


@pytest.fixture(params=["folder", "bucket"])
def new_place(request, tmp_path):
    """Makes as many empty places of one kind as a test wants."""
    numbers = count()
    s3 = request.getfixturevalue("s3") if request.param == "bucket" else None

    def make():
        folder = tmp_path / f"place-{next(numbers)}"
        return FolderPlace(folder) if s3 is None else BucketPlace(s3, folder)

    return make


@pytest.fixture
def place(new_place):
    return new_place()


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


def flip(body: bytes, at: int) -> bytes:
    return body[:at] + bytes([body[at] ^ 1]) + body[at + 1 :]


def streamed(blobs, digest, *part):
    """Everything a stream yields before it ends or breaks, and what broke it."""
    found = []
    try:
        for chunk in blobs.stream(digest, *part):
            found.append(chunk)
    except StorageError as error:
        return found, error
    return found, None


@pytest.mark.parametrize("body", BODIES, ids=len)
def test_what_was_put_is_read_back_under_its_digest(place, body):
    name = place.blobs.put(body)
    assert name == digest_of(body)
    assert place.blobs.read(name) == body
    assert place.blobs.size(name) == len(body)
    assert files_under(place.uploads) == []


def test_putting_twice_is_putting_once(place):
    assert place.blobs.put(BODY) == place.blobs.put(BODY)
    assert [name for name, _ in place.blobs.digests()] == [digest_of(BODY)]


def test_an_upload_that_is_not_kept_leaves_nothing(place):
    with place.blobs.upload() as upload:
        upload.write(BODY)
        assert files_under(place.uploads) == [upload.path]
    assert files_under(place.uploads) == []
    assert list(place.blobs.digests()) == []


def test_an_upload_in_pieces_reads_back_whole_before_and_after_it_is_kept(place):
    with place.blobs.upload() as upload:
        upload.write(BODY[:1000])
        upload.write(BODY[1000:])
        assert upload.read() == BODY
        place.blobs.keep(upload, digest_of(BODY))
    assert place.blobs.read(digest_of(BODY)) == BODY


def test_a_stream_yields_any_part_in_chunks_of_a_mebibyte_at_most(place):
    name = place.blobs.put(LONG)
    for start, stop in [(0, None), (0, len(LONG)), (5, None), (0, 9), (7, 7), (3, CHUNK_BYTES + 9)]:
        chunks, error = streamed(place.blobs, name, start, stop)
        assert error is None
        assert b"".join(chunks) == LONG[start:stop]
        assert all(0 < len(chunk) <= CHUNK_BYTES for chunk in chunks)


def test_a_part_that_is_not_in_the_blob_is_a_storage_error(place):
    name = place.blobs.put(BODY)
    for start, stop in [(0, len(BODY) + 1), (len(BODY) + 1, None), (5, 4), (-1, 4)]:
        chunks, error = streamed(place.blobs, name, start, stop)
        assert chunks == []
        assert name in str(error)


@pytest.mark.parametrize("damage", ["flip", "cut", "remove"])
def test_a_damaged_blob_is_never_handed_out(place, damage):
    name = place.blobs.put(BODY)
    if damage == "remove":
        place.drop(name)
    else:
        place.overwrite(name, flip(BODY, 0) if damage == "flip" else BODY[:-1])
    with pytest.raises(StorageError, match=name):
        place.blobs.read(name)
    chunks, error = streamed(place.blobs, name)
    assert chunks == []
    assert name in str(error)


def test_a_long_blob_that_was_damaged_breaks_off_before_its_end(place):
    name = place.blobs.put(LONG)
    place.overwrite(name, flip(LONG, 0))
    chunks, error = streamed(place.blobs, name)
    assert name in str(error)
    assert 0 < len(b"".join(chunks)) < len(LONG)


def test_keeping_a_damaged_blob_again_heals_it(place):
    name = place.blobs.put(BODY)
    place.overwrite(name, b"damaged")
    place.blobs.put(BODY)
    assert place.blobs.read(name) == BODY


def test_a_removed_blob_is_gone_and_removing_it_again_does_no_harm(place):
    name = place.blobs.put(BODY)
    assert place.blobs.remove(name)
    assert place.blobs.remove(name)
    assert list(place.blobs.digests()) == []
    with pytest.raises(StorageError, match=name):
        place.blobs.size(name)


def test_only_a_blob_that_was_not_stored_again_in_the_meantime_is_removed(place):
    before = time.time() - 2
    name = place.blobs.put(BODY)
    assert not place.blobs.remove(name, changed_before=before)
    assert place.blobs.read(name) == BODY
    assert place.blobs.remove(name, changed_before=time.time() + 2)


def test_the_list_says_when_a_blob_was_stored_and_leaves_out_other_files(place):
    before = time.time()
    names = sorted(place.blobs.put(body) for body in BODIES)
    place.overwrite("00strange", b"not a blob")
    with place.blobs.upload() as upload:
        upload.write(BODY)
        listed = list(place.blobs.digests())
    assert [name for name, _ in listed] == names
    assert all(before - 1 <= at <= time.time() + 1 for _, at in listed)


def test_a_place_that_answers_passes_the_check_and_stays_empty(place):
    place.blobs.check()
    assert list(place.blobs.digests()) == []
    assert files_under(place.uploads) == []


@pytest.mark.parametrize("size", [len(BODY), 1 << 22])
def test_a_full_disk_is_a_storage_error_and_leaves_nothing_half_written(place, size):
    body = os.urandom(size)
    with disk_refuses_files_beyond(4096), pytest.raises(StorageError, match="large"):
        place.blobs.put(body)
    assert files_under(place.uploads) == []
    assert list(place.blobs.digests()) == []
    assert place.blobs.put(body) == digest_of(body)


def test_only_old_partial_files_are_cleared_away(place):
    kept = place.blobs.put(BODY)
    for name, age_s in (("old", 7200), ("new", 0)):
        path = place.uploads / name
        path.write_bytes(b"x")
        os.utime(path, (time.time() - age_s,) * 2)
    place.blobs.remove_leftovers(3600)
    assert [path.name for path in files_under(place.uploads)] == ["new"]
    assert place.blobs.read(kept) == BODY


def test_a_folder_that_cannot_be_made_is_a_storage_error(tmp_path):
    (tmp_path / "blobs").write_text("in the way")
    blobs = BlobFolder(tmp_path / "blobs")
    with pytest.raises(StorageError, match="cannot be made"):
        blobs.put(BODY)
    with pytest.raises(StorageError, match="cannot be made"):
        blobs.check()


class Blobhouse(RuleBasedStateMachine):
    """A place of blobs beside a dict of what its files hold."""

    names = Bundle("names")

    def __init__(self, place):
        super().__init__()
        self.place = place
        self.stored = {}

    @rule(target=names, body=st.sampled_from(BODIES))
    def put(self, body):
        name = self.place.blobs.put(body)
        self.stored[name] = body
        return name

    @rule(target=names, body=st.sampled_from(BODIES), cut=st.integers(0, CHUNK_BYTES))
    def keep_twice(self, body, cut):
        name = digest_of(body)
        for _ in range(2):
            with self.place.blobs.upload() as upload:
                upload.write(body[:cut])
                upload.write(body[cut:])
                self.place.blobs.keep(upload, name)
        self.stored[name] = body
        return name

    @rule(name=names)
    def read(self, name):
        body = self.stored.get(name)
        if body is not None and digest_of(body) == name:
            assert self.place.blobs.read(name) == body
        else:
            with pytest.raises(StorageError, match=name):
                self.place.blobs.read(name)

    @rule(name=names)
    def stream_all(self, name):
        body = self.stored.get(name)
        chunks, error = streamed(self.place.blobs, name)
        if body is not None and digest_of(body) == name:
            assert error is None
            assert b"".join(chunks) == body
        else:
            assert name in str(error)
            assert not chunks or len(b"".join(chunks)) < len(body)

    @rule(name=names, start=st.integers(1, len(LONG)), length=st.integers(0, len(LONG)))
    def stream_part(self, name, start, length):
        body = self.stored.get(name)
        chunks, error = streamed(self.place.blobs, name, start, start + length)
        if body is not None and start + length <= len(body):
            assert error is None
            assert b"".join(chunks) == body[start : start + length]
        else:
            assert name in str(error)
            assert chunks == []

    @rule(name=names)
    def size(self, name):
        if name in self.stored:
            assert self.place.blobs.size(name) == len(self.stored[name])
        else:
            with pytest.raises(StorageError, match=name):
                self.place.blobs.size(name)

    @rule(name=names)
    def remove(self, name):
        assert self.place.blobs.remove(name)
        self.stored.pop(name, None)

    @rule(name=names, at=st.integers(0, len(LONG)))
    def flip_a_bit(self, name, at):
        if self.stored.get(name):
            body = self.stored[name]
            self._damage(name, flip(body, at % len(body)))

    @rule(name=names, length=st.integers(0, len(LONG)))
    def cut_off(self, name, length):
        if name in self.stored:
            self._damage(name, self.stored[name][:length])

    def _damage(self, name, body):
        self.place.overwrite(name, body)
        self.stored[name] = body

    @invariant()
    def lists_what_is_there(self):
        assert [name for name, _ in self.place.blobs.digests()] == sorted(self.stored)


def test_any_history_of_calls_ends_as_it_would_in_a_dict(new_place):
    run_state_machine_as_test(
        lambda: Blobhouse(new_place()),
        settings=settings(
            max_examples=4,
            stateful_step_count=20,
            derandomize=True,
            suppress_health_check=[HealthCheck.too_slow],  # a busy disk takes its time
        ),
    )
