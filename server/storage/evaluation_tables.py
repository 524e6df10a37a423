"""The tables of evaluations; :mod:`server.migrations` builds them."""

from sqlalchemy import (
    BigInteger,
    Column,
    Float,
    ForeignKey,
    ForeignKeyConstraint,
    Integer,
    String,
    Table,
)

from server.storage.tables import metadata

evaluations = Table(
    "evaluations",
    metadata,
    Column("task", String(63), primary_key=True),
    Column("version", Integer, primary_key=True, autoincrement=False),
    Column("devices", BigInteger, nullable=False),
    Column("accepted", BigInteger, nullable=False),
    Column("examples", BigInteger, nullable=False),
    Column("loss_before", Float, nullable=False),
    Column("loss_after", Float, nullable=False),
    Column("hits", Float, nullable=False),
    ForeignKeyConstraint(["task", "version"], ["adapters.task", "adapters.version"]),
)

evaluators = Table(
    "evaluators",
    metadata,
    Column("task", String(63), primary_key=True),
    Column("version", Integer, primary_key=True, autoincrement=False),
    Column("device_id", String(32), ForeignKey("devices.id"), primary_key=True),
    ForeignKeyConstraint(["task", "version"], ["adapters.task", "adapters.version"]),
)
