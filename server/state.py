"""Open the state of a server: its database and its tensor files."""

from __future__ import annotations

from edge_sdk.errors import ConfigError, StorageError
from server.blobs.blobs import BlobFolder, Blobs
from server.settings.settings import Settings
from server.storage.sql_store import open_store
from server.storage.store import Store


def open_state(settings: Settings) -> tuple[Store, Blobs]:
    """Open the state of a server, making its folder and tables if they are missing.

    Raises:
        StorageError: The folder or the database cannot be opened.
        ServerBusy: The database cannot be reached now.
        ConfigError: The database belongs to a newer release, or an address cannot be used.
    """
    try:
        settings.state.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not settings.database_url:
            settings.database_file.touch(mode=0o600)  # SQLite would let everybody read it
    except OSError as error:
        raise StorageError(
            f"the state folder {settings.state} cannot be made: {error.strerror}"
        ) from error
    blobs = open_blobs(settings)
    return open_store(settings.url), blobs


def open_blobs(settings: Settings) -> Blobs:
    """Return the place of the tensor files; nothing is asked of an object store yet.

    Raises:
        ConfigError: The address cannot be used, or the library for it is not installed.
    """
    if not settings.blob_url:
        return BlobFolder(settings.blob_folder)
    try:
        from server.blobs.object_blobs import ObjectBlobs
    except ImportError as error:
        raise ConfigError("blob_url needs obstore: pip install edge-sdk[replicas]") from error
    return ObjectBlobs(settings.blob_url, settings.blob_endpoint, settings.state / "uploads")
