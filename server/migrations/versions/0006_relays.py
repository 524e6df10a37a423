"""Relays: tokens and devices that speak for others, their sums, and tasks of another server."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    """Add the columns; whatever is there is of devices that speak for themselves."""
    op.add_column("enrolment_tokens", sa.Column("relay_for", sa.Integer))
    op.add_column("devices", sa.Column("relay_for", sa.Integer))
    op.add_column("assignments", sa.Column("members", sa.Integer))
    op.add_column("updates", sa.Column("members", sa.Integer, nullable=False, server_default="1"))
    op.add_column("updates", sa.Column("weight", sa.Float))
    op.add_column("updates", sa.Column("rank_members", sa.LargeBinary))
    op.add_column(
        "tasks", sa.Column("is_relayed", sa.Boolean, nullable=False, server_default=sa.false())
    )
