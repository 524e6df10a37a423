"""The tables of signed adapters; :mod:`server.migrations` builds them."""

from sqlalchemy import (
    Boolean,
    Column,
    Float,
    ForeignKey,
    ForeignKeyConstraint,
    Integer,
    String,
    Table,
    Text,
)

from server.storage.tables import metadata

signing_keys = Table(
    "signing_keys",
    metadata,
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("key_id", String(16), nullable=False, unique=True),
    Column("public_key", String(64), nullable=False),
    Column("succession", Text),
    Column("created_at", Float, nullable=False),
)

manifests = Table(
    "manifests",
    metadata,
    Column("task", String(63), primary_key=True),
    Column("version", Integer, primary_key=True, autoincrement=False),
    Column("signed", Text, nullable=False),
    ForeignKeyConstraint(["task", "version"], ["adapters.task", "adapters.version"]),
)

pointers = Table(
    "pointers",
    metadata,
    Column("task", String(63), ForeignKey("tasks.name"), primary_key=True),
    Column("sequence", Integer, primary_key=True, autoincrement=False),
    Column("version", Integer, nullable=False),
    Column("canary_version", Integer),
    Column("canary_share", Float, nullable=False),
    Column("follows_latest", Boolean, nullable=False),
    Column("created_at", Float, nullable=False),
    Column("signed", Text, nullable=False),
)
