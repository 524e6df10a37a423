"""The tables of the first release."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Make all tables."""
    _tasks_and_devices()
    _rounds_and_adapters()
    _assignments_and_updates()


def _tasks_and_devices() -> None:
    op.create_table(
        "tasks",
        sa.Column("name", sa.String(63), primary_key=True),
        sa.Column("spec", sa.Text, nullable=False),
        sa.Column("seed", sa.BigInteger, nullable=False),
        sa.Column("created_at", sa.Float, nullable=False),
    )
    op.create_table(
        "enrolment_tokens",
        sa.Column("token_hash", sa.String(64), primary_key=True),
        sa.Column("created_at", sa.Float, nullable=False),
    )
    op.create_table(
        "devices",
        sa.Column("id", sa.String(32), primary_key=True),
        sa.Column("name", sa.String(100), nullable=False),
        sa.Column("token_hash", sa.String(64), nullable=False, unique=True),
        sa.Column("enrolled_at", sa.Float, nullable=False),
    )


def _rounds_and_adapters() -> None:
    op.create_table(
        "rounds",
        sa.Column("task", sa.String(63), sa.ForeignKey("tasks.name"), primary_key=True),
        sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("state", sa.String(10), nullable=False, index=True),
        sa.Column("opened_at", sa.Float, nullable=False),
        sa.Column("stretch_at", sa.Float, nullable=False),
        sa.Column("deadline_at", sa.Float, nullable=False),
        sa.Column("adapter_version", sa.Integer),
    )
    op.create_table(
        "adapters",
        sa.Column("task", sa.String(63), sa.ForeignKey("tasks.name"), primary_key=True),
        sa.Column("version", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("round_number", sa.Integer, nullable=False),
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("size_bytes", sa.BigInteger, nullable=False),
        sa.Column("master_digest", sa.String(64), nullable=False),
        sa.Column("created_at", sa.Float, nullable=False),
    )


def _assignments_and_updates() -> None:
    op.create_table(
        "assignments",
        sa.Column("task", sa.String(63), primary_key=True),
        sa.Column("round_number", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("device_id", sa.String(32), sa.ForeignKey("devices.id"), primary_key=True),
        sa.Column("k", sa.Integer, nullable=False),
        sa.Column("seed", sa.BigInteger, nullable=False),
        sa.Column("adapter_version", sa.Integer, nullable=False),
        sa.Column("assigned_at", sa.Float, nullable=False),
        sa.Column("download_bytes", sa.BigInteger, nullable=False),
        sa.ForeignKeyConstraint(["task", "round_number"], ["rounds.task", "rounds.number"]),
        sa.ForeignKeyConstraint(["task", "adapter_version"], ["adapters.task", "adapters.version"]),
    )
    op.create_table(
        "updates",
        sa.Column("task", sa.String(63), primary_key=True),
        sa.Column("round_number", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("device_id", sa.String(32), primary_key=True),
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("size_bytes", sa.BigInteger, nullable=False),
        sa.Column("examples", sa.BigInteger, nullable=False),
        sa.Column("loss", sa.Float, nullable=False),
        sa.Column("seconds", sa.Float, nullable=False),
        sa.Column("peak_rss_bytes", sa.BigInteger, nullable=False),
        sa.Column("accepted_at", sa.Float, nullable=False),
        sa.ForeignKeyConstraint(
            ["task", "round_number", "device_id"],
            ["assignments.task", "assignments.round_number", "assignments.device_id"],
        ),
    )
