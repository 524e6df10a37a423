"""Write a private file whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path


def write_whole(path: Path, content: bytes | Sequence[bytes | memoryview]) -> None:
    """Replace a file in one step, durably and for its owner alone; its folder is made if need be.

    Args:
        path: Of the file.
        content: All of it, at once or in parts.

    Raises:
        OSError: It cannot be written; the file is as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f".{os.getpid()}")
    partial.unlink(missing_ok=True)  # one that is there would keep its mode
    try:
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as stream:
            stream.writelines([content] if isinstance(content, bytes) else content)
            stream.flush()
            os.fsync(stream.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    _make_rename_durable(path.parent)


def _make_rename_durable(folder: Path) -> None:
    if os.name != "posix":
        return  # nothing else lets a folder be opened
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
