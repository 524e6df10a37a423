"""A wheel with one member, and pip told to look nowhere else."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

from demo.assets import CACHE_VARIABLE, Member, Package, sha256_of

_METADATA = (
    "Metadata-Version: 2.1\nName: tiny-asset\nVersion: 1.0\nRequires-Dist: no-such-package\n"
)
_TAGS = "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
_INFO = "tiny_asset-1.0.dist-info"


def use_shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder of wheels, the only place pip may look, and give the demo an empty cache."""
    shelf = tmp_path / "shelf"
    shelf.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(shelf))
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    return shelf


def shelve(shelf: Path, content: Path) -> Member:
    """Put a wheel of ``tiny-asset==1.0`` that holds one file on the shelf, and pin it."""
    wheel = shelf / "tiny_asset-1.0-py3-none-any.whl"
    path = f"tiny_asset/data/{content.name}"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.write(content, path)
        archive.writestr(f"{_INFO}/METADATA", _METADATA)
        archive.writestr(f"{_INFO}/WHEEL", _TAGS)
        archive.writestr(f"{_INFO}/RECORD", "")
    package = Package(
        name="tiny-asset", version="1.0", licence="MIT", wheel_sha256=sha256_of(wheel)
    )
    return Member(package=package, path=path, sha256=sha256_of(content))
