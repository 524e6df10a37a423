"""One process at a time writes a file that several may want."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from edge_sdk.errors import StorageError
from edge_sdk.files.file_lock import wait_for_lock


@contextlib.contextmanager
def one_writer(path: Path) -> Iterator[None]:
    """Wait until no other process or thread writes ``path``; a killed one does not count.

    Raises:
        StorageError: The folder cannot be made or written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = path.with_name(f"{path.name}.lock").open("wb")
        wait_for_lock(lock)
    except OSError as error:
        raise StorageError(f"nothing can be written to {path.parent}: {error}") from error
    with lock:
        yield
