"""Loss and accuracy on held-out text."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from edge_sdk.errors import DataError
from edge_sdk.general.base_model import load_base
from edge_sdk.general.evaluation import (
    choice_accuracy,
    choice_scores,
    classification_accuracy,
    completion_loss,
)
from edge_sdk.general.lora import attach
from edge_sdk.general.predictions import predict
from edge_sdk.text.batches import collate
from edge_sdk.text.data import load_examples
from tests.sdk.parts import (
    LABELS,
    QUESTIONS,
    TEXTS,
    adapter_spec,
    causal_spec,
    classifier_spec,
    random_arrays,
)
from tests.tiny_model import write_jsonl

PROMPTS = ["what is the city ?", "who are six", "yes no why is the number of the country"]


@pytest.fixture(scope="module")
def questions(tmp_path_factory, loaded_llama):
    path = write_jsonl(tmp_path_factory.mktemp("data") / "questions.jsonl", QUESTIONS)
    return load_examples(path, loaded_llama.tokenizer, loaded_llama.spec, max_length=32)


@pytest.fixture(scope="module")
def texts(tmp_path_factory, loaded_bert):
    path = write_jsonl(tmp_path_factory.mktemp("data") / "texts.jsonl", TEXTS)
    return load_examples(path, loaded_bert.tokenizer, classifier_spec(), max_length=32)


def log_probabilities(base, text: str) -> tuple[list[int], torch.Tensor]:
    """One text alone, straight through the model."""
    ids = base.tokenizer(text)["input_ids"]
    with torch.no_grad():
        return ids, base.model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)


def continuation_score(base, prompt: str, choice: str) -> float:
    ids, scores = log_probabilities(base, prompt + choice)
    start = len(base.tokenizer(prompt)["input_ids"])
    return sum(float(scores[i - 1, ids[i]]) for i in range(start, len(ids)))


@pytest.mark.parametrize("batch_size", [1, 4, 64])
def test_the_loss_is_the_mean_over_learned_tokens_whatever_the_batches(
    loaded_llama, questions, batch_size
):
    losses = []
    for record in QUESTIONS:
        ids, scores = log_probabilities(
            loaded_llama, record["prompt"] + record["completion"] + " <eos>"
        )
        start = len(loaded_llama.tokenizer(record["prompt"])["input_ids"])
        losses += [-float(scores[i - 1, ids[i]]) for i in range(start, len(ids))]
    found = completion_loss(loaded_llama, questions, batch_size)
    assert found == pytest.approx(np.mean(losses), rel=1e-5)


def test_the_loss_sees_the_adapter_that_is_attached(loaded_llama, tiny_llama, questions):
    adapter = adapter_spec(tiny_llama, causal_spec())
    without = completion_loss(loaded_llama, questions)
    attached = attach(loaded_llama.model, adapter, random_arrays(adapter, 4), 1.0)
    with_adapter = completion_loss(loaded_llama, questions)
    attached.detach()
    assert abs(with_adapter - without) > 1e-3
    assert completion_loss(loaded_llama, questions) == without


def test_logits_are_computed_only_where_something_is_learned(loaded_llama, questions, monkeypatch):
    batch = collate(questions, 0)
    few = predict(loaded_llama, batch)
    assert few.logits.shape[1] < batch.targets.shape[1] - 1
    original = loaded_llama.model.forward

    def without_the_option(input_ids, attention_mask):
        return original(input_ids=input_ids, attention_mask=attention_mask)

    monkeypatch.setattr(loaded_llama.model, "forward", without_the_option)
    full = predict(loaded_llama, batch)
    torch.testing.assert_close(few.logits, full.logits)
    assert torch.equal(few.targets, full.targets)


@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_classification_loss_and_accuracy_are_those_of_single_texts(
    loaded_bert, tiny_bert, tiny_llama, texts, kind
):
    """Texts of different lengths: padding changes nothing, with an encoder or a causal model."""
    base = loaded_bert if kind == "bert" else load_base(tiny_llama, classifier_spec(), "fp32", 1)
    adapter = adapter_spec(tiny_bert if kind == "bert" else tiny_llama, classifier_spec())
    # a fresh random model hardly attends to anything; with these ranks it does
    attached = attach(base.model, adapter, random_arrays(adapter, 4, size=0.5), 2.0)
    losses, hits = [], []
    for example in texts:
        with torch.no_grad():
            logits = base.model(input_ids=torch.tensor(example.tokens)[None]).logits[0]
        losses.append(-float(logits.log_softmax(-1)[example.label]))
        hits.append(int(logits.argmax()) == example.label)
    assert len({len(example.tokens) for example in texts}) > 1
    loss = completion_loss(base, texts, batch_size=4)
    accuracy = classification_accuracy(base, texts, batch_size=4)
    attached.detach()
    assert loss == pytest.approx(np.mean(losses), rel=1e-5)
    assert accuracy == np.mean(hits)
    assert 0 < np.mean(hits) < 1, "a constant answer would pass unnoticed"


@pytest.mark.parametrize("choices", [[" red", " green"], [" red", " four five six", " one two"]])
@pytest.mark.parametrize("batch_size", [2, 64])
def test_a_choice_scores_the_log_probability_of_its_tokens(loaded_llama, choices, batch_size):
    found = choice_scores(loaded_llama, PROMPTS, choices, batch_size)
    expected = [[continuation_score(loaded_llama, p, c) for c in choices] for p in PROMPTS]
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_one_token_choices_take_one_forward_pass_per_prompt_with_the_same_scores(
    loaded_llama, monkeypatch
):
    choices = [" red", " green", " blue", " yes"]
    rows = []
    forward = loaded_llama.model.forward

    def counting(*args, input_ids, logits_to_keep=0, **rest):
        rows.append(len(input_ids))
        return forward(*args, input_ids=input_ids, logits_to_keep=logits_to_keep, **rest)

    monkeypatch.setattr(loaded_llama.model, "forward", counting)
    fast = choice_scores(loaded_llama, PROMPTS, choices)
    assert sum(rows) == len(PROMPTS)
    slow = choice_scores(loaded_llama, PROMPTS, [*choices, " four five"])
    assert sum(rows) == len(PROMPTS) * (1 + len(choices) + 1)
    np.testing.assert_allclose(fast, slow[:, :-1], atol=1e-5)


def test_accuracy_counts_the_most_probable_choices(loaded_llama):
    choices = [" red", " green", " four five six"]
    best = [
        max(choices, key=lambda choice: continuation_score(loaded_llama, prompt, choice))
        for prompt in PROMPTS
    ]
    worst = [
        min(choices, key=lambda choice: continuation_score(loaded_llama, prompt, choice))
        for prompt in PROMPTS
    ]
    assert choice_accuracy(loaded_llama, PROMPTS, best, choices) == 1.0
    assert choice_accuracy(loaded_llama, PROMPTS, worst, choices) == 0.0
    mixed = [best[0], *worst[1:]]
    assert choice_accuracy(loaded_llama, PROMPTS, mixed, choices) == pytest.approx(1 / 3)


@pytest.mark.parametrize(
    ("prompts", "answers", "choices", "text"),
    [
        ([], [], [" red"], "no example to evaluate on"),
        (["what"], [], [" red"], "1 prompts but 0 answers"),
        (["what"], [" pink"], [" red"], "answer ' pink' is none of the choices"),
        (["what"], [" "], [" "], "a prompt or a choice has no token"),
        ([""], [" red"], [" red"], "a prompt or a choice has no token"),
    ],
)
def test_questions_that_cannot_be_scored_are_refused(loaded_llama, prompts, answers, choices, text):
    with pytest.raises(DataError, match=text):
        choice_accuracy(loaded_llama, prompts, answers, choices)


def test_evaluating_on_nothing_is_refused(loaded_llama, loaded_bert, questions):
    with pytest.raises(DataError, match="no example to evaluate on"):
        completion_loss(loaded_llama, [])
    with pytest.raises(DataError, match="no choice to score"):
        choice_scores(loaded_llama, ["what"], [])
    with pytest.raises(DataError, match="no label"):
        classification_accuracy(loaded_bert, questions)


def test_the_labels_of_the_tiny_task_are_single_tokens(loaded_llama):
    """What the fast path rests on in the tests above."""
    assert all(len(loaded_llama.tokenizer(f" {label}")["input_ids"]) == 1 for label in LABELS)
