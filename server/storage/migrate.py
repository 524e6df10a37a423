"""Bring a database to the tables of this release, and say whether it has them."""

from __future__ import annotations

from pathlib import Path

from sqlalchemy import Connection, inspect

from edge_sdk.errors import ConfigError, StorageError

_SCRIPTS = Path(__file__).parents[1] / "migrations"


def upgrade_to_head(connection: Connection) -> None:
    """Run every migration the database has not seen, in the caller's transaction.

    Alembic is imported only if there is one: a server that is started again does not wait for it.

    Raises:
        ConfigError: The database was made by a newer release.
    """
    if _revision(connection) == _newest():
        return
    from alembic import command
    from alembic.config import Config
    from alembic.util.exc import CommandError

    config = Config()
    config.set_main_option("script_location", str(_SCRIPTS).replace("%", "%%"))
    config.attributes["connection"] = connection
    try:
        command.upgrade(config, "head")
    except CommandError as error:
        raise ConfigError(
            f"the database does not belong to this release: {error}; install a newer one"
        ) from error


def check_at_head(connection: Connection) -> None:
    """Return if the database has the tables of this release; nothing is changed.

    Raises:
        StorageError: It has others.
    """
    found, newest = _revision(connection), _newest()
    if found != newest:
        raise StorageError(
            f"the database has the tables of {found or 'no release'}; this server needs those of "
            f"{newest}: run the release that changed them"
        )


def _revision(connection: Connection) -> str | None:
    """Return the last migration a database has seen."""
    if not inspect(connection).has_table("alembic_version"):
        return None
    query = "SELECT version_num FROM alembic_version"
    return connection.exec_driver_sql(query).scalar_one_or_none()


def _newest() -> str:
    """Return the last migration of this release, by the names of the files: NNNN_what.py."""
    return max(path.name for path in (_SCRIPTS / "versions").glob("[0-9]*.py")).partition("_")[0]
