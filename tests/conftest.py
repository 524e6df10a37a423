"""What every test run shares: no network, one thread, its own folders, two tiny models."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import hypothesis
import pytest

from tests.services import S3, postgres_server, s3_server
from tests.tiny_model import save_tiny_bert, save_tiny_llama

if TYPE_CHECKING:
    from edge_sdk.general.base_model import LoadedBase

# At import, because Hugging Face's libraries and OpenMP read these once, when they are imported.
_HOME = tempfile.TemporaryDirectory(prefix="edge-sdk-tests-")
os.environ.update(
    {
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": f"{_HOME.name}/huggingface",
        "XDG_CACHE_HOME": f"{_HOME.name}/cache",
        "XDG_STATE_HOME": f"{_HOME.name}/state",
        "XDG_CONFIG_HOME": f"{_HOME.name}/config",
        "XDG_DATA_HOME": f"{_HOME.name}/data",
    }
)

# No deadline: a slow machine is not a failure. No database: a run leaves no files behind.
hypothesis.settings.register_profile("edge-sdk", deadline=None, database=None)
hypothesis.settings.load_profile("edge-sdk")


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Hugging Face folder of a random two-block Llama; read only."""
    return save_tiny_llama(tmp_path_factory.mktemp("tiny-llama"))


@pytest.fixture(scope="session")
def tiny_bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Hugging Face folder of a random two-block BERT encoder without a head; read only."""
    return save_tiny_bert(tmp_path_factory.mktemp("tiny-bert"))


@pytest.fixture(scope="session")
def loaded_llama(tiny_llama: Path) -> LoadedBase:
    """The tiny Llama in fp32; a test that attaches something to it detaches it again."""
    from edge_sdk.general.base_model import load_base
    from tests.sdk.parts import causal_spec

    return load_base(tiny_llama, causal_spec(), "fp32", threads=1)


@pytest.fixture(scope="session")
def loaded_bert(tiny_bert: Path) -> LoadedBase:
    """The tiny BERT in fp32 with a random three-class head; left as it was found."""
    import torch

    from edge_sdk.general.base_model import load_base
    from tests.sdk.parts import classifier_spec

    torch.manual_seed(0)  # of the head
    return load_base(tiny_bert, classifier_spec(), "fp32", threads=1)


@pytest.fixture(scope="session")
def s3() -> Iterator[S3]:
    """An S3 server with one bucket, shared by the run: give each test a prefix of its own."""
    with s3_server() as found:
        yield found


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """The address of a PostgreSQL database, shared by the run: make each test one of its own."""
    with postgres_server() as url:
        yield url
