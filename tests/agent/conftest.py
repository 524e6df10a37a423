"""A real server with a task that lasts, for agents to work on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.agent.scripted import LongTask, create_task
from tests.processes import ServerProcess
from tests.tiny_model import write_jsonl


@pytest.fixture(scope="package")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    with ServerProcess(tmp_path_factory.mktemp("server")) as running:
        yield running


@pytest.fixture
def long_task(server: ServerProcess, tiny_llama: Path, tmp_path: Path) -> LongTask:
    """A round that takes far longer than any test."""
    data = write_jsonl(
        tmp_path / "data.jsonl",
        [{"prompt": f"what is the {x} ? answer :", "completion": " yes"} for x in ("one", "two")],
    )
    return create_task(server, tiny_llama, data, tmp_path / "device", local_steps=100_000)
