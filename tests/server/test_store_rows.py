"""What the server remembers beside rounds, the same in SQLite and PostgreSQL."""

from __future__ import annotations

from dataclasses import replace

import pytest

from edge_sdk.errors import StorageError
from server.storage.access_store import AccessKeyRow, AdminRow, EnrolmentTokenRow
from server.storage.registry_store import PointerRow, SigningKeyRow
from tests.server.store_rows import ADAPTER, ASSIGNMENT, DEVICE, ROUND, TASK, UPDATE, fill


def test_tokens_and_admins_come_back_as_they_were_last(store):
    token = EnrolmentTokenRow(
        id="0123456789abcdef", token_hash="h" * 64, name="lab ☎", created_at=1.5, uses_left=2
    )
    admin = AdminRow(name="Ann", role="operate", token_hash="t" * 64, created_at=2.5)
    with store.write() as tx:
        tx.add_enrolment_token(token)
        tx.update_enrolment_token(replace(token, uses_left=1, revoked_at=3.5))
        tx.add_admin(admin)
        tx.add_admin(replace(admin, name="Bob", token_hash="u" * 64))
        tx.revoke_admin("Bob", 4.5)
        for subject in ("first", "second"):
            tx.add_audit(5.5, "Ann", "device.revoke", subject)
    revoked = replace(token, uses_left=1, revoked_at=3.5)
    with store.read() as tx:
        assert tx.enrolment_token("h" * 64) == revoked
        assert tx.enrolment_tokens() == [revoked]
        assert tx.admin("Ann") == tx.admin_by_token("t" * 64) == admin
        assert [row.revoked_at for row in tx.admins()] == [None, 4.5]
        assert [(row.number, row.subject) for row in tx.audit(9)] == [(2, "second"), (1, "first")]
    with pytest.raises(StorageError, match=r"(?i)unique"), store.write() as tx:
        tx.add_admin(replace(admin, name="Eve"))


def test_device_keys_change_and_access_keys_retire(store):
    changed = replace(DEVICE, public_key="ef" * 32, key_number=2, revoked_at=9.5)
    keys = [AccessKeyRow(number=n, secret="5" * 64, created_at=float(n)) for n in (1, 2)]
    with store.write() as tx:
        tx.add_device(DEVICE)
        tx.update_device(changed)
        tx.add_access_key(keys[0])
        tx.retire_access_keys(100.0)
        tx.add_access_key(keys[1])
    with store.read() as tx:
        assert tx.device_by_key("ef" * 32) == changed
        assert tx.device_by_key(DEVICE.public_key) is None
        assert tx.devices() == [changed]
        assert tx.access_keys() == [replace(keys[0], valid_until=100.0), keys[1]]


def test_a_nonce_is_taken_once_until_it_expires(store):
    with store.write() as tx:
        assert tx.take_nonce("n", 10.0, now=1.0)
        assert not tx.take_nonce("n", 10.0, now=9.0)
        assert tx.take_nonce("n", 20.0, now=10.0)


def test_bytes_of_a_day_are_those_taken_and_those_wasted(store):
    fill(store)
    with store.write() as tx:
        tx.add_wasted_bytes("a", 0, 5)
        tx.add_wasted_bytes("a", 0, 2**40)
        tx.add_wasted_bytes("a", 1, 7)
    with store.read() as tx:
        assert tx.upload_bytes("a", 0) == UPDATE.size_bytes + 5 + 2**40
        assert tx.upload_bytes("a", 1) == 7
        assert tx.upload_bytes("b", 0) == 0


def test_signed_versions_and_channels_come_back_as_they_were_last(store):
    fill(store)
    key = SigningKeyRow(
        number=1, key_id="k" * 16, public_key="p" * 64, succession=None, created_at=1.5
    )
    pointer = PointerRow(
        task="tiny",
        sequence=1,
        version=0,
        canary_version=None,
        canary_share=0.1,
        follows_latest=True,
        created_at=2.5,
        signed="{}",
    )
    with store.write() as tx:
        assert tx.unsigned_versions("tiny") == [0]
        tx.add_signing_key(key)
        tx.add_manifest("tiny", 0, "{}")
        tx.replace_manifest("tiny", 0, '{"signed": 1}')
        tx.add_pointer(pointer)
        tx.add_pointer(replace(pointer, sequence=2))
        tx.replace_pointer(replace(pointer, sequence=2), '{"signed": 2}')
    with store.read() as tx:
        assert tx.unsigned_versions("tiny") == []
        assert tx.signing_keys() == [key]
        assert tx.manifest("tiny", 0) == '{"signed": 1}'
        assert tx.manifests() == [("tiny", 0, '{"signed": 1}')]
        assert tx.last_pointer("tiny") == replace(pointer, sequence=2, signed='{"signed": 2}')
        assert tx.pointers("tiny")[0] == pointer


def test_needed_blobs_are_those_of_versions_and_of_rounds_not_long_closed(store):
    fill(store)
    made = replace(ADAPTER, version=1, round_number=1, digest="c" * 64, optimizer_digest="0" * 64)
    with store.write() as tx:
        tx.add_adapter(made)
        tx.update_round(replace(ROUND, state="closed", adapter_version=1))
    always = {x * 64 for x in "dmc0"}
    with store.read() as tx:
        assert tx.needed_digests("", made.created_at) == always | {UPDATE.digest}
        assert tx.needed_digests("", made.created_at + 1) == always
        assert tx.needed_digests("c", made.created_at + 1) == {"c" * 64}


def test_the_database_counts_what_all_tasks_add_up_to(store):
    fill(store)
    with store.write() as tx:
        tx.add_task(replace(TASK, name="other"))
        tx.add_download(ASSIGNMENT, 2**40)
        tx.quarantine(UPDATE, "too large")
    with store.read() as tx:
        counts = tx.fleet_counts()
    assert counts.devices == 1
    assert set(counts.tasks) == {"tiny", "other"}
    tiny = counts.tasks["tiny"]
    assert (tiny.rounds["open"], tiny.rounds["closed"]) == (1, 0)
    assert (tiny.updates["quarantined"], tiny.updates["on_time"]) == (1, 0)
    assert (tiny.download_bytes, tiny.upload_bytes) == (2**40, UPDATE.size_bytes)
