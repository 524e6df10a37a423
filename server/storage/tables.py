"""The tables of tasks, rounds and their results; :mod:`server.migrations` builds them."""

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Float,
    ForeignKey,
    ForeignKeyConstraint,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
)

metadata = MetaData()

tasks = Table(
    "tasks",
    metadata,
    Column("name", String(63), primary_key=True),
    Column("spec", Text, nullable=False),
    Column("seed", BigInteger, nullable=False),
    Column("created_at", Float, nullable=False),
    Column("drawn", BigInteger, nullable=False),
    Column("is_relayed", Boolean, nullable=False),
)

rounds = Table(
    "rounds",
    metadata,
    Column("task", String(63), ForeignKey("tasks.name"), primary_key=True),
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("state", String(10), nullable=False, index=True),
    Column("opened_at", Float, nullable=False),
    Column("stretch_at", Float, nullable=False),
    Column("deadline_at", Float, nullable=False),
    Column("adapter_version", Integer),
)

assignments = Table(
    "assignments",
    metadata,
    Column("task", String(63), primary_key=True),
    Column("round_number", Integer, primary_key=True, autoincrement=False),
    Column("device_id", String(32), ForeignKey("devices.id"), primary_key=True),
    Column("k", Integer, nullable=False),
    Column("seed", BigInteger, nullable=False),
    Column("adapter_version", Integer, nullable=False),
    Column("assigned_at", Float, nullable=False),
    Column("download_bytes", BigInteger, nullable=False),
    Column("drawn_from", BigInteger),
    Column("members", Integer),
    ForeignKeyConstraint(["task", "round_number"], ["rounds.task", "rounds.number"]),
    ForeignKeyConstraint(["task", "adapter_version"], ["adapters.task", "adapters.version"]),
)

updates = Table(
    "updates",
    metadata,
    Column("task", String(63), primary_key=True),
    Column("round_number", Integer, primary_key=True, autoincrement=False),
    Column("device_id", String(32), primary_key=True),
    Column("digest", String(64), nullable=False, index=True),
    Column("size_bytes", BigInteger, nullable=False),
    Column("examples", BigInteger, nullable=False),
    Column("loss", Float, nullable=False),
    Column("seconds", Float, nullable=False),
    Column("peak_rss_bytes", BigInteger, nullable=False),
    Column("accepted_at", Float, nullable=False),
    Column("counted_in", Integer, nullable=False, index=True),
    Column("staleness", Integer, nullable=False),
    Column("norm", Float, nullable=False),
    Column("quarantine", String(200)),
    Column("members", Integer, nullable=False),
    Column("weight", Float),
    Column("rank_members", LargeBinary),
    ForeignKeyConstraint(
        ["task", "round_number", "device_id"],
        ["assignments.task", "assignments.round_number", "assignments.device_id"],
    ),
)

adapters = Table(
    "adapters",
    metadata,
    Column("task", String(63), ForeignKey("tasks.name"), primary_key=True),
    Column("version", Integer, primary_key=True, autoincrement=False),
    Column("round_number", Integer, nullable=False),
    Column("digest", String(64), nullable=False),
    Column("size_bytes", BigInteger, nullable=False),
    Column("master_digest", String(64), nullable=False),
    Column("created_at", Float, nullable=False),
    Column("optimizer_digest", String(64)),
)
