"""The link is measured on transfers, remembered, and unknown rather than wrong."""

from __future__ import annotations

import pytest

from edge_sdk.network.link import Link, LinkMeter, load_link, save_link

MB = 1_000_000


def test_rates_are_bytes_over_seconds_of_large_transfers_in_each_direction():
    meter = LinkMeter()
    meter.add(2 * MB, 200, 4.0)
    meter.add(4 * MB, 200, 2.0)
    meter.add(0, 3 * MB, 1.5)
    assert meter.link() == Link(uplink_bytes_per_s=MB, downlink_bytes_per_s=2 * MB)


def test_small_messages_do_not_make_a_fast_link_look_slow():
    meter = LinkMeter()
    meter.add(500, 800, 10.0)
    assert meter.link() == Link()
    meter.add(MB, 100, 1.0)
    meter.add(500, 800, 10.0)
    assert meter.link() == Link(uplink_bytes_per_s=MB)


def test_link_is_remembered(tmp_path):
    link = Link(uplink_bytes_per_s=125_000.0, downlink_bytes_per_s=1e6)
    save_link(tmp_path, link)
    assert load_link(tmp_path) == link
    assert [file.name for file in tmp_path.iterdir()] == ["link.json"]


@pytest.mark.parametrize("content", [b"", b"[]", b'{"uplink_bytes_per_s": "fast"}'])
def test_damaged_memory_of_the_link_counts_as_none(tmp_path, content):
    (tmp_path / "link.json").write_bytes(content)
    assert load_link(tmp_path) == Link()


def test_link_that_was_never_measured_is_unknown(tmp_path):
    assert load_link(tmp_path / "nowhere") == Link()


def test_folder_that_cannot_be_written_is_no_error(tmp_path):
    (tmp_path / "file").write_text("")
    save_link(tmp_path / "file", Link(uplink_bytes_per_s=1.0))
    assert load_link(tmp_path / "file") == Link()
