"""Amounts are read as people write them, and refused when they make no sense."""

import pytest

from edge_sdk.errors import ConfigError
from edge_sdk.quantities import (
    format_bytes,
    format_seconds,
    parse_bytes,
    parse_rate,
    parse_seconds,
)


@pytest.mark.parametrize(
    ("text", "amount"),
    [("700MB", 700_000_000), ("1.5 GiB", 1_610_612_736), ("12", 12), ("2kb", 2_000), ("1 B", 1)],
)
def test_amount_is_read_in_decimal_and_binary_units(text, amount):
    assert parse_bytes(text) == amount


@pytest.mark.parametrize("text", ["", "much", "-1GB", "0", "0MB", "1.5XB", "1e9", "GB"])
def test_amount_that_makes_no_sense_is_refused(text):
    with pytest.raises(ConfigError, match=r"memory|nothing"):
        parse_bytes(text)


@pytest.mark.parametrize(
    ("amount", "text"),
    [(0, "0 B"), (12_345, "12.3 kB"), (704_000_000, "704 MB"), (1_500_000_000, "1.50 GB")],
)
def test_amount_is_written_with_three_digits(amount, text):
    assert format_bytes(amount) == text


@pytest.mark.parametrize("amount", [999.4, 999.6, 999_500, 999_500_000, 999_999_999])
def test_amount_is_never_written_as_a_thousand_of_the_smaller_unit(amount):
    assert not format_bytes(amount).startswith("1000 ")
    assert "e" not in format_bytes(amount)


def test_amount_that_was_too_much_keeps_its_sign():
    assert format_bytes(-23_400_000) == "-23.4 MB"


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90", 90),
        ("90s", 90),
        ("10min", 600),
        ("1.5 h", 5400),
        ("2m", 120),
        ("0.5 sec", 0.5),
        ("7d", 604_800),
    ],
)
def test_duration_is_read_in_seconds(text, seconds):
    assert parse_seconds(text) == seconds


@pytest.mark.parametrize("text", ["", "never", "-1s", "0", "0min", "2 days", "1e3", "s", "nan"])
def test_duration_that_makes_no_sense_is_refused(text):
    with pytest.raises(ConfigError, match=r"not a duration; write for example"):
        parse_seconds(text)


@pytest.mark.parametrize(
    ("text", "bytes_per_s"),
    [
        ("8bit/s", 1),
        ("2Mbit/s", 250_000),
        ("250kB/s", 250_000),
        ("1 MB/s", 1e6),
        ("0.5 Gbit/s", 62.5e6),
        ("2GB/s", 2e9),
    ],
)
def test_rate_is_read_in_bytes_per_second(text, bytes_per_s):
    assert parse_rate(text) == bytes_per_s


@pytest.mark.parametrize("text", ["", "fast", "2", "2Mb", "2MB", "-1MB/s", "0kB/s", "MB/s"])
def test_rate_that_makes_no_sense_is_refused(text):
    with pytest.raises(ConfigError, match="not the rate of a link; write for example"):
        parse_rate(text)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0, "0 s"),
        (0.31, "0.31 s"),
        (9.99, "10 s"),
        (42.4, "42 s"),
        (59.7, "1 min 0 s"),
        (200, "3 min 20 s"),
        (119.6, "2 min 0 s"),
        (3599.9, "1 h 0 min"),
        (7500, "2 h 5 min"),
        (7199, "2 h 0 min"),
    ],
)
def test_duration_is_written_for_people(seconds, text):
    assert format_seconds(seconds) == text
