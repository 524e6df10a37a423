"""Rates of a device: measured, assumed cautiously, or scaled from published figures."""

from __future__ import annotations

import msgspec
import pytest

from edge_sdk.plan_command import profile_machine
from edge_sdk.profiles import load_profile, profile_names
from edge_sdk.rates import Rates, assumed_rates, profile_rates
from tests.sdk.workloads import RATES


def test_half_the_rate_is_reached_at_the_stated_rows():
    assert RATES.flops_per_s(20, is_bf16=False) == pytest.approx(RATES.fp32_flops_per_s / 2)
    assert RATES.flops_per_s(10**6, is_bf16=True) == pytest.approx(RATES.bf16_flops_per_s, rel=1e-3)


def test_unknown_rate_of_bf16_is_taken_to_be_that_of_fp32():
    """A profile may say that bf16 is fast without saying how fast."""
    rates = profile_rates(80e9, None, 20e9, 4, ("bf16",))
    assert rates.flops_per_s(64, is_bf16=True) == rates.flops_per_s(64, is_bf16=False) > 0


def test_nf4_alone_pays_for_its_library():
    assert RATES.runtime_bytes("nf4") == 450_000_000
    assert RATES.runtime_bytes("bf16") == RATES.runtime_bytes("fp32") == 400_000_000


def test_rates_survive_the_cache_bit_for_bit():
    written = msgspec.json.encode(RATES)
    assert msgspec.json.decode(written, type=Rates) == RATES


def test_assumed_rates_grow_with_cores_and_say_that_they_are_assumed():
    one, four = assumed_rates(1), assumed_rates(4)
    assert one.origin == four.origin == "assumed"
    assert four.fp32_flops_per_s == 4 * one.fp32_flops_per_s
    assert four.threads == 4


def test_slower_processor_is_slower_in_everything():
    fast = profile_rates(160e9, None, 20e9, 4, ("nf4", "bf16", "fp32"))
    slow = profile_rates(16e9, None, 2e9, 4, ("nf4", "bf16", "fp32"))
    assert slow.nf4_elements_per_s == pytest.approx(fast.nf4_elements_per_s / 10)
    assert slow.block_overhead_s == pytest.approx(10 * fast.block_overhead_s)
    assert slow.fresh_bytes_per_s < fast.fresh_bytes_per_s
    assert (fast.origin, fast.unusable) == ("profile", {})


def test_profile_names_the_number_formats_that_do_not_work_there():
    rates = profile_rates(16e9, None, 2e9, 4, ("fp32",))
    assert rates.unusable.keys() == {"nf4", "bf16"}
    assert "profile" in rates.unusable["nf4"]


@pytest.mark.parametrize("name", profile_names())
def test_every_shipped_profile_gives_rates_a_plan_can_divide_by(name):
    machine = profile_machine(load_profile(name))
    rates = machine.rates
    assert rates.flops_per_s(64, is_bf16=machine.has_native_bf16) > 0
    assert rates.fresh_bytes_per_s > 0
    assert "nf4" in rates.unusable or rates.nf4_elements_per_s > 0
    assert len(rates.unusable) < 3
