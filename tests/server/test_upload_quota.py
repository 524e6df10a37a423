"""The bytes a device may send in a day, counted for all replicas."""

import asyncio

import pytest

from edge_sdk.errors import MalformedPayload, QuotaExceeded, StorageError
from server.access.upload_quota import UploadQuota
from tests.server.tasks import tiny_spec

DAY_S = 86_400


@pytest.fixture
def quota(site):
    site.add_task(tiny_spec())
    site.add_device("a")
    site.add_device("b")
    return UploadQuota(site.store, site.clock, 10_000)


def send(quota, size, device="a", received=None, error=None):
    async def one():
        async with quota.metered(device, "tiny", 1, size) as meter:
            meter.received_bytes += size if received is None else received
            if error is not None:
                raise error

    asyncio.run(one())


def fail(quota, size, device="a", received=None):
    with pytest.raises(MalformedPayload):
        send(quota, size, device, received, MalformedPayload("not tensors"))


def sent(site, device="a"):
    with site.store.read() as tx:
        return tx.upload_bytes(device, int(site.clock() // DAY_S))


def test_what_came_to_nothing_counts_as_far_as_it_came(site, quota):
    fail(quota, 6_000, received=1_500)
    fail(quota, 6_000, received=2_000)
    assert (sent(site), sent(site, "b")) == (3_500, 0)


def test_an_accepted_update_counts_by_its_own_size_once(site, quota):
    site.train("a", tiny_spec(), seed=1)
    size = sent(site)
    assert size > 1_000
    send(quota, 100)
    assert sent(site) == size + 100, "the device repeated it"
    send(quota, 100, "b")
    assert sent(site, "b") == 0, "its row counts it"


def test_a_day_that_is_full_is_told_before_anything_is_read(site, quota):
    fail(quota, 9_000)
    send(quota, 1_000, "a")
    with pytest.raises(QuotaExceeded, match="9000 bytes today") as refused:
        send(quota, 1_001)
    assert sent(site) == 9_000
    send(quota, 10_000, "b")
    site.clock.now += refused.value.retry_after_s
    send(quota, 10_000)


def test_uploads_side_by_side_get_no_more_than_one_after_the_other(quota):
    async def side_by_side():
        async with quota.metered("a", "tiny", 1, 6_000):
            with pytest.raises(QuotaExceeded):
                async with quota.metered("a", "tiny", 1, 6_000):
                    raise AssertionError("let in")
            async with quota.metered("a", "tiny", 1, 4_000), quota.metered("b", "tiny", 1, 10_000):
                pass
        async with quota.metered("a", "tiny", 1, 10_000):
            pass

    asyncio.run(side_by_side())
    assert quota._under_way == {}


def test_replicas_count_together(site, quota):
    fail(quota, 9_000)
    with pytest.raises(QuotaExceeded):
        send(UploadQuota(site.store, site.clock, 10_000), 2_000)


def test_counting_that_fails_does_not_hide_why_the_upload_failed(site, quota, monkeypatch):
    def refuse(*_):
        raise StorageError("the disk is full")

    monkeypatch.setattr(quota, "_waste", refuse)
    fail(quota, 100)
