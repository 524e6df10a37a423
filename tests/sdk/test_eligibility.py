"""Which models the hand-written passes take, and the reason where they do not."""

from __future__ import annotations

from copy import deepcopy

import pytest
import transformers

from edge_sdk.model.lean_eligibility import why_not_lean
from edge_sdk.model.model_folder import read_config
from tests.sdk.lean_parts import FAMILIES, save_family

PLAIN = {"model_type": "llama"}
LINEAR = {"rope_type": "linear", "factor": 2.0}


@pytest.mark.parametrize("family", FAMILIES)
def test_models_whose_gradients_are_tested_are_lean(tmp_path, family):
    config = read_config(save_family(tmp_path / "model", family, layers=1))
    assert why_not_lean(config, "CAUSAL_LM") is None


@pytest.mark.parametrize("name", ["Llama", "Qwen2", "Qwen3"])
def test_the_default_configuration_of_a_family_is_lean(name):
    config = getattr(transformers, f"{name}Config")().to_dict()
    assert why_not_lean(config, "CAUSAL_LM") is None


@pytest.mark.parametrize(
    "config",
    [
        PLAIN,
        PLAIN | {"rope_scaling": None, "rope_parameters": {"rope_type": "default"}},
        PLAIN | {"rope_scaling": {"type": "default"}},
        {"model_type": "mistral", "sliding_window": None},
        {"model_type": "qwen2", "sliding_window": 4096, "use_sliding_window": False},
        {"model_type": "qwen2", "sliding_window": 4096},
    ],
)
def test_what_makes_no_difference_is_no_reason(config):
    assert why_not_lean(config, "CAUSAL_LM") is None


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"model_type": "gemma"}, "the blocks of a gemma model are others"),
        ({"model_type": "phi3"}, "the blocks of a phi3 model are others"),
        ({}, "the blocks of a None model are others"),
        (PLAIN | {"hidden_act": "gelu"}, "its activation is gelu"),
        (PLAIN | {"rope_scaling": LINEAR}, "its rotary embedding is linear"),
        (PLAIN | {"rope_parameters": LINEAR}, "its rotary embedding is linear"),
        (PLAIN | {"rope_scaling": {"type": "yarn"}}, "its rotary embedding is yarn"),
        (PLAIN | {"partial_rotary_factor": 0.5}, "its rotary embedding"),
        ({"model_type": "mistral", "sliding_window": 4096}, "reaches only 4096 tokens"),
        (
            {"model_type": "qwen2", "sliding_window": 64, "use_sliding_window": True},
            "reaches only 64 tokens",
        ),
    ],
)
def test_what_makes_a_difference_is_the_reason(config, reason):
    before = deepcopy(config)
    assert reason in why_not_lean(config, "CAUSAL_LM")
    assert config == before


def test_a_classifier_is_not_lean():
    assert why_not_lean(PLAIN, "SEQ_CLS") == "the head of a classifier is another"
