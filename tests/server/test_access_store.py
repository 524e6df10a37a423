"""Tokens, devices and admins in the store, the same in SQLite and PostgreSQL."""

from __future__ import annotations

from dataclasses import replace

import pytest
import sqlalchemy as sa

from edge_sdk.errors import StorageError
from server.storage.access_store import AccessKeyRow, AdminRow, DeviceRow, EnrolmentTokenRow
from server.storage.sql_store import open_store
from tests.databases import fresh_database
from tests.server.store_rows import UPDATE, fill
from tests.server.tasks import in_parallel

DEVICE = DeviceRow(
    id="d1",
    name="Ann's phone ☎",
    public_key="ab" * 32,
    enrolled_at=1.5,
    key_number=2,
    enrolled_with="t1",
    revoked_at=9.5,
)
TOKEN = EnrolmentTokenRow(
    id="t1",
    token_hash="cd" * 32,
    name="lab",
    created_at=1.5,
    expires_at=2.5,
    uses_left=3,
    revoked_at=4.5,
)
ADMIN = AdminRow(
    name="ann",
    role="operate",
    token_hash="ef" * 32,
    created_at=1.5,
    expires_at=2.5,
    revoked_at=3.5,
)


@pytest.fixture(params=["sqlite", "postgres"])
def address(request, tmp_path):
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'server.sqlite'}"
    else:
        with fresh_database(request.getfixturevalue("postgres")) as found:
            yield found


@pytest.fixture
def store(address):
    opened = open_store(address)
    yield opened
    opened.close()


def test_rows_come_back_as_they_were(store):
    key = AccessKeyRow(number=1, secret="12" * 32, created_at=1.5, valid_until=2.5)
    with store.write() as tx:
        tx.add_device(DEVICE)
        tx.add_enrolment_token(TOKEN)
        tx.add_admin(ADMIN)
        tx.add_access_key(key)
    with store.read() as tx:
        assert tx.device("d1") == tx.device_by_key(DEVICE.public_key) == DEVICE
        assert tx.devices() == [DEVICE]
        assert tx.enrolment_token(TOKEN.token_hash) == TOKEN
        assert tx.enrolment_tokens() == [TOKEN]
        assert tx.admin("ann") == tx.admin_by_token(ADMIN.token_hash) == ADMIN
        assert tx.admins() == [ADMIN]
        assert tx.access_keys() == [key]


def test_what_is_not_there_is_none_or_empty(store):
    with store.read() as tx:
        assert tx.device("d1") is tx.device_by_key("x") is tx.enrolment_token("x") is None
        assert tx.admin("ann") is tx.admin_by_token("x") is None
        assert tx.devices() == tx.enrolment_tokens() == tx.admins() == tx.audit(5) == []
        assert tx.access_keys() == []
        assert tx.upload_bytes("d1", 0) == 0


def test_changes_reach_one_row_and_only_what_may_change(store):
    others = [
        replace(DEVICE, id="d2", public_key="00" * 32),
        replace(TOKEN, id="t2", token_hash="00" * 32),
        replace(ADMIN, name="bob", token_hash="00" * 32),
    ]
    with store.write() as tx:
        for device in (DEVICE, others[0]):
            tx.add_device(device)
        for token in (TOKEN, others[1]):
            tx.add_enrolment_token(token)
        for admin in (ADMIN, others[2]):
            tx.add_admin(admin)
    changed = replace(DEVICE, public_key="11" * 32, key_number=3, revoked_at=None)
    with store.write() as tx:
        tx.update_device(replace(changed, name="ignored"))
        tx.update_enrolment_token(replace(TOKEN, uses_left=0, revoked_at=7.5, name="ignored"))
        tx.revoke_admin("ann", 8.5)
    with store.read() as tx:
        assert tx.devices() == [changed, others[0]]
        assert tx.enrolment_tokens() == [replace(TOKEN, uses_left=0, revoked_at=7.5), others[1]]
        assert tx.admins() == [replace(ADMIN, revoked_at=8.5), others[2]]


