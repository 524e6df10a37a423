"""Amounts of memory are read as people write them, and refused when they make no sense."""

import pytest

from edge_sdk.errors import ConfigError
from edge_sdk.quantities import format_bytes, parse_bytes


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
