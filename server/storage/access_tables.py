"""The tables of tokens, devices and admins; :mod:`server.migrations` builds them."""

from sqlalchemy import BigInteger, Column, Float, ForeignKey, Index, Integer, String, Table

from server.storage.tables import metadata, updates

enrolment_tokens = Table(
    "enrolment_tokens",
    metadata,
    Column("token_hash", String(64), primary_key=True),
    Column("created_at", Float, nullable=False),
    Column("id", String(16), nullable=False),
    Column("name", String(100), nullable=False),
    Column("expires_at", Float),
    Column("uses_left", Integer),
    Column("revoked_at", Float),
    Column("relay_for", Integer),
    Index("ix_enrolment_tokens_id", "id", unique=True),
)

devices = Table(
    "devices",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("name", String(100), nullable=False),
    Column("public_key", String(64), nullable=False, unique=True),
    Column("enrolled_at", Float, nullable=False),
    Column("key_number", Integer, nullable=False),
    Column("enrolled_with", String(16)),
    Column("revoked_at", Float),
    Column("relay_for", Integer),
)

access_keys = Table(
    "access_keys",
    metadata,
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("secret", String(64), nullable=False),
    Column("created_at", Float, nullable=False),
    Column("valid_until", Float),
)

used_nonces = Table(
    "used_nonces",
    metadata,
    Column("nonce", String(64), primary_key=True),
    Column("expires_at", Float, nullable=False, index=True),
)

wasted_uploads = Table(
    "wasted_uploads",
    metadata,
    Column("device_id", String(32), ForeignKey("devices.id"), primary_key=True),
    Column("day", Integer, primary_key=True, autoincrement=False),
    Column("size_bytes", BigInteger, nullable=False),
)

admins = Table(
    "admins",
    metadata,
    Column("name", String(100), primary_key=True),
    Column("role", String(10), nullable=False),
    Column("token_hash", String(64), nullable=False, unique=True),
    Column("created_at", Float, nullable=False),
    Column("expires_at", Float),
    Column("revoked_at", Float),
)

audit = Table(
    "audit",
    metadata,
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("at", Float, nullable=False),
    Column("who", String(200), nullable=False),
    Column("action", String(50), nullable=False),
    Column("subject", String(300), nullable=False),
)

Index("ix_updates_device_id_accepted_at", updates.c.device_id, updates.c.accepted_at)
