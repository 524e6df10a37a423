"""Balanced draws, late and quarantined updates, the state of server optimizers."""

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Add the columns; what is there keeps its meaning."""
    op.add_column("tasks", _number("drawn", sa.BigInteger))
    op.add_column("assignments", sa.Column("drawn_from", sa.BigInteger))
    op.add_column("adapters", sa.Column("optimizer_digest", sa.String(64)))
    op.add_column("updates", _number("counted_in", sa.Integer))
    op.add_column("updates", _number("staleness", sa.Integer))
    op.add_column("updates", _number("norm", sa.Float))
    op.add_column("updates", sa.Column("quarantine", sa.String(200)))
    op.execute("UPDATE updates SET counted_in = round_number")
    op.create_index("ix_updates_counted_in", "updates", ["counted_in"])


def _number(name: str, kind: type[sa.types.TypeEngine[Any]]) -> sa.Column[Any]:
    """Return a column that is 0 in the rows there are."""
    return sa.Column(name, kind, nullable=False, server_default="0")
