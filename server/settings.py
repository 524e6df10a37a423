"""Every setting of the server: its name, default and unit; the environment is read here only."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import platformdirs
from sqlalchemy import URL

from edge_sdk.errors import ConfigError

ENVIRONMENT_PREFIX = "EDGE_SERVER_"


def _default_state() -> Path:
    return platformdirs.user_state_path("edge-server")


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How one server process runs.

    Attributes:
        state: Folder of the database and the tensor files.
        database_url: SQLAlchemy address; empty means a SQLite file in ``state``.
        host: Address to listen on.
        port: Port to listen on; 0 lets the system choose.
        poll_s: Seconds a waiting device is told to stay away.
        tick_s: Seconds between two looks at the deadlines of the rounds.
        max_json_bytes: Largest JSON body a request may have.
    """

    state: Path = field(default_factory=_default_state)
    database_url: str = ""
    host: str = "127.0.0.1"
    port: int = 8765
    poll_s: float = 2.0
    tick_s: float = 1.0
    max_json_bytes: int = 64 * 1024

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise ConfigError(f"port={self.port} must be in 0..65535; 0 lets the system choose")
        for name in ("poll_s", "tick_s"):
            seconds = getattr(self, name)
            if not (math.isfinite(seconds) and seconds > 0):
                raise ConfigError(f"{name}={seconds} must be a positive number of seconds")
        if self.max_json_bytes < 1:
            raise ConfigError(f"max_json_bytes={self.max_json_bytes} must be at least 1")

    @property
    def url(self) -> str | URL:
        """Address of the database."""
        return self.database_url or URL.create("sqlite", database=str(self.state / "server.sqlite"))

    @property
    def blob_folder(self) -> Path:
        """Folder of the tensor files."""
        return self.state / "blobs"


_PARSERS: dict[str, Callable[[str], Any]] = {
    "Path": lambda text: Path(text).expanduser(),
    "str": str,
    "int": int,
    "float": float,
}


def read_settings(flags: Mapping[str, Any], environment: Mapping[str, str]) -> Settings:
    """Combine command-line flags, environment variables and defaults, in this order.

    Args:
        flags: Values by field name; a missing one or ``None`` was not given.
        environment: Where ``EDGE_SERVER_<FIELD>`` is looked up.

    Raises:
        ConfigError: A value that cannot be.
    """
    values: dict[str, Any] = {}
    for setting in fields(Settings):
        variable = ENVIRONMENT_PREFIX + setting.name.upper()
        if flags.get(setting.name) is not None:
            values[setting.name] = flags[setting.name]
        elif environment.get(variable):
            values[setting.name] = _parse(variable, environment[variable], str(setting.type))
    return Settings(**values)


def _parse(variable: str, text: str, kind: str) -> Any:
    try:
        return _PARSERS[kind](text)
    except ValueError:
        raise ConfigError(f"{variable}={text!r} is not a valid {kind}") from None
