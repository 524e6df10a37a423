"""Simulations: replayed by their seed, resumed where they were cut off, and true to the server."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch

from edge_sdk.errors import ConfigError
from edge_sdk.identity.identity import load_identity
from edge_sdk.network.transport import Transport
from edge_sdk.planning.allowance import Allowance
from edge_sdk.rounds.round_loop import RoundLoop
from edge_sdk.wire.payload import adapter_shapes, decode
from server.methods import METHODS, method_of
from simulation.checkpoint import checkpoint_path
from simulation.config import RunConfig, merge
from simulation.fleet import Fleet
from simulation.learners import Students
from simulation.method_server import MethodServer
from simulation.run import Run, run_simulation
from simulation.task import make_task
from tests.processes import ServerProcess
from tests.simulation.files import stand_ins, students
from tests.tiny_model import write_jsonl


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def rows_of(result):
    """Everything of a result but the time it took."""
    rows = msgspec.to_builtins(result.rounds)
    for row in rows:
        row.pop("server_s")
    return rows


COLOURS = ("one", "red", "two")


def classifier(model: Path, folder: Path, **changes):
    """Four devices that see three classes; all three are held out."""
    config = students(model, folder / "data", **changes)
    for number in range(4):
        records = [{"text": f"what is {x}", "label": x} for x in COLOURS]
        write_jsonl(folder / "data" / f"device-{number}.jsonl", records)
    held_out = [{"text": f"who is {x}", "label": x} for x in COLOURS]
    write_jsonl(folder / "data" / "heldout.jsonl", held_out)
    told = {
        "learner": {"task_type": "SEQ_CLS", "labels": COLOURS},
        "training": {"local_steps": 4, "batch_size": 3, "local_lr": 0.02},
    }
    return msgspec.convert(merge(msgspec.to_builtins(config), told), RunConfig)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_learns_on_a_tiny_model(tiny_bert, tmp_path, method):
    config = classifier(tiny_bert, tmp_path, method=method, rounds=4)
    result = run_simulation(config, tmp_path / "one.json")
    assert result.summary.heldout_loss < result.start.loss


def test_the_same_seed_gives_the_same_run_and_another_one_another(tiny_bert, tmp_path):
    first, again, other = (
        run_simulation(classifier(tiny_bert, tmp_path, seed=seed), tmp_path / f"{name}.json")
        for name, seed in (("first", 0), ("again", 0), ("other", 1))
    )
    assert rows_of(again) == rows_of(first)
    assert rows_of(other) != rows_of(first)


def test_a_run_cut_off_after_any_round_ends_as_it_would_have(tiny_bert, tmp_path):
    config = classifier(tiny_bert, tmp_path, method="fedex-lora", rounds=3, evaluate_every=1)
    whole = run_simulation(config, tmp_path / "whole.json")
    for rounds in (1, 2):
        out = tmp_path / f"cut-{rounds}.json"
        run = Run(config, out)
        for _ in range(rounds):
            run.play()
        assert checkpoint_path(out).exists()
        resumed = run_simulation(config, out)
        assert rows_of(resumed) == rows_of(whole)
        assert not checkpoint_path(out).exists()


def test_balanced_draws_and_a_server_optimizer_go_on_where_they_were_cut_off(tiny_bert, tmp_path):
    changes = {"sketching": "balanced", "aggregation": {"server_optimizer": "adam"}}
    config = classifier(tiny_bert, tmp_path, rounds=3, **changes)
    whole = run_simulation(config, tmp_path / "whole.json")
    run = Run(config, tmp_path / "cut.json")
    run.play()
    assert rows_of(run_simulation(config, tmp_path / "cut.json")) == rows_of(whole)


def test_a_finished_run_is_read_and_not_run_again(tmp_path):
    out = tmp_path / "done.json"
    first = run_simulation(stand_ins(), out)
    before = out.stat().st_mtime_ns
    assert msgspec.to_builtins(run_simulation(stand_ins(), out)) == msgspec.to_builtins(first)
    assert out.stat().st_mtime_ns == before


def test_a_result_or_checkpoint_of_another_configuration_is_not_taken_for_ones_own(
    tiny_bert, tmp_path
):
    run_simulation(stand_ins(), tmp_path / "done.json")
    with pytest.raises(ConfigError, match=r"done\.json is the result of another"):
        run_simulation(stand_ins(seed=1), tmp_path / "done.json")
    Run(classifier(tiny_bert, tmp_path), tmp_path / "cut.json").play()
    with pytest.raises(ConfigError, match=r"cut\.partial.* is of another"):
        Run(classifier(tiny_bert, tmp_path, seed=1), tmp_path / "cut.json")


def test_a_damaged_checkpoint_is_named_with_what_to_do(tiny_bert, tmp_path):
    config = classifier(tiny_bert, tmp_path)
    Run(config, tmp_path / "cut.json").play()
    path = checkpoint_path(tmp_path / "cut.json")
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ConfigError, match="is damaged: remove it"):
        Run(config, tmp_path / "cut.json")


def test_rounds_end_with_the_quorum_or_at_the_deadline(tmp_path):
    quick = run_simulation(stand_ins(quorum=2), tmp_path / "quick.json").rounds[0]
    assert (quick.assigned, quick.accepted, quick.late) == (8, 2, 6)
    slow = run_simulation(stand_ins(deadline_s=25.0), tmp_path / "slow.json").rounds
    assert all(row.accepted + row.late == 8 for row in slow)
    assert any(row.late for row in slow), "the slow class needs 40 s"
    assert [row.ended_at for row in slow] == [25.0, 50.0, 75.0]


def test_lost_devices_are_replaced_in_a_prolonged_round(tmp_path):
    config = stand_ins(cohort_size=8, min_updates=8, quorum=8, fleet={"dropout": 0.5})
    rounds = run_simulation(config, tmp_path / "lossy.json").rounds
    for row in rounds:
        assert row.accepted == 8
        assert row.assigned == row.accepted + row.dropped + row.late
    assert sum(row.dropped for row in rounds) > 5


def test_a_fleet_that_is_never_there_in_time_ends_in_one_clear_error(tmp_path):
    config = stand_ins(fleet={"hours_per_day": 0.001})
    with pytest.raises(ConfigError, match=r"round 1 .* too few of it are ever there"):
        run_simulation(config, tmp_path / "never.json")


def test_the_upload_budget_ends_a_run(tmp_path):
    free = run_simulation(stand_ins(), tmp_path / "free.json")
    budget = free.rounds[1].total_uplink_bytes
    bound = run_simulation(stand_ins(upload_budget_bytes=budget), tmp_path / "bound.json")
    assert bound.summary.rounds == 2
    assert bound.summary.uplink_bytes == budget


def test_a_method_of_equal_ranks_has_the_rank_of_the_weakest_device(tmp_path):
    assert run_simulation(stand_ins(), tmp_path / "one.json").r == 4
    assert run_simulation(stand_ins(method="fedit"), tmp_path / "other.json").r == 1


def test_a_loss_that_diverges_ends_the_run_and_is_said(tiny_bert, tmp_path):
    config = classifier(tiny_bert, tmp_path, training={"local_lr": 1e20, "optimizer": "sgd"})
    config = msgspec.structs.replace(
        config, training=config.training | {"local_lr": 1e20, "optimizer": "sgd"}
    )
    result = run_simulation(config, tmp_path / "wild.json")
    assert result.summary.is_diverged
    assert result.summary.rounds < config.rounds
    assert json.loads((tmp_path / "wild.json").read_text())["summary"]["is_diverged"]


def test_real_training_needs_as_many_files_as_devices(tiny_bert, tmp_path):
    with pytest.raises(ConfigError, match="9 devices, but data for 4"):
        Run(classifier(tiny_bert, tmp_path, fleet={"devices": 9}), tmp_path / "x.json")


@pytest.mark.parametrize("sketching", ["independent", "balanced"])
def test_the_servers_own_coordinator_gives_the_same_adapter_bit_for_bit(
    tiny_bert, tmp_path, sketching
):
    """With quorums, lost devices and all: both are asked for the same and answer the same."""
    changes = {"sketching": sketching, "rounds": 3, "quorum": 3, "fleet": {"dropout": 0.2}}
    adapters = {}
    for server in ("method", "coordinator"):
        config = classifier(tiny_bert, tmp_path / server, server=server, **changes)
        with Run(config, tmp_path / f"{server}.json") as run:
            while not run.is_over:
                run.play()
            adapters[server] = run.model().adapter
    ours, theirs = adapters["method"], adapters["coordinator"]
    assert ours.keys() == theirs.keys()
    for name, array in ours.items():
        np.testing.assert_array_equal(array, theirs[name], err_msg=name)


@pytest.mark.processes
def test_a_simulated_round_and_one_over_http_give_the_same_adapter_bit_for_bit(
    tiny_llama, tmp_path
):
    config = students(tiny_llama, tmp_path / "data", sketch_sizes=[2])
    names, adapter_bytes = over_http(config, tiny_llama, tmp_path)
    learner = Students(config.learner, None, 32, 2)
    fleet = Fleet(config.fleet, len(names), config.seed)
    spec = make_task(config, learner, fleet)
    server = MethodServer(spec, method_of("fslora"), SEED, name_of=names.__getitem__)
    for number in (1, 2):
        for device in range(len(names)):
            work = server.give_work(device, 4, 0.0)
            server.take_update(work, learner.train(work, spec), 0.0)
        server.close(number, 0.0)
    expected, _ = decode(adapter_bytes, adapter_shapes(spec.adapter, spec.adapter.r))
    for name, array in server.model().adapter.items():
        np.testing.assert_array_equal(array, expected[name], err_msg=name)


SEED, DEVICES = 5, 2


def over_http(config, model: Path, folder: Path) -> tuple[list[str], bytes]:
    """Two rounds of a real server with a real device for every file; names, and the adapter."""
    training = config.training_spec()
    files = sorted((folder / "data").glob("device-*.jsonl"))[:DEVICES]
    with ServerProcess(folder / "server") as server:
        server.command(
            *("task", "create", "t", "--model", str(model), "--rank", "4", "--alpha", "8"),
            *("--update-encoding", "wire"),
            *("--sketch-sizes", "2", "--rounds", "2", "--cohort-size", str(len(files))),
            *("--local-steps", str(training.local_steps), "--local-lr", str(training.local_lr)),
            *("--batch-size", "2", "--max-length", "32", "--seed", str(SEED)),
        )
        token = server.command("token", "create")["enrolment_token"]
        loops = [
            RoundLoop(
                data=path,
                server=server.address,
                enrolment_token=token,
                state_folder=folder / path.stem,
                allowance=Allowance(threads=1, quantization="fp32"),
            )
            for path in files
        ]
        with ThreadPoolExecutor(len(loops)) as pool:
            done = list(pool.map(lambda loop: list(loop.rounds()), loops))
        assert [[x.k for x in rounds] for rounds in done] == [[2, 2]] * len(files)
        identities = [load_identity(folder / path.stem) for path in files]
        transport = Transport(server.address, identities[0])
        task = transport.task("t")
        digest = transport.adapters("t")[2].digest
        return [x.device_id for x in identities], transport.adapter_body(task, 2, digest)
