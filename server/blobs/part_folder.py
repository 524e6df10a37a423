"""Parts of updates as files, in a folder beside the blobs."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from server.blobs.parts import Parted, PartFound, read_key
from server.blobs.spool import Upload, make_folder, refused

_CHUNK_BYTES = 1 << 20


class PartFolder:
    """Parts on disk; see :class:`server.blobs.parts.Parts`.

    A power cut may lose them: what is put together is checked, and the device sends them again.

    Args:
        folder: Where they live; made on first use.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def keep(self, body: Parted, index: int, upload: Upload) -> None:
        """Make an upload a part."""
        upload.flush()
        target = self._folder / body.key(index)
        try:
            make_folder(target.parent)
            upload.path.replace(target)
        except OSError as error:
            raise refused("the part cannot be stored", error) from error

    def found(self, body: Parted) -> list[PartFound]:
        """Return what is there of the device for the round."""
        there = []
        for path in sorted((self._folder / body.place).glob("*/*")):
            name = read_key(path.as_posix())
            with suppress(FileNotFoundError):  # removed since it was listed
                if name is not None:
                    size = path.stat().st_size
                    there.append(PartFound(digest=name[0], index=name[1], size_bytes=size))
        return there

    def stream(self, body: Parted, index: int) -> Iterator[bytes]:
        """Yield the bytes of one part."""
        try:
            with (self._folder / body.key(index)).open("rb") as file:
                while chunk := file.read(_CHUNK_BYTES):
                    yield chunk
        except OSError as error:
            raise refused("the part cannot be read", error) from error

    def remove(self, body: Parted, found: PartFound) -> None:
        """Delete one part, and its folders if they are empty then."""
        path = self._folder / body.place / found.digest / f"{found.index:05d}"
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise refused("the part cannot be removed", error) from error
        self._remove_empty(path.parent)

    def remove_leftovers(self, older_than_s: float) -> None:
        """Delete what was not touched for so long."""
        limit = time.time() - older_than_s
        for path in self._folder.glob("*/*/*/*/*"):
            with suppress(OSError):  # gone: another process looks after it
                if path.stat().st_mtime < limit:
                    path.unlink()
                    self._remove_empty(path.parent)

    def _remove_empty(self, folder: Path) -> None:
        with suppress(OSError):  # not empty, or another process was faster
            while folder != self._folder:
                folder.rmdir()
                folder = folder.parent
