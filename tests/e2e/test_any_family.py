"""A causal LM of a family that is in no table works through the very same path."""

from __future__ import annotations

from pathlib import Path

import pytest

from edge_sdk.errors import ConfigError, ModelError
from edge_sdk.model.model_folder import read_config, read_model_shape, tensor_shapes
from edge_sdk.model.model_shape import FAMILIES, read_shape, shape_from_tensors
from edge_sdk.planning.allowance import Allowance
from edge_sdk.rounds.round_loop import RoundLoop
from tests.processes import ServerProcess
from tests.tiny_model import save_tiny_neox, write_jsonl


def test_shape_read_from_the_files_equals_the_one_from_the_configuration(tiny_llama):
    """The two ways agree on a family that both know."""
    config = read_config(tiny_llama)
    known, found = read_shape(config), shape_from_tensors(config, tensor_shapes(tiny_llama))
    assert set(found.linears) == set(known.linears)
    assert found.embedding_parameters == known.embedding_parameters
    assert (found.hidden_size, found.num_layers, found.vocab_size) == (
        known.hidden_size,
        known.num_layers,
        known.vocab_size,
    )


def test_blocks_come_in_their_order_not_in_that_of_the_alphabet():
    tensors = {f"model.layers.{i}.q.weight": (4, 4) for i in (10, 9, 0)}
    names = [layer.name for layer in shape_from_tensors({"model_type": "new"}, tensors).linears]
    assert names == ["model.layers.0.q", "model.layers.9.q", "model.layers.10.q"]


def test_files_without_blocks_are_a_model_error():
    with pytest.raises(ModelError, match="no linear layer"):
        shape_from_tensors({"model_type": "new"}, {"embed.weight": (4, 4), "norm.weight": (4,)})


def test_unknown_family_needs_its_target_modules_named(tmp_path):
    shape = read_model_shape(save_tiny_neox(tmp_path / "neox"))
    assert shape.model_type not in FAMILIES
    with pytest.raises(ConfigError, match="query_key_value"):
        shape.target_layers(shape.default_targets)


@pytest.mark.processes
@pytest.mark.parametrize("quantization", ["fp32", "nf4"])
def test_unknown_family_learns_in_a_real_round(tmp_path: Path, quantization):
    model = save_tiny_neox(tmp_path / "neox", hidden=64)
    with ServerProcess(tmp_path / "server") as server:
        server.command(
            *("task", "create", "t", "--model", str(model), "--rank", "8"),
            *("--target", "query_key_value", "dense_h_to_4h", "--sketch-sizes", "4"),
            *("--rounds", "2", "--cohort-size", "1", "--local-steps", "20", "--local-lr", "0.02"),
        )
        client = RoundLoop(
            data=write_jsonl(
                tmp_path / "data.jsonl", [{"prompt": "what is", "completion": " red"}]
            ),
            server=server.address,
            enrolment_token=server.command("token", "create")["enrolment_token"],
            state_folder=tmp_path / "device",
            allowance=Allowance(quantization=quantization, threads=1),
        )
        first, second = client.rounds()
    assert first.k == second.k == 4
    assert second.loss < first.loss
