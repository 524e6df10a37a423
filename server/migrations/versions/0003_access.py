"""Device keys instead of device tokens, limited enrolment tokens, admins and their audit log."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Change the tables; devices of older releases stay in the records and enrol again."""
    _limit_enrolment_tokens()
    _give_devices_keys()
    _add_credentials()
    _add_admins()
    op.create_index("ix_updates_device_id_accepted_at", "updates", ["device_id", "accepted_at"])


def _limit_enrolment_tokens() -> None:
    for name, size in (("id", 16), ("name", 100)):
        op.add_column(
            "enrolment_tokens", sa.Column(name, sa.String(size), nullable=False, server_default="")
        )
    op.add_column("enrolment_tokens", sa.Column("expires_at", sa.Float))
    op.add_column("enrolment_tokens", sa.Column("uses_left", sa.Integer))
    op.add_column("enrolment_tokens", sa.Column("revoked_at", sa.Float))
    op.execute("UPDATE enrolment_tokens SET id = substr(token_hash, 1, 16)")
    op.create_index("ix_enrolment_tokens_id", "enrolment_tokens", ["id"], unique=True)


def _give_devices_keys() -> None:
    op.execute("ALTER TABLE devices RENAME COLUMN token_hash TO public_key")
    op.execute("UPDATE devices SET public_key = 'none of ' || id")
    op.add_column(
        "devices", sa.Column("key_number", sa.Integer, nullable=False, server_default="1")
    )
    op.add_column("devices", sa.Column("enrolled_with", sa.String(16)))
    op.add_column("devices", sa.Column("revoked_at", sa.Float))


def _add_credentials() -> None:
    op.create_table(
        "access_keys",
        sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("secret", sa.String(64), nullable=False),
        sa.Column("created_at", sa.Float, nullable=False),
        sa.Column("valid_until", sa.Float),
    )
    op.create_table(
        "used_nonces",
        sa.Column("nonce", sa.String(64), primary_key=True),
        sa.Column("expires_at", sa.Float, nullable=False, index=True),
    )
    op.create_table(
        "wasted_uploads",
        sa.Column("device_id", sa.String(32), sa.ForeignKey("devices.id"), primary_key=True),
        sa.Column("day", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("size_bytes", sa.BigInteger, nullable=False),
    )


def _add_admins() -> None:
    op.create_table(
        "admins",
        sa.Column("name", sa.String(100), primary_key=True),
        sa.Column("role", sa.String(10), nullable=False),
        sa.Column("token_hash", sa.String(64), nullable=False, unique=True),
        sa.Column("created_at", sa.Float, nullable=False),
        sa.Column("expires_at", sa.Float),
        sa.Column("revoked_at", sa.Float),
    )
    op.create_table(
        "audit",
        sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("at", sa.Float, nullable=False),
        sa.Column("who", sa.String(200), nullable=False),
        sa.Column("action", sa.String(50), nullable=False),
        sa.Column("subject", sa.String(300), nullable=False),
    )
