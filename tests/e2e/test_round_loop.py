"""Whole rounds: a real server, real clients that train a tiny model, the result used."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from edge_sdk.cli import main
from edge_sdk.errors import (
    ConfigError,
    DataError,
    NotAuthorized,
    NotFeasible,
    NotFound,
    ServerUnreachable,
    WrongBaseModel,
)
from edge_sdk.general.base_model import load_base
from edge_sdk.general.evaluation import completion_loss
from edge_sdk.general.generation import generate, load_with_adapter
from edge_sdk.general.memory_need import adapter_parameters
from edge_sdk.model.model_folder import read_config, weights_digest
from edge_sdk.model.model_shape import read_shape
from edge_sdk.planning.allowance import Allowance
from edge_sdk.planning.local_plan import LocalPlanner
from edge_sdk.rounds.round_loop import RoundLoop
from edge_sdk.text.data import load_examples
from edge_sdk.wire.task import BaseModel
from tests.processes import ServerProcess
from tests.tiny_model import save_tiny_llama, write_jsonl

ROUNDS = 3
QUESTIONS = {
    "ada": ("what", "one"),
    "ben": ("who", "two"),
    "cleo": ("where", "three"),
}

pytestmark = pytest.mark.processes


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, tiny_llama: Path) -> Iterator[ServerProcess]:
    with ServerProcess(tmp_path_factory.mktemp("server")) as running:
        running.command(
            *("task", "create", "words", "--model", str(tiny_llama), "--rank", "8"),
            *("--sketch-sizes", "1,2,4,8", "--rounds", str(ROUNDS), "--cohort-size", "3"),
            *("--local-steps", "30", "--local-lr", "0.03", "--seed", "3"),
        )
        yield running


@pytest.fixture(scope="module")
def token(server: ServerProcess) -> str:
    return str(server.command("token", "create")["enrolment_token"])


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("data")
    return {
        name: write_jsonl(
            folder / f"{name}.jsonl",
            [{"prompt": f"{word} is the {x} ? answer :", "completion": f" {answer}"} for x in "abc"]
            + [{"prompt": f"{word} was in city ?", "completion": f" {answer}"}],
        )
        for name, (word, answer) in QUESTIONS.items()
    }


def test_fleet_learns_together_and_the_adapter_comes_home(
    server, token, data, tmp_path, tiny_llama, capsys
):
    """Three devices with different k; then pull, infer, export, through the command line."""
    affordable = dict(zip(data, (2, 4, 8), strict=True))
    clients = {
        name: RoundLoop(
            data=path,
            server=server.address,
            enrolment_token=token,
            name=name,
            state_folder=tmp_path / name,
            allowance=Allowance(
                transfer_bytes=_transfer_bytes(tiny_llama, affordable[name]),
                quantization="fp32",
                threads=1,
            ),
        )
        for name, path in data.items()
    }
    running = {name: client.rounds() for name, client in clients.items()}
    results = {name: [] for name in clients}
    for _ in range(ROUNDS):
        for name, rounds in running.items():
            results[name].append(next(rounds))
    assert [next(rounds, None) for rounds in running.values()] == [None] * 3
    assert {name: done[0].k for name, done in results.items()} == affordable
    assert all(x.counted for done in results.values() for x in done)
    per_rank = [done[0].upload_bytes / done[0].k for done in results.values()]
    assert max(per_rank) < 2 * min(per_rank), "bytes follow k, headers of a tiny model aside"

    out = tmp_path / "adapter"
    assert main(["pull", str(out), "--state", str(tmp_path / "ada"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["version"] == ROUNDS
    spec = BaseModel(model="tiny", digest=weights_digest(tiny_llama))
    before = load_base(tiny_llama, spec, "fp32", threads=1)
    after = load_with_adapter(tiny_llama, out, "fp32", threads=1)
    examples = [
        example
        for path in data.values()
        for example in load_examples(path, before.tokenizer, spec, max_length=64)
    ]
    assert completion_loss(after, examples) < completion_loss(before, examples) - 0.1

    exported = tmp_path / "exported"
    server.command("adapter", "export", "words", str(exported), "--base", str(tiny_llama))
    tensors = "adapter_model.safetensors"
    assert (exported / tensors).read_bytes() == (out / tensors).read_bytes()
    prompt = "what is the a ? answer :"
    words = ["infer", prompt, "--adapter", str(out), "--quantization", "fp32", "--json"]
    assert main([*words, "--max-new-tokens", "3"]) == 0
    expected = "".join(generate(after, prompt, max_new_tokens=3))
    assert json.loads(capsys.readouterr().out) == {"prompt": prompt, "completion": expected}


def test_classifier_learns_through_the_same_path_and_its_head_is_counted_apart(
    server, token, tmp_path, tiny_bert, capsys
):
    server.command(
        *("task", "create", "colours", "--model", str(tiny_bert), "--task-type", "SEQ_CLS"),
        *("--label", "warm", "cold", "--rank", "4", "--sketch-sizes", "2", "--rounds", "2"),
        *("--cohort-size", "1", "--local-steps", "40", "--local-lr", "0.02"),
    )
    texts = {"what is red": "warm", "what is blue": "cold", "who was red": "warm", "a blue": "cold"}
    records = [{"text": text, "label": label} for text, label in texts.items()]
    client = RoundLoop(
        data=write_jsonl(tmp_path / "data.jsonl", records),
        server=server.address,
        enrolment_token=token,
        state_folder=tmp_path / "state",
        task="colours",
        allowance=Allowance(quantization="fp32", threads=1),
    )
    first, second = client.rounds()
    assert second.loss < first.loss
    assert first.dense_bytes == 4 * (2 * 32 + 2)
    client.membership.pull(tmp_path / "adapter")
    words = ["infer", "what is blue", "--adapter", str(tmp_path / "adapter"), "--json"]
    assert main([*words, "--quantization", "fp32"]) == 0
    scores = json.loads(capsys.readouterr().out)
    assert scores["cold"] > scores["warm"]


def _transfer_bytes(model: Path, k: int) -> int:
    """Return what ``k`` ranks in fp32 move, down and up."""
    shape = read_shape(read_config(model))
    return 2 * 4 * adapter_parameters(shape.target_layers(shape.default_targets), k)


def test_a_device_plans_for_the_examples_it_has(
    server, token, data, tmp_path, tiny_llama, monkeypatch
):
    """Four of at most nine tokens, two of them learned; the task allows 8 of 256 at once."""
    server.command(
        *("task", "create", "few", "--model", str(tiny_llama), "--rank", "8"),
        *("--rounds", "1", "--cohort-size", "1", "--local-steps", "1"),
    )
    planned = []
    plan = LocalPlanner.plan

    def noted(planner, work, deadline_s):
        planned.append((work.batch_size, work.length, work.learned))
        return plan(planner, work, deadline_s)

    monkeypatch.setattr(LocalPlanner, "plan", noted)
    client = RoundLoop(
        data=data["ada"],
        server=server.address,
        enrolment_token=token,
        task="few",
        state_folder=tmp_path / "new",
        allowance=Allowance(quantization="fp32", threads=1),
    )
    (done,) = client.rounds()
    assert done.k == client.plan().k == 8
    assert planned == [(4, 9, 2), (8, 256, 256)]


def test_data_that_an_app_adds_is_trained_on_from_the_next_round(
    server, token, data, tmp_path, tiny_llama, caplog
):
    caplog.set_level("INFO", "edge_sdk")
    server.command(
        *("task", "create", "growing", "--model", str(tiny_llama)),
        *("--rank", "8", "--sketch-sizes", "8", "--rounds", "3", "--cohort-size", "1"),
        *("--local-steps", "2"),
    )
    file = tmp_path / "growing.jsonl"
    file.write_bytes(data["ada"].read_bytes())
    client = RoundLoop(
        data=file,
        server=server.address,
        enrolment_token=token,
        task="growing",
        state_folder=tmp_path / "device",
        allowance=Allowance(quantization="fp32", threads=1),
    )
    taking_part = client.rounds()
    assert next(taking_part).counted
    write_jsonl(file, [json.loads(line) for line in file.read_text().splitlines()] * 2)
    assert next(taking_part).counted
    with file.open("a") as stream:
        stream.write("torn {")
    assert next(taking_part).counted
    trained = [x.getMessage() for x in caplog.records if "examples; trains" in x.getMessage()]
    assert [text.split()[0] for text in trained] == ["4", "8"]
    assert "the examples that were read before stay in use" in caplog.text


def test_wrong_enrolment_token_is_refused(server, data, tmp_path):
    client = RoundLoop(
        data=data["ada"],
        server=server.address,
        enrolment_token="guessed",
        state_folder=tmp_path / "new",
    )
    with pytest.raises(NotAuthorized):
        next(client.rounds())
    assert not (tmp_path / "new" / "device.json").exists()


def test_device_without_identity_or_token_is_told_what_to_do(data, tmp_path):
    client = RoundLoop(data=data["ada"], state_folder=tmp_path / "new")
    with pytest.raises(ConfigError, match="enrolment token"):
        next(client.rounds())


def test_unknown_task_is_not_found(server, token, data, tmp_path):
    client = RoundLoop(
        data=data["ada"],
        server=server.address,
        enrolment_token=token,
        state_folder=tmp_path / "new",
        task="no-such-task",
    )
    with pytest.raises(NotFound, match="no-such-task"):
        next(client.rounds())


def test_other_base_model_is_refused_before_anything_is_loaded(server, token, data, tmp_path):
    other = save_tiny_llama(tmp_path / "other", seed=1)
    client = RoundLoop(
        data=data["ada"],
        server=server.address,
        enrolment_token=token,
        task="words",
        state_folder=tmp_path / "new",
        model=str(other),
    )
    with pytest.raises(WrongBaseModel, match="digest"):
        next(client.rounds())


def test_budget_too_small_for_one_rank_says_how_much_is_missing(server, token, data, tmp_path):
    client = RoundLoop(
        data=data["ada"],
        server=server.address,
        enrolment_token=token,
        task="words",
        state_folder=tmp_path / "new",
        allowance=Allowance(memory_bytes=10_000_000, threads=1),
    )
    with pytest.raises(NotFeasible, match="short") as refused:
        next(client.rounds())
    assert refused.value.shortfall_bytes > 0


def test_broken_data_is_refused_before_the_device_checks_in(server, token, tmp_path):
    path = tmp_path / "data.jsonl"
    path.write_text('{"prompt": "what", "completion": " one"}\n{"prompt": \n')
    client = RoundLoop(
        data=path,
        server=server.address,
        enrolment_token=token,
        task="words",
        state_folder=tmp_path / "new",
    )
    with pytest.raises(DataError, match=r"data\.jsonl:2"):
        next(client.rounds())


def test_server_that_stays_away_is_given_up_on_after_the_patience(data, tmp_path, server, token):
    client = RoundLoop(
        data=data["ada"],
        server="http://127.0.0.1:9",
        enrolment_token=token,
        state_folder=tmp_path / "new",
        outage_patience_s=0.1,
    )
    with pytest.raises(ServerUnreachable):
        next(client.rounds())


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["plan", "--model", "/no/such/folder", "--rank", "8"], "neither a model folder"),
        (["plan", "--model", "TINY", "--rank", "0"], "rank r=0"),
        (["plan", "--model", "TINY", "--rank", "8", "--target", "nothing"], "match no layer"),
        (["plan", "--model", "TINY", "--rank", "8", "--memory-budget", "1MB"], "short"),
        (["join", "nowhere", "--token", "x"], "http://host:port"),
        (["run", "--now", "--data", "x.jsonl"], "enrolment token"),
        (["infer", "hello", "--adapter", "/no/such/adapter"], "cannot be read"),
    ],
)
def test_command_line_prints_one_line_and_fails(words, said, tiny_llama, tmp_path, capsys):
    words = [str(tiny_llama) if word == "TINY" else word for word in words]
    state = ["--state", str(tmp_path / "new")] if words[0] in ("join", "run") else []
    assert main([*words, *state]) == 1
    shown = capsys.readouterr()
    assert said in shown.err
    assert shown.err.startswith("edge-sdk: ")
    assert shown.err.count("\n") == 1
    assert "Traceback" not in shown.err


def test_probe_and_plan_speak_json(tiny_llama, tmp_path, capsys):
    assert main(["probe", "--threads", "1", "--json"]) == 0
    probed = json.loads(capsys.readouterr().out)
    assert probed["memory"]["total_bytes"]["value"] > 0
    assert probed["rates"]["origin"] == "measured"
    words = ["plan", "--model", str(tiny_llama), "--rank", "8", "--threads", "1"]
    assert main([*words, "--state", str(tmp_path), "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["k"] == plan["cost"]["execution"]["k"] == 8
    assert plan["rates"] == "measured", "one measurement serves both"
    assert plan["cost"]["peak_bytes"] == sum(plan["cost"]["need"].values())
