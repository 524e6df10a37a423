"""The note-taking assistant: an edit is kept, trained on, and changes the next suggestion."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from tests.agent.scripted import create_task, wait_for_status
from tests.examples.conftest import EXAMPLES, load
from tests.sdk.inference_parts import save_model

pytestmark = pytest.mark.processes


def test_it_suggests_what_its_user_wrote_before(server, tmp_path):
    base, edits = save_model(tmp_path / "base"), tmp_path / "edits.jsonl"
    task = create_task(server, base, edits, tmp_path / "device", local_steps=60)
    client = task.client()
    assistant = load("notes").Assistant(client, edits)
    try:
        first = assistant.suggest("what is")
        assert client.status().state == "stopped", "there is nothing to learn from yet"
        assistant.learn("what is", "red red red red")
        assert json.loads(edits.read_text())["completion"] == " red red red red"
        status = wait_for_status(client, lambda x: x.state in ("finished", "failed"))
        assert (status.state, status.rounds_counted) == ("finished", 1)
        second = assistant.suggest("what is")
    finally:
        client.stop()
    assert not first.startswith("red red")
    assert second.startswith("red red")


def test_a_server_it_cannot_join_is_one_line(tmp_path):
    words = ["--folder", str(tmp_path), "--server", "http://127.0.0.1:1", "--token", "guess"]
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / "notes" / "notes.py"), *words],
        input="buy bread\n",
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        env={**os.environ, "PYTHONPATH": str(EXAMPLES.parent)},
    )
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("notes: no answer from http://127.0.0.1:1")