@pytest.mark.parametrize(
    "add",
    [
        lambda tx: tx.add_device(replace(DEVICE, id="d2")),
        lambda tx: tx.add_enrolment_token(replace(TOKEN, token_hash="00" * 32)),
        lambda tx: tx.add_admin(replace(ADMIN, name="bob")),
    ],
    ids=["two devices with one key", "two tokens with one id", "two admins with one token"],
)
def test_what_must_be_the_only_one_of_its_kind_is(store, add):
    with store.write() as tx:
        tx.add_device(DEVICE)
        tx.add_enrolment_token(TOKEN)
        tx.add_admin(ADMIN)
    with pytest.raises(StorageError, match=r"(?i)unique"), store.write() as tx:
        add(tx)


def test_a_nonce_is_taken_once_until_it_expires(store):
    with store.write() as tx:
        assert tx.take_nonce("n", expires_at=10.0, now=1.0)
    with store.write() as tx:
        assert not tx.take_nonce("n", expires_at=10.0, now=9.0)
        assert tx.take_nonce("m", expires_at=20.0, now=9.0)
    with store.write() as tx:
        assert tx.take_nonce("n", expires_at=30.0, now=10.0), "forgotten, or the table grows"


def test_a_nonce_that_many_take_at_once_is_taken_once(store):
    def take():
        with store.write() as tx:
            return tx.take_nonce("n", expires_at=10.0, now=1.0)

    assert sorted(in_parallel([take] * 4)) == [False, False, False, True]


def test_the_bytes_of_a_day_are_what_was_taken_and_what_was_wasted(store):
    fill(store)
    day_s = 86_400.0
    with store.write() as tx:
        tx.add_wasted_bytes("a", 0, 2**33)
        tx.add_wasted_bytes("a", 0, 5)
        tx.add_wasted_bytes("a", 1, 7)
    with store.read() as tx:
        assert tx.upload_bytes("a", 0) == UPDATE.size_bytes + 2**33 + 5
        assert tx.upload_bytes("a", 1) == 7
        assert tx.upload_bytes("b", 0) == 0
    assert UPDATE.accepted_at < day_s


def test_the_log_is_in_the_order_of_what_happened_also_when_the_clock_was_set_back(store):
    for at, action in ((5.0, "first"), (3.0, "second"), (4.0, "third")):
        with store.write() as tx:
            tx.add_audit(at, "ann", action, "x")
    with store.read() as tx:
        assert [(row.number, row.action) for row in tx.audit(2)] == [(3, "third"), (2, "second")]


def test_keys_retire_at_the_earlier_of_two_times(store):
    with store.write() as tx:
        tx.add_access_key(AccessKeyRow(number=1, secret="s", created_at=1.0, valid_until=5.0))
        tx.add_access_key(AccessKeyRow(number=2, secret="s", created_at=1.0))
        tx.retire_access_keys(9.0)
    with store.read() as tx:
        assert [row.valid_until for row in tx.access_keys()] == [5.0, 9.0]


def test_devices_and_tokens_of_the_release_before_keys_are_kept_in_the_records(address):
    """A device of that release cannot get in with its old token; its updates stay its own."""
    from alembic import command
    from alembic.config import Config

    from server.storage import migrate
    from server.storage.engine import MIGRATING, make_engine

    engine = make_engine(address)
    config = Config()
    config.set_main_option("script_location", str(migrate._SCRIPTS))
    with engine.connect().execution_options(**MIGRATING) as connection, connection.begin():
        config.attributes["connection"] = connection
        command.upgrade(config, "0002")
        connection.execute(
            sa.text("INSERT INTO devices VALUES ('d1', 'old', :hash, 1.5)"), {"hash": "ab" * 32}
        )
        connection.execute(
            sa.text("INSERT INTO devices VALUES ('d2', 'old', :hash, 1.5)"), {"hash": "cd" * 32}
        )
        connection.execute(
            sa.text("INSERT INTO enrolment_tokens VALUES (:hash, 1.5)"), {"hash": "ef" * 32}
        )
    engine.dispose()
    store = open_store(address)
    with store.read() as tx:
        assert [(row.id, row.key_number) for row in tx.devices()] == [("d1", 1), ("d2", 1)]
        assert tx.device_by_key("ab" * 32) is None
        (token,) = tx.enrolment_tokens()
    assert (token.id, token.uses_left, token.is_open(10.0)) == ("ef" * 8, None, True)
    store.close()
