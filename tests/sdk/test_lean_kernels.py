"""Products of integers count as usable only after they gave right numbers, both ways, here."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from edge_sdk.errors import ModelError
from edge_sdk.lean import products
from edge_sdk.lean.frozen import Nf4Matrix
from edge_sdk.lean.products import IntegerProducts
from edge_sdk.training import lean_kernels
from edge_sdk.training.lean_kernels import lean_warm_up, tiny_lean_round, why_integers_unusable


def test_products_of_integers_are_right_on_this_machine():
    assert why_integers_unusable() is None
    lean_warm_up("int8", threads=1)


@pytest.mark.parametrize("orientation", ["forward", "backward"])
@pytest.mark.parametrize("error", [1.2, float("nan")])
def test_product_with_wrong_numbers_is_unusable(monkeypatch, orientation, error):
    right = getattr(IntegerProducts, orientation)

    def wrong(self, given, weight, out, is_added):
        right(self, given, weight, out, is_added)
        out.mul_(error)

    monkeypatch.setattr(IntegerProducts, orientation, wrong)
    assert why_integers_unusable() == "they give wrong numbers"
    with pytest.raises(ModelError, match="int8 products do not work on this machine"):
        lean_warm_up("int8", threads=1)
    lean_warm_up("wide", threads=1)


@pytest.mark.parametrize("orientation", ["forward", "backward"])
def test_kernel_that_adds_up_in_too_few_bits_is_unusable(monkeypatch, orientation):
    """It is right for small numbers; adjacent products are added up in 16 bits, and cut off."""
    right = torch._int_mm

    def saturating(left, other, out):
        is_backward = not other.T.is_contiguous()
        if is_backward != (orientation == "backward"):
            return right(left, other, out=out)
        out.zero_()
        for i in range(0, left.shape[1], 4):
            part = left[:, i : i + 4].int() @ other[i : i + 4].int()
            out.add_(part.clamp(-(2**15), 2**15 - 1))
        return out

    monkeypatch.setattr(products, "multiplies_integers", lambda weight: False)
    assert why_integers_unusable() is None
    monkeypatch.setattr(torch, "_int_mm", saturating)
    assert why_integers_unusable() == "they give wrong numbers"


def test_weight_that_is_decoded_wrongly_is_unusable(monkeypatch):
    right = Nf4Matrix.as_integers

    def wrong(weight):
        found = right(weight)
        return replace(found, scale=0.5 * found.scale)

    monkeypatch.setattr(Nf4Matrix, "as_integers", wrong)
    assert why_integers_unusable() == "they give wrong numbers"


def test_kernel_that_fails_is_reported_with_the_first_line_of_its_message(monkeypatch):
    def fail(*args: object, **named: object) -> None:
        raise RuntimeError("no such instruction\nmore than anybody wants to read")

    monkeypatch.setattr(lean_kernels.IntegerProducts, "forward", fail)
    assert why_integers_unusable() == "no such instruction"


def test_tiny_round_times_every_step_but_the_first():
    seconds = tiny_lean_round(steps=4, blocks=3, examples=2)
    assert len(seconds) == 3
    assert min(seconds) > 0


def test_benchmark_of_the_hand_written_passes_imports_no_library_of_the_general_trainer():
    script = (
        "import sys, torch; torch.set_num_threads(1)\n"
        "from edge_sdk.training.lean_kernel_rates import measure_lean\n"
        "rates = measure_lean(20.0)\n"
        "assert min(rates.nf4_widened_per_s, rates.int8_widened_per_s) > 1e6, rates\n"
        "assert min(rates.bf16_widened_per_s, rates.nf4_to_int8_per_s) > 1e6, rates\n"
        "assert rates.moved_bytes_per_s > 1e6, rates\n"
        "assert 0 < rates.block_overhead_s < 1 > rates.example_overhead_s >= 0, rates\n"
        "assert 1e8 < rates.process_bytes < 2e9, rates\n"
        "print(*sorted({'transformers', 'peft', 'bitsandbytes'} & sys.modules.keys()))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == ""
