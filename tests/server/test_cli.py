"""The command line in this process; the server itself is started in tests/faults and tests/e2e."""

import json
import signal
import socket
import subprocess
import sys

import numpy as np
import pytest

from edge_sdk.model import peft_folder
from edge_sdk.model.model_folder import weights_digest
from edge_sdk.quantities import format_bytes
from edge_sdk.wire.messages import decode_message
from edge_sdk.wire.task import AggregationSpec, RoundPolicy, TaskSpec, TrainingSpec
from server.cli import main
from tests.server.tasks import Site, TurnedClock, tiny_spec

LLAMA = {
    "model_type": "llama",
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 40,
}


@pytest.fixture
def model(tmp_path, monkeypatch):
    """A model folder with the files that a task is made from."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    import safetensors.numpy

    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(LLAMA))
    safetensors.numpy.save_file({"w": np.ones(3, np.float32)}, folder / "model.safetensors")
    return folder


@pytest.fixture
def run(tmp_path, capsys):
    """Run one command on a state folder; returns exit code, output and errors."""

    def run_one(*words):
        code = main([*map(str, words), "--state", str(tmp_path / "state")])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run_one


def create(run, model, *more, name="demo"):
    return run(
        "task", "create", name, "--model", model, "--rank", 8, "--rounds", 2, "--cohort-size", 3,
        "--json", *more,
    )  # fmt: skip


def created(run, model, *more):
    code, out, err = create(run, model, *more)
    assert (code, err) == (0, "")
    answer = json.loads(out)
    return decode_message(TaskSpec, json.dumps(answer["task"]).encode()), answer["seed"]


def test_a_task_of_few_flags_takes_most_other_values_from_the_dataclasses(run, model):
    spec, seed = created(run, model)
    assert spec.training == TrainingSpec(update_encoding="int4")
    assert spec.policy == RoundPolicy(rounds=2, cohort_size=3, quorum=3, sketch_sizes=[1, 2, 4, 8])
    assert (spec.adapter.r, spec.adapter.lora_alpha) == (8, 16.0)
    assert len(spec.adapter.layers) == 2 * 7
    assert (spec.base.model, spec.base.digest) == (str(model), weights_digest(model))
    assert 0 <= seed < 2**53


def test_what_is_unwise_in_a_task_is_said_beside_it(run, model):
    _, out, _ = create(run, model, "--cohort-size", 2, name="few")
    assert "2 devices that train 1 of 8 ranks" in json.loads(out)["advice"][0]
    _, out, _ = create(run, model, "--cohort-size", 8, name="enough")
    assert json.loads(out)["advice"] == []


def test_every_flag_reaches_the_task(run, model):
    spec, seed = created(
        run, model, "--base-name", "owner/tiny", "--revision", "abc", "--task-type", "SEQ_CLS",
        "--label", "no", "yes", "maybe", "--alpha", 3, "--rslora", "--target", "q_proj", "v_proj",
        "--sketch-sizes", "4,1,4", "--quorum", 2, "--min-updates", 2, "--deadline", 9.5,
        "--local-steps", 3, "--local-lr", 0.5, "--optimizer", "sgd", "--weight-decay", 0.25,
        "--batch-size", 4, "--max-length", 32, "--weighting", "examples", "--server-lr", 0.75,
        "--wire-dtype", "bf16", "--seed", 42,
        "--sketching", "balanced", "--stragglers", "fold", "--max-staleness", 3,
        "--combination", "mean", "--trim", 0.2, "--server-optimizer", "adam", "--momentum", 0.5,
        "--second-momentum", 0.6, "--epsilon", 0.01, "--staleness-exponent", 1,
        "--max-norm", 4, "--max-norm-ratio", 8, "--update-encoding", "int4", "--error-feedback",
    )  # fmt: skip
    assert seed == 42
    assert (spec.base.model, spec.base.revision) == ("owner/tiny", "abc")
    assert (spec.base.task_type, spec.base.labels) == ("SEQ_CLS", ["no", "yes", "maybe"])
    adapter = spec.adapter
    assert (adapter.lora_alpha, adapter.use_rslora, adapter.wire_dtype) == (3.0, True, "bf16")
    assert adapter.target_modules == ["q_proj", "v_proj"]
    assert [dense.shape for dense in adapter.dense] == [[3, 16]]
    assert spec.policy == RoundPolicy(
        rounds=2,
        cohort_size=3,
        quorum=2,
        min_updates=2,
        deadline_s=9.5,
        sketch_sizes=[1, 4],
        sketching="balanced",
        stragglers="fold",
        max_staleness=3,
    )
    assert spec.aggregation == AggregationSpec(
        weighting="examples",
        trim=0.2,
        server_optimizer="adam",
        server_lr=0.75,
        momentum=0.5,
        second_momentum=0.6,
        epsilon=0.01,
        staleness_exponent=1.0,
        max_norm=4.0,
        max_norm_ratio=8.0,
    )
    assert spec.training == TrainingSpec(
        local_steps=3,
        local_lr=0.5,
        optimizer="sgd",
        weight_decay=0.25,
        batch_size=4,
        max_length=32,
        update_encoding="int4",
        error_feedback=True,
    )


def test_default_sketch_sizes_are_the_powers_of_two_and_the_rank(run, model):
    spec, _ = created(run, model, "--rank", 6)
    assert spec.policy.sketch_sizes == [1, 2, 4, 6]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--rank", "0"], "r=0"),
        (["--rank", "16"], "exceeds"),
        (["--sketch-sizes", "9"], "k=9"),
        (["--quorum", "4"], "quorum=4"),
        (["--target", "nothing"], "nothing"),
        (["--label", "a", "b"], "--label"),
        (["--task-type", "SEQ_CLS", "--label", "a"], "two different labels"),
        (["--seed", "-1"], "seed=-1"),
        (["--model", "/no/such/folder"], "/no/such/folder"),
        (["--deadline", "nan"], "deadline_s=nan"),
    ],
)
def test_a_task_that_cannot_be_is_one_line_and_leaves_nothing(run, model, words, says):
    code, out, err = create(run, model, *words)
    assert (code, out) == (1, "")
    assert err.startswith("edge-server: ")
    assert says in err
    assert err.count("\n") == 1
    assert run("task", "list", "--json")[1] == "[]\n"


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["task"],
        ["fly"],
        ["task", "create", "x"],
        ["task", "create", "x", "--model", "m", "--rank", "x", "--rounds", "1"],
        ["serve", "--port", "http"],
    ],
)  # fmt: skip
def test_wrong_usage_exits_with_two(words, capsys):
    with pytest.raises(SystemExit) as caught:
        main(words)
    assert caught.value.code == 2
    assert "usage" in capsys.readouterr().err


def test_a_task_name_that_is_taken_is_refused(run, model):
    created(run, model)
    code, _, err = create(run, model)
    assert (code, err) == (1, "edge-server: task 'demo' exists already: choose another name\n")


@pytest.fixture
def trained(tmp_path):
    """A state with one closed round: device a at k=1, device b at k=8, c without an update."""
    site = Site(tmp_path / "state", TurnedClock())
    spec = site.add_task(tiny_spec(quorum=2))
    for name, k in (("a", 1), ("b", 8), ("c", 8)):
        site.add_device(name)
        if name != "c":
            site.coordinator.check_in(name, "tiny", _ready(k))
            site.coordinator.slice_for(name, "tiny", 1)
    site.coordinator.check_in("c", "tiny", _ready(8))
    site.train("a", spec, seed=1, affordable_k=1, loss=0.5)
    site.train("b", spec, seed=2, affordable_k=8, loss=0.25)
    site.advance()
    yield site
    site.store.close()


def _ready(k):
    from tests.server.tasks import ready

    return ready(k)


def test_rounds_are_shown_with_what_each_device_did(run, trained):
    _, out, _ = run("round", "list", "tiny", "--json")
    (report,) = json.loads(out)
    assert (report["round_number"], report["state"], report["accepted"]) == (1, "closed", 2)
    a, b, c = report["devices"]
    assert [device["name"] for device in (a, b, c)] == ["a", "b", "c"]
    assert (a["k"], b["k"], c["k"]) == (1, 8, 8)
    assert (a["loss"], b["loss"], c["loss"]) == (0.5, 0.25, None)
    assert a["upload_bytes"] < b["upload_bytes"]
    assert a["download_bytes"] < b["download_bytes"]
    assert (c["upload_bytes"], c["download_bytes"]) == (None, 0)
    _, out, _ = run("round", "list", "tiny")
    assert "0.2500" in out
    assert f"  {format_bytes(a['upload_bytes'])}  " in out


def test_tasks_and_adapters_are_listed_for_people_and_machines(run, trained):
    (task,) = json.loads(run("task", "list", "--json")[1])
    assert (task["name"], task["closed"], task["adapter_version"]) == ("tiny", 1, 1)
    assert "1 of 3" in run("task", "list")[1]
    adapters = json.loads(run("adapter", "list", "tiny", "--json")[1])
    assert [adapter["version"] for adapter in adapters] == [0, 1]
    assert adapters[1]["digest"][:12] in run("adapter", "list", "tiny")[1]


@pytest.mark.parametrize("words", [["round", "list"], ["adapter", "list"]])
def test_a_task_that_does_not_exist_is_one_line(run, words):
    code, out, err = run(*words, "none")
    assert (code, out, err) == (1, "", "edge-server: there is no task 'none' on this server\n")


@pytest.mark.parametrize("version", [None, 0, 1])
def test_an_export_is_the_adapter_of_that_version_as_a_peft_folder(run, trained, tmp_path, version):
    flags = [] if version is None else ["--version", version]
    code, _, err = run("adapter", "export", "tiny", tmp_path / "out", "--base", "/models/x", *flags)
    assert (code, err) == (0, "")
    config = peft_folder.read_peft_config(tmp_path / "out")
    assert (config["r"], config["base_model_name_or_path"]) == (8, "/models/x")
    written = peft_folder.read_peft_tensors(tmp_path / "out")
    master = trained.master(tiny_spec(), 1 if version is None else version)
    for name, array in master.items():
        assert (written[name] == array).all()


def test_an_export_of_a_version_that_does_not_exist_writes_nothing(run, trained, tmp_path):
    code, _, err = run("adapter", "export", "tiny", tmp_path / "out", "--version", 7)
    assert (code, err) == (1, "edge-server: task 'tiny' has no adapter version 7\n")
    assert not (tmp_path / "out").exists()


def test_a_state_folder_that_cannot_be_is_one_line(tmp_path, capsys):
    (tmp_path / "file").write_text("in the way")
    assert main(["task", "list", "--state", str(tmp_path / "file")]) == 1
    assert capsys.readouterr().err.startswith("edge-server: the state folder")


def test_a_port_in_use_is_one_line(run):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        code, out, err = run("serve", "--port", taken.getsockname()[1])
    assert (code, out) == (1, "")
    assert err.startswith("edge-server: cannot listen on 127.0.0.1 port ")


@pytest.mark.processes
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_serve_announces_where_it_answers_and_ends_cleanly_on_a_signal(tmp_path, number):
    import requests

    state = tmp_path / "state"
    process = subprocess.Popen(
        [sys.executable, "-m", "server", "serve", "--state", state, "--port", "0", "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        facts = json.loads(process.stdout.readline())
        assert requests.get(f"{facts['url']}/healthz", timeout=10).json() == {"status": "ok"}
        assert facts["state"] == str(state)
        process.send_signal(number)
        out, err = process.communicate(timeout=30)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 0
    assert out == ""
    assert "token create" in err
    assert "Traceback" not in err
