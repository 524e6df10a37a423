"""Rounds with updates in codes: real server, real clients, nothing lost and nothing doubled."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from edge_sdk.model.model_folder import read_config
from edge_sdk.model.model_shape import read_shape
from edge_sdk.planning.allowance import Allowance
from edge_sdk.rounds.round_loop import RoundLoop, RoundResult
from edge_sdk.wire.block_codes import encoded_bytes
from tests.processes import ServerProcess
from tests.tiny_model import write_jsonl

R, ROUNDS = 8, 3

pytestmark = pytest.mark.processes


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    with ServerProcess(tmp_path_factory.mktemp("server")) as running:
        yield running


@pytest.fixture(scope="module")
def token(server: ServerProcess) -> str:
    return str(server.command("token", "create")["enrolment_token"])


def train(server, token, tiny_llama, tmp_path, name: str, *flags: str) -> list[RoundResult]:
    """Run a task of one device to its end."""
    server.command(
        *("task", "create", name, "--model", str(tiny_llama), "--rank", str(R), "--seed", "3"),
        *("--rounds", str(ROUNDS), "--cohort-size", "1", "--local-steps", "10"),
        *("--local-lr", "0.02", *flags),
    )
    data = write_jsonl(
        tmp_path / "data.jsonl",
        [{"prompt": f"what is the {x} ? answer :", "completion": " one"} for x in "abc"],
    )
    client = RoundLoop(
        data=data,
        server=server.address,
        enrolment_token=token,
        task=name,
        state_folder=tmp_path / name,
        allowance=Allowance(quantization="fp32", threads=1),
    )
    return list(client.rounds())


def data_bytes(model: Path, encoding) -> int:
    """Bytes of codes and scales, or of fp32 numbers, of all ranks."""
    shape = read_shape(read_config(model))
    layers = shape.target_layers(shape.default_targets)
    widths = [width for layer in layers for width in (layer.d_in, layer.d_out)]
    if encoding is None:
        return 4 * R * sum(widths)
    return sum(encoded_bytes((R, width), encoding) for width in widths)


def test_updates_in_codes_teach_as_fp32_ones_do_in_a_fraction_of_the_bytes(
    server, token, tiny_llama, tmp_path
):
    plain = train(server, token, tiny_llama, tmp_path, "plain", "--update-encoding", "wire")
    for encoding in ("int8", "int4"):
        flags = ("--update-encoding", encoding, "--error-feedback")
        coded = train(server, token, tiny_llama, tmp_path, encoding, *flags)
        assert all(done.counted for done in coded)
        assert coded[0].loss == pytest.approx(plain[0].loss, rel=1e-3), "the same adapter"
        assert coded[-1].loss == pytest.approx(plain[-1].loss, rel=0.2)
        assert coded[-1].loss < coded[0].loss
        for done, other in zip(coded, plain, strict=True):
            saved = data_bytes(tiny_llama, None) - data_bytes(tiny_llama, encoding)
            assert other.update_bytes - done.update_bytes >= saved
            assert 0 < done.update_bytes - data_bytes(tiny_llama, encoding) < 1024
            assert done.upload_bytes >= done.update_bytes
        (kept,) = (tmp_path / encoding).rglob("residual.safetensors")
        assert [path.name for path in kept.parent.iterdir()] == [kept.name]
    assert not list((tmp_path / "plain").rglob("residual*"))
