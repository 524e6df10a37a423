"""Signing keys, signed manifests and the channel of every task."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """Make the tables; versions that are there are signed when the server starts."""
    op.create_table(
        "signing_keys",
        sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("key_id", sa.String(16), nullable=False, unique=True),
        sa.Column("public_key", sa.String(64), nullable=False),
        sa.Column("succession", sa.Text),
        sa.Column("created_at", sa.Float, nullable=False),
    )
    op.create_table(
        "manifests",
        sa.Column("task", sa.String(63), primary_key=True),
        sa.Column("version", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("signed", sa.Text, nullable=False),
        sa.ForeignKeyConstraint(["task", "version"], ["adapters.task", "adapters.version"]),
    )
    op.create_table(
        "pointers",
        sa.Column("task", sa.String(63), sa.ForeignKey("tasks.name"), primary_key=True),
        sa.Column("sequence", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("version", sa.Integer, nullable=False),
        sa.Column("canary_version", sa.Integer),
        sa.Column("canary_share", sa.Float, nullable=False),
        sa.Column("follows_latest", sa.Boolean, nullable=False),
        sa.Column("created_at", sa.Float, nullable=False),
        sa.Column("signed", sa.Text, nullable=False),
    )
