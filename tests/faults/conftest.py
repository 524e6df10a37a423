"""A task that takes far more memory when trained at once, and the storages a server can have."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.faults.storages import Installation, embedded, shared
from tests.processes import ServerProcess
from tests.services import S3
from tests.tiny_model import WORDS, save_tiny_llama, write_jsonl

R, LAST_STEP, SEED = 8, 4, 5


@dataclass(frozen=True)
class ThirstyTask:
    """A task on a running server, and all that a device needs to take part."""

    server: ServerProcess
    token: str
    model: Path
    data: Path


@pytest.fixture(scope="session")
def wide_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model whose activations are many: some 15 KB a token."""
    return save_tiny_llama(tmp_path_factory.mktemp("wide"), hidden=64, layers=4)


@pytest.fixture
def thirsty(tmp_path: Path, wide_llama: Path) -> Iterator[ThirstyTask]:
    """Two rounds of 24 examples at once, each of 96 tokens: 35 MB of activations."""
    with thirsty_task(tmp_path, wide_llama, tokens=96) as task:
        yield task


@pytest.fixture
def thirstier(tmp_path: Path, wide_llama: Path) -> Iterator[ThirstyTask]:
    """The same with 600 tokens: far smaller plans are there, however fast the device is."""
    with thirsty_task(tmp_path, wide_llama, tokens=600) as task:
        yield task


@contextmanager
def thirsty_task(tmp_path: Path, wide_llama: Path, tokens: int) -> Iterator[ThirstyTask]:
    texts = [" ".join([WORDS[i], *["city"] * (tokens - 36), *["is"] * 33]) for i in range(24)]
    data = write_jsonl(
        tmp_path / "data.jsonl", [{"prompt": text, "completion": " yes"} for text in texts]
    )
    with ServerProcess(tmp_path / "server") as server:
        server.command(
            *("task", "create", "t", "--model", str(wide_llama), "--rank", str(R)),
            *("--sketch-sizes", "1,2,4,8", "--rounds", "2", "--cohort-size", "1"),
            *("--batch-size", "24", "--max-length", str(tokens), "--local-steps", str(LAST_STEP)),
            *("--seed", str(SEED), "--update-encoding", "wire"),
        )
        token = server.command("token", "create")["enrolment_token"]
        yield ThirstyTask(server, token, wide_llama, data)


@pytest.fixture(params=["embedded", "shared"])
def installation(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Installation]:
    """Either storage a server can have."""
    if request.param == "embedded":
        yield embedded(tmp_path)
    else:
        postgres, s3 = (request.getfixturevalue(name) for name in ("postgres", "s3"))
        with shared(tmp_path, postgres, s3) as found:
            yield found


@pytest.fixture
def replicas(tmp_path: Path, postgres: str, s3: S3) -> Iterator[Installation]:
    """The storage that several servers can share."""
    with shared(tmp_path, postgres, s3) as found:
        yield found
