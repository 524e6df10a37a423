"""What the fleet learned reaches the app: fetched, converted, and used from the next text on."""

from __future__ import annotations

from pathlib import Path

import pytest

from edge_sdk.inference.adapter_file import adapters_folder
from tests.agent.scripted import create_task
from tests.sdk.inference_parts import save_model
from tests.tiny_model import write_jsonl

pytestmark = pytest.mark.processes


def test_a_new_version_is_converted_when_it_is_fetched_and_used_from_the_next_text_on(
    server, tmp_path
):
    base = save_model(tmp_path / "base")
    examples = [{"prompt": "what is", "completion": " red red red"}] * 8
    data = write_jsonl(tmp_path / "data.jsonl", examples)
    task = create_task(server, base, data, tmp_path / "device", local_steps=30)
    known = converted()
    with task.client() as client:
        assert client.use_newest() == 0
        assert len(converted() - known) == 1  # and no inference process is there yet
        known = converted()
        before = "".join(client.generate("what is", max_new_tokens=3))
        status = client.wait(120)
        assert status.state == "finished", status
        assert client.use_newest() == 1
        assert len(converted() - known) == 1
        after = "".join(client.generate("what is", max_new_tokens=3))
    assert before != after
    assert after.split() == ["red"] * 3


def converted() -> set[Path]:
    folder = adapters_folder()
    return set(folder.iterdir()) if folder.is_dir() else set()
