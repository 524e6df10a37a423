"""Open the state folder: its database and its tensor files."""

from __future__ import annotations

from edge_sdk.errors import StorageError
from server.blobs import BlobFolder
from server.settings import Settings
from server.sql_store import open_store
from server.store import Store


def open_state(settings: Settings) -> tuple[Store, BlobFolder]:
    """Open the state of a server, making its folder and tables if they are missing.

    Raises:
        StorageError: The folder or the database cannot be opened.
        ConfigError: The database belongs to a newer release.
    """
    try:
        settings.state.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(
            f"the state folder {settings.state} cannot be made: {error.strerror}"
        ) from error
    return open_store(settings.url), BlobFolder(settings.blob_folder)
