"""The two storages of a server: embedded in its folder, or PostgreSQL and an S3 server."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from server.settings.settings import Settings
from server.settings.settings_sources import read_settings
from tests.databases import fresh_database
from tests.processes import ServerProcess
from tests.services import S3

FAST = {
    "EDGE_SERVER_LOG_LEVEL": "warning",
    "EDGE_SERVER_TICK_S": "0.05",
    "EDGE_SERVER_POLL_S": "0.1",
    "EDGE_SERVER_DEVICE_REQUESTS_PER_MIN": "1000000",
    "EDGE_SERVER_ENTRANCE_REQUESTS_PER_MIN": "1000000",
}
"""Short waits, and no limit on devices that never rest."""


@dataclass(frozen=True)
class Installation:
    """Where servers of one fleet keep what they know.

    Attributes:
        folder: Of this test.
        environment: Settings of every server.
    """

    folder: Path
    environment: Mapping[str, str]

    def server(self, name: str = "server") -> ServerProcess:
        """Another server, not yet started; the embedded storage has one only."""
        return ServerProcess(self.folder / name, environment=self.environment)

    def settings(self, name: str = "server") -> Settings:
        """The settings of that server, for a look at what it keeps."""
        return read_settings({"state": self.folder / name}, self.environment)


def embedded(folder: Path) -> Installation:
    """SQLite and tensor files in one folder."""
    return Installation(folder, FAST)


@contextmanager
def shared(folder: Path, postgres: str, s3: S3) -> Iterator[Installation]:
    """A PostgreSQL database of its own, and a part of a bucket."""
    with fresh_database(postgres) as address:
        yield Installation(
            folder,
            {
                **FAST,
                "EDGE_SERVER_DATABASE_URL": address,
                "EDGE_SERVER_BLOB_URL": f"s3://{s3.bucket}/{secrets.token_hex(6)}",
                "EDGE_SERVER_BLOB_ENDPOINT": s3.endpoint,
                "EDGE_SERVER_SIGNING_KEY": str(folder / "signing-key.pem"),
            },
        )
