"""Bring a database to the tables of this release."""

from __future__ import annotations

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.util.exc import CommandError
from sqlalchemy import Connection

from edge_sdk.errors import ConfigError

_SCRIPTS = Path(__file__).parent / "migrations"


def upgrade_to_head(connection: Connection) -> None:
    """Run every migration the database has not seen, in the caller's transaction.

    Raises:
        ConfigError: The database was made by a newer release.
    """
    config = Config()
    config.set_main_option("script_location", str(_SCRIPTS).replace("%", "%%"))
    config.attributes["connection"] = connection
    try:
        command.upgrade(config, "head")
    except CommandError as error:
        raise ConfigError(
            f"the database does not belong to this release: {error}; install a newer one"
        ) from error
