"""A trained adapter in use: ours and PEFT say the same; text comes out piece by piece."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import peft
import pytest
import safetensors.numpy
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from edge_sdk.errors import AdapterError, ConfigError, DataError
from edge_sdk.general.base_model import LoadedBase
from edge_sdk.general.evaluation import completion_loss
from edge_sdk.general.generation import classify, generate, load_with_adapter
from edge_sdk.general.lora import attach
from edge_sdk.model.peft_folder import write_peft_folder
from edge_sdk.sketch import draw_sketch, sketched_scaling
from edge_sdk.text.data import load_examples
from edge_sdk.training.local_steps import train_round
from edge_sdk.wire.payload import Arrays
from edge_sdk.wire.task import AdapterSpec, BaseModel, TrainingSpec
from tests.sdk.parts import (
    QUESTIONS,
    adapter_spec,
    causal_spec,
    classifier_spec,
    cut,
    random_arrays,
    task_spec,
)
from tests.tiny_model import write_jsonl

pytestmark = pytest.mark.filterwarnings(
    "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"  # PEFT, with transformers 5
)

IDS = torch.tensor([[3, 7, 11, 4], [9, 8, 20, 21]])


def write_adapter(
    folder: Path, base_folder: Path, spec: BaseModel, use_rslora: bool = False
) -> tuple[AdapterSpec, Arrays]:
    adapter = adapter_spec(base_folder, spec, use_rslora=use_rslora)
    arrays = random_arrays(adapter, adapter.r)
    write_peft_folder(folder, task_spec(spec, adapter), arrays, str(base_folder))
    return adapter, arrays


@pytest.fixture
def causal_adapter(tiny_llama, tmp_path) -> Path:
    write_adapter(tmp_path / "adapter", tiny_llama, causal_spec())
    return tmp_path / "adapter"


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=IDS).logits


@pytest.mark.parametrize("use_rslora", [False, True])
def test_an_exported_adapter_gives_the_same_logits_in_peft(
    tiny_llama, loaded_llama, tmp_path, use_rslora
):
    """The scale enters once: ours at rank r, PEFT, and the formula agree."""
    adapter, arrays = write_adapter(tmp_path / "a", tiny_llama, causal_spec(), use_rslora)
    ours = load_with_adapter(tiny_llama, tmp_path / "a", "fp32", threads=1)
    plain = AutoModelForCausalLM.from_pretrained(tiny_llama)
    theirs = logits(peft.PeftModel.from_pretrained(plain, tmp_path / "a").eval())
    torch.testing.assert_close(logits(ours.model), theirs, atol=2e-6, rtol=1e-5)
    scale = adapter.lora_alpha / (np.sqrt(adapter.r) if use_rslora else adapter.r)
    attached = attach(loaded_llama.model, adapter, arrays, scale)
    trained_as = logits(loaded_llama.model)
    attached.detach()
    torch.testing.assert_close(trained_as, theirs, atol=2e-6, rtol=1e-5)
    assert (theirs - logits(loaded_llama.model)).abs().max() > 1e-2


@pytest.mark.parametrize("use_rslora", [False, True])
def test_the_mean_over_sketched_devices_is_what_is_deployed_to_first_order(
    tiny_llama, loaded_llama, tmp_path, use_rslora
):
    """Unbiasedness across train and deploy: a small adapter acts linearly on the logits."""
    adapter = adapter_spec(tiny_llama, causal_spec(), r=4, use_rslora=use_rslora)
    arrays = random_arrays(adapter, 4, size=0.01)
    write_peft_folder(tmp_path, task_spec(causal_spec(), adapter), arrays, str(tiny_llama))
    before = logits(loaded_llama.model)
    deployed = logits(load_with_adapter(tiny_llama, tmp_path, "fp32", threads=1).model) - before
    changes = []
    for seed in range(300):
        slices = cut(adapter, arrays, draw_sketch(seed, 4, 2, len(adapter.layers)))
        scale = sketched_scaling(adapter.lora_alpha, 4, 2, use_rslora)
        attached = attach(loaded_llama.model, adapter, slices, scale)
        changes.append(logits(loaded_llama.model) - before)
        attached.detach()
    mean = torch.stack(changes).mean(dim=0).flatten()
    ratio = float(mean @ deployed.flatten() / deployed.flatten().square().sum())
    assert ratio == pytest.approx(1.0, abs=0.1)


@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_an_exported_classifier_gives_the_same_logits_in_peft(request, tmp_path, kind):
    folder = request.getfixturevalue(f"tiny_{kind}")
    write_adapter(tmp_path, folder, classifier_spec())
    ours = load_with_adapter(folder, tmp_path, "fp32", threads=1)
    plain = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=3)
    theirs = peft.PeftModel.from_pretrained(plain, tmp_path).eval()
    torch.testing.assert_close(logits(ours.model), logits(theirs), atol=2e-6, rtol=1e-5)


def test_what_was_trained_is_what_is_deployed(loaded_llama, tiny_llama, tmp_path):
    """Train all ranks, export, load: the loss after training is the loss in use."""
    adapter = adapter_spec(tiny_llama, causal_spec())
    before = random_arrays(adapter, adapter.r)
    path = write_jsonl(tmp_path / "x.jsonl", QUESTIONS)
    examples = load_examples(path, loaded_llama.tokenizer, causal_spec(), 32)
    training = TrainingSpec(local_steps=10, local_lr=1e-2)
    result = train_round(loaded_llama, adapter, adapter.r, before, training, examples, seed=0)
    after = {name: before[name] + result.update[name] for name in before}
    task = task_spec(causal_spec(), adapter)
    write_peft_folder(tmp_path / "before", task, before, str(tiny_llama))
    write_peft_folder(tmp_path / "after", task, after, str(tiny_llama))
    losses = [
        completion_loss(load_with_adapter(tiny_llama, tmp_path / x, "fp32", threads=1), examples)
        for x in ("before", "after")
    ]
    assert losses[0] == pytest.approx(result.losses[0], rel=1e-5)
    assert losses[1] < losses[0] - 0.1


def test_an_adapter_is_usable_on_a_4bit_base(tiny_llama, causal_adapter, loaded_llama):
    base = load_with_adapter(tiny_llama, causal_adapter, "nf4", threads=1)
    wide = load_with_adapter(tiny_llama, causal_adapter, "fp32", threads=1)
    similarity = torch.cosine_similarity(
        logits(base.model).flatten(), logits(wide.model).flatten(), dim=0
    )
    assert similarity > 0.95
    assert base.quantization == "nf4"


def greedy(base: LoadedBase, text: str, count: int) -> list[int]:
    """No cache, no stream: the whole text again for every token."""
    ids = base.tokenizer(text)["input_ids"]
    start = len(ids)
    for _ in range(count):
        with torch.no_grad():
            ids = [*ids, int(base.model(input_ids=torch.tensor([ids])).logits[0, -1].argmax())]
        if ids[-1] == base.tokenizer.eos_token_id:
            return ids[start:-1]
    return ids[start:]


@pytest.mark.parametrize("chat", [False, True])
def test_text_is_generated_greedily_piece_by_piece(tiny_llama, loaded_llama, chat):
    adapter = adapter_spec(tiny_llama, causal_spec())
    attached = attach(loaded_llama.model, adapter, random_arrays(adapter, 8, size=0.3), 2.0)
    text = "user : what is red <eos> assistant :" if chat else "what is red"
    expected = greedy(loaded_llama, text, 8)
    pieces = list(generate(loaded_llama, "what is red", max_new_tokens=8, chat=chat))
    attached.detach()
    assert "".join(pieces) == loaded_llama.tokenizer.decode(expected, skip_special_tokens=True)
    assert len(pieces) > 1


def test_generation_stops_at_an_end_token(loaded_llama, monkeypatch):
    ids = greedy(loaded_llama, "what is red", 6)
    end = ids[3]
    monkeypatch.setattr(loaded_llama.model.generation_config, "eos_token_id", [end, 1])
    found = "".join(generate(loaded_llama, "what is red", max_new_tokens=6))
    assert found == loaded_llama.tokenizer.decode(ids[: ids.index(end)])


def test_half_a_character_is_never_shown(loaded_llama, monkeypatch):
    """A character of several byte tokens is held back until it is whole."""
    whole = "né"
    monkeypatch.setattr(
        type(loaded_llama.tokenizer),
        "decode",
        lambda self, ids, **_: whole.encode()[: len(ids)].decode(errors="replace"),
    )
    assert list(generate(loaded_llama, "what is red", max_new_tokens=3)) == ["n", "é"]


def test_a_classifier_gives_probabilities_by_label(tiny_bert, tmp_path, loaded_bert):
    write_adapter(tmp_path, tiny_bert, classifier_spec())
    base = load_with_adapter(tiny_bert, tmp_path, "fp32", threads=1)
    scores = classify(base, "what is the city")
    ids = torch.tensor([base.tokenizer("what is the city")["input_ids"]])
    with torch.no_grad():
        expected = base.model(input_ids=ids).logits[0].softmax(-1).tolist()
    assert list(scores) == ["red", "green", "blue"]
    assert list(scores.values()) == pytest.approx(expected)
    assert list(classify(loaded_bert, "what")) == ["red", "green", "blue"]


def test_class_names_of_a_foreign_adapter_come_from_the_base_model_or_are_numbers(
    tiny_bert, tmp_path
):
    write_adapter(tmp_path / "adapter", tiny_bert, classifier_spec())
    (tmp_path / "adapter" / "edge_sdk_task.json").unlink()
    base = load_with_adapter(tiny_bert, tmp_path / "adapter", "fp32", threads=1)
    assert list(classify(base, "what")) == ["0", "1", "2"]
    folder = Path(shutil.copytree(tiny_bert, tmp_path / "named"))
    config = json.loads((folder / "config.json").read_text())
    config["id2label"] = {"0": "a", "1": "b", "2": "c"}
    (folder / "config.json").write_text(json.dumps(config))
    base = load_with_adapter(folder, tmp_path / "adapter", "fp32", threads=1)
    assert list(classify(base, "what")) == ["a", "b", "c"]


def test_a_damaged_task_file_is_an_adapter_error(tiny_bert, tmp_path):
    write_adapter(tmp_path, tiny_bert, classifier_spec())
    (tmp_path / "edge_sdk_task.json").write_text("{")
    with pytest.raises(AdapterError, match=r"edge_sdk_task\.json"):
        load_with_adapter(tiny_bert, tmp_path, "fp32", threads=1)


def test_a_request_the_model_cannot_serve_is_refused(loaded_llama, loaded_bert):
    with pytest.raises(ConfigError, match="does not generate"):
        generate(loaded_bert, "what")
    with pytest.raises(ConfigError, match="has no classes"):
        classify(loaded_llama, "what")
    with pytest.raises(ConfigError, match="max_new_tokens=0 must be at least 1"):
        generate(loaded_llama, "what", max_new_tokens=0)
    with pytest.raises(DataError, match="no token"):
        generate(loaded_llama, " ")
    with pytest.raises(DataError, match="no token"):
        classify(loaded_bert, "")


def rewrite_tensors(folder: Path, change) -> None:
    path = folder / "adapter_model.safetensors"
    tensors = safetensors.numpy.load_file(path)
    change(tensors)
    safetensors.numpy.save_file(tensors, path)


def rewrite_config(folder: Path, **values: object) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


NAME = "base_model.model.model.layers.0.mlp.up_proj.lora_{}.weight"
MISFITS = {
    "a lost B": (
        lambda f: rewrite_tensors(f, lambda x: x.pop(NAME.format("B"))),
        "cannot be used: .*up_proj.lora_B",
    ),
    "a lost A": (
        lambda f: rewrite_tensors(f, lambda x: x.pop(NAME.format("A"))),
        "up_proj.lora_B",
    ),
    "no tensors": (lambda f: rewrite_tensors(f, dict.clear), "at least one target layer"),
    "another rank": (lambda f: rewrite_config(f, r=4), r"has shape \(8, 64\); with k=4"),
    "no alpha": (lambda f: rewrite_config(f, lora_alpha=None), "cannot be used"),
    "zero alpha": (lambda f: rewrite_config(f, lora_alpha=0), "lora_alpha=0"),
    "another task": (lambda f: rewrite_config(f, task_type="SEQ_2_SEQ_LM"), "SEQ_2_SEQ_LM"),
    "no head": (lambda f: rewrite_config(f, task_type="SEQ_CLS"), "holds no head"),
    "a stray tensor": (
        lambda f: rewrite_tensors(f, lambda x: x.update(extra=np.ones(3, np.float32))),
        "for another model: the task trains extra",
    ),
}


@pytest.mark.parametrize("misfit", MISFITS)
def test_an_adapter_that_does_not_fit_is_refused(tiny_llama, causal_adapter, misfit):
    change, text = MISFITS[misfit]
    change(causal_adapter)
    with pytest.raises(AdapterError, match=text):
        load_with_adapter(tiny_llama, causal_adapter, "fp32", threads=1)


def test_an_adapter_of_another_base_model_is_refused(tiny_llama, tmp_path):
    from tests.tiny_model import save_tiny_llama

    other = save_tiny_llama(tmp_path / "other", hidden=64)
    write_adapter(tmp_path / "adapter", other, causal_spec())
    with pytest.raises(AdapterError, match=r"for another model: .*\(128 -> 64\)"):
        load_with_adapter(tiny_llama, tmp_path / "adapter", "fp32", threads=1)
