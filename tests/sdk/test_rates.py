"""Rates of a device: measured, assumed cautiously, or scaled from published figures."""

from __future__ import annotations

from dataclasses import replace

import msgspec
import pytest

from edge_sdk.commands.plan import profile_machine
from edge_sdk.compute.rates import Rates, assumed_rates, profile_rates
from edge_sdk.planning.profiles import load_profile, profile_names
from tests.sdk.workloads import INTEGER_RATES, RATES


def test_half_the_rate_is_reached_at_the_stated_rows():
    assert INTEGER_RATES.int8_flops_per_s(20) == pytest.approx(120e9)
    assert RATES.flops_per_s(20, is_bf16=False) == pytest.approx(RATES.fp32_flops_per_s / 2)
    assert RATES.flops_per_s(10**6, is_bf16=True) == pytest.approx(RATES.bf16_flops_per_s, rel=1e-3)


def test_unknown_rate_of_bf16_is_taken_to_be_that_of_fp32():
    """A profile may say that bf16 is fast without saying how fast."""
    rates = profile_rates(80e9, None, 20e9, 4, ("bf16",))
    assert rates.flops_per_s(64, is_bf16=True) == rates.flops_per_s(64, is_bf16=False) > 0


def test_nf4_alone_pays_for_its_library():
    assert RATES.runtime_bytes("nf4") == 450_000_000
    assert RATES.runtime_bytes("bf16") == RATES.runtime_bytes("fp32") == 400_000_000


def test_measured_rates_decide_whether_activations_are_bf16():
    """Some processors have the instructions and compute more slowly."""
    fast = replace(RATES, fp32_flops_per_s=80e9, bf16_flops_per_s=120e9)
    slow = replace(RATES, fp32_flops_per_s=80e9, bf16_flops_per_s=119e9)
    for claimed in (True, False):
        assert fast.computes_in_bf16(has_native_bf16=claimed)
        assert not slow.computes_in_bf16(has_native_bf16=claimed)


@pytest.mark.parametrize("claimed", [True, False])
def test_what_the_processor_claims_counts_where_nothing_was_measured(claimed):
    for rates in (assumed_rates(4), profile_rates(80e9, 300e9, 20e9, 4, ("fp32",))):
        assert rates.computes_in_bf16(claimed) is claimed


@pytest.mark.parametrize("quantization", ["nf4", "int8", "bf16", "fp32"])
def test_integers_must_be_a_fifth_faster_than_what_would_be_multiplied_instead(quantization):
    def formats(int8: float, bf16: float = 60e9) -> tuple[str, ...]:
        lean = replace(RATES.lean, int8_flops_per_s=int8)
        rates = replace(RATES, bf16_flops_per_s=bf16, lean=lean)
        return rates.product_formats(quantization)

    both = ("wide", "int8") if quantization in ("nf4", "int8") else ("wide",)
    assert formats(97e9) == both, "fp32 makes 80"
    assert formats(96e9) == formats(0.0) == ("wide",)
    assert formats(97e9, bf16=160e9) == both, "the hand-written passes do not compute in bf16"


def test_only_profiles_with_instructions_for_it_multiply_integers():
    found = {
        name: profile_machine(load_profile(name)).rates.product_formats("nf4")
        for name in ("raspberry-pi-5-8gb", "apple-m2-16gb", "laptop-avx2-8gb")
    }
    assert set(found.values()) == {("wide",)}
    laptop = profile_machine(load_profile("laptop-avx512-vnni-16gb"))
    assert "int8" in laptop.rates.product_formats("nf4")


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
    assert slow.lean.nf4_widened_per_s == pytest.approx(fast.lean.nf4_widened_per_s / 10)
    assert slow.lean.moved_bytes_per_s == pytest.approx(fast.lean.moved_bytes_per_s / 10)
    assert slow.lean.block_overhead_s == pytest.approx(10 * fast.lean.block_overhead_s)
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
    assert rates.lean.moved_bytes_per_s > 0
    assert "nf4" in rates.unusable or rates.nf4_elements_per_s > 0
    assert len(rates.unusable) < 3
