"""A kernel counts as usable only after it gave right numbers, forward and backward, here."""

from __future__ import annotations

import sys

import pytest
import torch
from torch import Tensor, nn

from edge_sdk.errors import ModelError
from edge_sdk.training import kernels


def why_unusable(quantization: str) -> str | None:
    try:
        kernels.warm_up(quantization, threads=1)
    except ModelError as error:
        return str(error)
    return None


@pytest.mark.parametrize("quantization", ["nf4", "bf16", "fp32"])
def test_kernels_of_this_machine_are_right(quantization):
    assert why_unusable(quantization) is None


def test_nf4_kernel_that_decodes_wrongly_is_unusable(monkeypatch):
    """Wrong in the product and in the decoded weight alike, so that the two agree."""
    from bitsandbytes import functional

    decode = functional.dequantize_4bit
    monkeypatch.setattr(
        functional, "dequantize_4bit", lambda *args, **options: 1.5 * decode(*args, **options)
    )
    assert "wrong numbers" in str(why_unusable("nf4"))


def test_nf4_kernel_that_swaps_neighbours_is_unusable(monkeypatch):
    """Two weights share a byte; which half comes first is easily got wrong."""
    from bitsandbytes import functional

    decode = functional.dequantize_4bit

    def swapped(*args: object, **options: object) -> Tensor:
        right = decode(*args, **options)
        return right.reshape(-1, 2).flip(1).reshape(right.shape)

    monkeypatch.setattr(functional, "dequantize_4bit", swapped)
    assert "wrong numbers" in str(why_unusable("nf4"))


class _Wrong(nn.Module):
    """A layer with a mistake."""

    def __init__(self, layer: nn.Module, mistake: str) -> None:
        super().__init__()
        self.layer, self.mistake = layer, mistake

    def forward(self, x: Tensor) -> Tensor:
        if self.mistake == "forward":
            return 1.1 * self.layer(x)
        if self.mistake == "nan":
            return self.layer(x) * torch.nan
        return self.layer(x.detach()) + 0.5 * self.layer(x) - 0.5 * self.layer(x.detach())


@pytest.mark.parametrize("mistake", ["forward", "backward", "nan"])
@pytest.mark.parametrize("quantization", ["nf4", "bf16"])
def test_layer_with_wrong_numbers_is_unusable(monkeypatch, quantization, mistake):
    factory = "_nf4_layer" if quantization == "nf4" else "_narrow_layer"
    make = getattr(kernels, factory)

    def wrong(weight: Tensor) -> tuple[nn.Module, Tensor]:
        layer, exact = make(weight)
        return _Wrong(layer, mistake), exact

    monkeypatch.setattr(kernels, factory, wrong)
    assert "wrong numbers" in str(why_unusable(quantization))


def test_kernel_that_fails_is_reported_with_the_first_line_of_its_message(monkeypatch):
    from bitsandbytes import functional

    def fail(*args: object, **options: object) -> Tensor:
        raise RuntimeError("no kernel image for this device\nmore than anybody wants to read")

    monkeypatch.setattr(functional, "dequantize_4bit", fail)
    reason = str(why_unusable("nf4"))
    assert "no kernel image for this device" in reason
    assert "\n" not in reason


def test_missing_library_is_reported_as_the_reason(monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    assert "bitsandbytes" in str(why_unusable("nf4"))
    assert why_unusable("bf16") is None
