"""The voice box: it classifies while it trains, and keeps a correction for the next round."""

from __future__ import annotations

import json

import pytest

from tests.agent.scripted import LongTask, wait_for_status
from tests.examples.conftest import EXAMPLES, load

INTENTS = ["cooler", "lights_off", "lights_on", "warmer"]

pytestmark = pytest.mark.processes


def test_it_understands_while_it_trains_and_keeps_corrections(server, tiny_bert, tmp_path):
    server.command(
        *("task", "create", "home", "--model", str(tiny_bert), "--task-type", "SEQ_CLS"),
        *("--label", *INTENTS, "--rank", "4", "--sketch-sizes", "2", "--rounds", "1"),
        *("--cohort-size", "1", "--local-steps", "100000", "--deadline", "86400"),
    )
    token = server.command("token", "create")["enrolment_token"]
    examples = tmp_path / "utterances.jsonl"
    task = LongTask(server, "home", token, examples, tmp_path / "device")
    with task.client() as client:
        client.stop()
        box = load("intents").Box(client, examples)
        wait_for_status(client, lambda x: x.step > 0)
        intent, probability = box.understand("make it warmer")
        assert client.status().state == "training"
        assert intent in INTENTS
        assert 1 / len(INTENTS) <= probability <= 1
        before = examples.read_text()
        box.correct("I want to see the stars", "lights_off")
        added = examples.read_text().removeprefix(before)
        assert json.loads(added) == {"text": "I want to see the stars", "label": "lights_off"}
        with pytest.raises(ValueError, match="'tea' is none of cooler, lights_off"):
            box.correct("tea please", "tea")


def test_its_first_examples_know_every_intent_equally_well():
    lines = (EXAMPLES / "intents" / "utterances.jsonl").read_text("utf-8").splitlines()
    labels = [json.loads(line)["label"] for line in lines]
    assert sorted(set(labels)) == INTENTS
    assert {labels.count(label) for label in INTENTS} == {6}
