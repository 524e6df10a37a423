"""Updates are found by the digest of their blob, so that unneeded blobs can be removed."""

from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    """Add the index."""
    op.create_index("ix_updates_digest", "updates", ["digest"])
