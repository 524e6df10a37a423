"""``edge-sdk infer`` takes ONNX Runtime where it can, and torch says the same."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edge_sdk.cli import main
from edge_sdk.commands import infer as infer_command
from edge_sdk.inference import open_session
from edge_sdk.model.peft_folder import read_peft_config
from tests.sdk.inference_parts import PROMPTS, save_adapter, save_model
from tests.sdk.parts import LABELS, classifier_spec


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = save_model(tmp_path_factory.mktemp("base"))
    return save_adapter(tmp_path_factory.mktemp("adapter"), base)


def infer(capsys, *options: object, prompt: str = PROMPTS[0]) -> dict:
    words = ["infer", prompt, *map(str, options), "--threads", "1", "--json"]
    assert main(words) == 0
    return json.loads(capsys.readouterr().out)


def base_of(adapter: Path) -> Path:
    return Path(read_peft_config(adapter)["base_model_name_or_path"])


def test_both_engines_continue_a_prompt_alike(adapter, capsys):
    session = open_session(base_of(adapter), adapter, weight_format="fp32", threads=1)
    prompt = next(x for x in PROMPTS if any(session.generate(x, max_new_tokens=8)))
    common = ("--adapter", adapter, "--quantization", "fp32", "--max-new-tokens", 8)
    with_onnx = infer(capsys, *common, prompt=prompt)
    assert with_onnx == infer(capsys, *common, "--engine", "torch", prompt=prompt)
    assert with_onnx["completion"]


def test_both_engines_label_a_text_alike(tiny_bert, tmp_path, capsys):
    adapter = save_adapter(tmp_path, tiny_bert, 4, classifier_spec(), targets=None)
    common = ("--adapter", adapter, "--quantization", "fp32")
    with_onnx = infer(capsys, *common)
    assert list(with_onnx) == LABELS
    assert with_onnx == pytest.approx(infer(capsys, *common, "--engine", "torch"), abs=1e-6)


def test_onnx_is_taken_unless_it_is_missing_or_cannot_compute_the_model(
    adapter, tiny_llama, monkeypatch
):
    base = base_of(adapter)
    choose = infer_command.choose_engine
    assert choose(base, "nf4", is_classifier=False) == "onnx"
    assert choose(base, "bf16", is_classifier=False) == "torch"
    assert choose(tiny_llama, "nf4", is_classifier=False) == "torch"
    monkeypatch.setattr(infer_command, "find_spec", lambda name: None)
    assert choose(base, "nf4", is_classifier=False) == "torch"


def test_a_number_format_that_the_engine_does_not_have_is_refused(adapter, capsys):
    words = ["infer", "what", "--adapter", str(adapter), "--engine", "torch", "--quantization"]
    assert main([*words, "int4"]) == 1
    assert "int4 is not one of nf4, int8, bf16, fp32" in capsys.readouterr().err
