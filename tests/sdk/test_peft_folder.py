"""Adapters as PEFT folders, written and read back."""

from __future__ import annotations

import json
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from edge_sdk.errors import AdapterError, StorageError
from edge_sdk.model.peft_folder import read_peft_config, read_peft_tensors, write_peft_folder
from tests.sdk.parts import adapter_spec, causal_spec, classifier_spec, random_arrays, task_spec


@pytest.fixture
def folder(tiny_llama, tmp_path) -> Path:
    adapter = adapter_spec(tiny_llama, causal_spec())
    task = task_spec(causal_spec(), adapter)
    write_peft_folder(tmp_path / "adapter", task, random_arrays(adapter, 8), "owner/name")
    return tmp_path / "adapter"


@pytest.mark.parametrize("kind", ["llama", "bert"])
def test_what_is_read_back_is_what_was_written(request, tmp_path, kind):
    spec = causal_spec() if kind == "llama" else classifier_spec()
    adapter = adapter_spec(request.getfixturevalue(f"tiny_{kind}"), spec)
    arrays = random_arrays(adapter, adapter.r)
    write_peft_folder(tmp_path / "deep" / "adapter", task_spec(spec, adapter), arrays, "base")
    found = read_peft_tensors(tmp_path / "deep" / "adapter")
    assert found.keys() == arrays.keys()
    assert all(np.array_equal(found[name], arrays[name]) for name in arrays)
    config = read_peft_config(tmp_path / "deep" / "adapter")
    assert (config["r"], config["task_type"]) == (adapter.r, spec.task_type)
    assert config["base_model_name_or_path"] == "base"
    assert config["modules_to_save"] == (None if kind == "llama" else ["classifier"])


@pytest.mark.parametrize("use_rslora", [False, True])
def test_every_converter_computes_the_scaling_of_the_task(tiny_llama, tmp_path, use_rslora):
    """Some ignore ``use_rslora``, so ``lora_alpha / r`` alone must be right."""
    adapter = adapter_spec(tiny_llama, causal_spec(), use_rslora=use_rslora)
    task = task_spec(causal_spec(), adapter)
    write_peft_folder(tmp_path, task, random_arrays(adapter, 8), "base")
    config = read_peft_config(tmp_path)
    assert config["use_rslora"] is False
    expected = adapter.lora_alpha / (np.sqrt(8) if use_rslora else 8)
    assert config["lora_alpha"] / config["r"] == pytest.approx(expected)


def test_writing_twice_replaces_the_files_and_leaves_nothing_else(folder, tiny_llama):
    adapter = adapter_spec(tiny_llama, causal_spec())
    newer = random_arrays(adapter, 8, seed=1)
    write_peft_folder(folder, task_spec(causal_spec(), adapter), newer, "base")
    assert sorted(path.name for path in folder.iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
        "edge_sdk_task.json",
    ]
    found = read_peft_tensors(folder)
    assert all(np.array_equal(found[name], newer[name]) for name in newer)


def test_a_folder_that_cannot_be_written_is_a_storage_error(tiny_llama, tmp_path):
    (tmp_path / "file").write_text("in the way")
    adapter = adapter_spec(tiny_llama, causal_spec())
    task = task_spec(causal_spec(), adapter)
    with pytest.raises(StorageError, match="cannot be written to"):
        write_peft_folder(tmp_path / "file", task, random_arrays(adapter, 8), "base")


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_half_precision_tensors_of_other_tools_are_read_as_fp32(folder, dtype):
    path = folder / "adapter_model.safetensors"
    tensors = safetensors.numpy.load_file(path)
    halves = {name: array.astype(dtype) for name, array in tensors.items()}
    safetensors.numpy.save_file(halves, path)
    found = read_peft_tensors(folder)
    assert {array.dtype for array in found.values()} == {np.dtype(np.float32)}
    for name, array in halves.items():
        np.testing.assert_array_equal(
            found[name.removeprefix("base_model.model.").removesuffix(".weight")],
            array.astype(np.float32),
        )


def set_config(folder: Path, **values: object) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda f: (f / "adapter_config.json").unlink(), "cannot be read"),
        (lambda f: (f / "adapter_config.json").write_text("{"), "cannot be read"),
        (lambda f: (f / "adapter_config.json").write_bytes(b"\xff"), "cannot be read"),
        (lambda f: (f / "adapter_config.json").write_text("[]"), "not the configuration of a LoRA"),
        (lambda f: set_config(f, peft_type="IA3"), "not the configuration of a LoRA"),
        (lambda f: set_config(f, rank_pattern={"q_proj": 4}), "ranks that differ by layer"),
        (lambda f: set_config(f, alpha_pattern={"q_proj": 4}), "ranks that differ by layer"),
        (lambda f: set_config(f, r=0), "rank r=0; it must be at least 1"),
        (lambda f: set_config(f, r="8"), "rank r='8'; it must be at least 1"),
    ],
)
def test_a_configuration_that_cannot_be_used_is_refused(folder, change, text):
    change(folder)
    with pytest.raises(AdapterError, match=text):
        read_peft_config(folder)


@pytest.mark.parametrize("length", [0, 7, 100, 1000, -1])
def test_truncated_or_missing_tensors_are_refused(folder, length):
    path = folder / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(AdapterError, match="cannot be read"):
        read_peft_tensors(folder)
    path.unlink()
    with pytest.raises(AdapterError, match="cannot be read"):
        read_peft_tensors(folder)
