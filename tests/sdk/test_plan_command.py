"""``edge-sdk plan`` and ``edge-sdk probe``: answers for people and machines, without torch."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from edge_sdk.cli import main
from edge_sdk.compute.rates import Rates
from edge_sdk.device import probe
from edge_sdk.files.whole_file import write_whole
from edge_sdk.general.memory_need import MemoryNeed
from edge_sdk.planning import microbenchmark
from edge_sdk.planning.cost import TIME_MARGIN
from tests.sdk.workloads import BERT, LLAMA, RATES

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A model folder with a configuration and not one weight."""
    return write_config(tmp_path / "model", LLAMA)


def write_config(folder: Path, config: dict[str, object]) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


@pytest.fixture(autouse=True)
def measured_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A device that was measured before: whatever starts a benchmark fails."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    report = probe()
    for threads in {1, report.cores}:
        path = microbenchmark._path(report, threads)
        assert path.is_relative_to(tmp_path)
        write_whole(path, msgspec.json.encode(RATES))


@pytest.fixture
def plan(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Run ``edge-sdk plan`` on the model; return exit status, output and errors."""

    def run(*options: str) -> tuple[int, str, str]:
        asked = ["plan", "--model", str(model), "--rank", "64", "--state", str(tmp_path / "state")]
        status = main([*asked, *options])
        said = capsys.readouterr()
        return status, said.out, said.err

    return run


def test_plan_prints_every_component_what_limits_it_and_what_the_next_sketch_needs(plan):
    status, said, errors = plan("--profile", "raspberry-pi-5-8gb", "--memory-budget", "800MB")
    assert (status, errors) == (0, "")
    for component in MemoryNeed.__dataclass_fields__:
        assert component in said
    for text in (
        "predicted peak",
        "with its margin",
        "budget",
        "800 MB",
        "k is limited by memory",
        "needs a memory budget of",
        "transfer:",
        "no deadline given",
        "published figures",
        "Raspberry Pi 5",
    ):
        assert text in said, text


def test_plan_for_this_device_says_where_its_numbers_are_from(plan):
    status, said, _ = plan("--sketch-sizes", "1,2")
    assert status == 0
    assert "k = 2 of r = 64" in said
    assert "nothing: this is the task's largest sketch" in said
    assert "measured on this device" in said
    assert "products in the format of the activations" in said


def test_plan_says_in_words_how_it_multiplies_and_what_it_computes_twice(plan):
    _, said, _ = plan(
        *("--profile", "laptop-avx512-vnni-16gb", "--sketch-sizes", "8", "--max-length", "512"),
        *("--memory-budget", "1GB"),
    )
    assert re.search(r"how: base in nf4, products of 8-bit integers, \d examples at once x", said)
    _, said, _ = plan(
        *("--profile", "raspberry-pi-5-8gb", "--sketch-sizes", "8", "--max-length", "512"),
        *("--memory-budget", "700MB"),
    )
    assert re.search(r"how: base in nf4, products in the format of the activations", said)
    blocks = re.search(r"(\d+) blocks computed twice", said)
    assert blocks
    assert f"given up: {blocks[1]} of 30 blocks are computed twice" in said


def test_plan_as_json_holds_the_decision_and_its_reasons(plan):
    status, said, _ = plan("--json", "--profile", "raspberry-pi-5-8gb", "--memory-budget", "800MB")
    found = json.loads(said)
    assert status == 0
    assert found["k"] in (1, 2, 4, 8, 16, 32)
    assert found["limited_by"] == "memory"
    assert found["cost"]["need"].keys() == MemoryNeed.__dataclass_fields__.keys()
    assert found["cost"]["memory_bytes"] <= found["budget"]["memory_bytes"] == 800_000_000
    assert found["next_sketch"]["k"] == 2 * found["k"]
    assert found["cost"]["execution"]["k"] == found["k"]
    assert found["rates"] == "profile"


def test_options_reach_the_plan(plan):
    _, said, _ = plan(
        *("--json", "--sketch-sizes", "4,16", "--target", "q_proj", "v_proj"),
        *("--batch-size", "2", "--local-steps", "3", "--max-length", "40", "--learned", "5"),
        *("--quantization", "fp32", "--transfer-budget", "2MB", "--deadline", "1h"),
        *("--uplink", "8Mbit/s", "--downlink", "2MB/s", "--profile", "apple-m1-8gb"),
    )
    found = json.loads(said)
    budget, way = found["budget"], found["cost"]["execution"]
    assert (budget["round_s"], budget["transfer_bytes"]) == (3600.0, 2_000_000)
    assert (budget["uplink_bytes_per_s"], budget["downlink_bytes_per_s"]) == (1e6, 2e6)
    assert (way["length"], way["quantization"]) == (40, "fp32")
    assert way["trained_targets"] == ["q_proj", "v_proj"]
    assert (found["k"], found["limited_by"], found["next_sketch"]["k"]) == (4, "transfer", 16)
    one_way = 4 * 4 * 30 * ((576 + 576) + (576 + 192))
    assert found["cost"]["transfer_bytes"] == 2 * one_way
    step = found["cost"]["step_s"]
    assert found["cost"]["round_s"] == pytest.approx(
        3 * step * (1 + TIME_MARGIN) + one_way * 1.5e-6
    )


def test_classifier_is_planned_from_its_task_type(tmp_path, capsys):
    folder = write_config(tmp_path / "bert", BERT)
    asked = ["plan", "--model", str(folder), "--rank", "8", "--profile", "raspberry-pi-5-8gb"]
    assert main([*asked, "--task-type", "SEQ_CLS", "--num-labels", "3", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["cost"]["need"]["logits"] == 0
    assert main([*asked, "--json"]) == 1
    assert "SEQ_CLS" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("option", "amount", "said"),
    [
        ("--memory-budget", "lots", "'lots' is not an amount of memory"),
        ("--memory-budget", "0", "must be more than nothing"),
        ("--reserve-memory", "-1GB", "expected one argument"),
        ("--transfer-budget", "9 parsecs", "not an amount of memory"),
        ("--deadline", "never", "'never' is not a duration"),
        ("--uplink", "fast", "'fast' is not the rate of a link"),
        ("--downlink", "2MB", "'2MB' is not the rate of a link"),
        ("--sketch-sizes", "1,two", "is not a list such as"),
        ("--quantization", "int3", "invalid choice: 'int3'"),
        ("--batch-size", "many", "invalid int value"),
    ],
)
def test_amount_nobody_can_read_is_one_clear_line_and_exit_status_2(
    model, capsys, option, amount, said
):
    with pytest.raises(SystemExit) as left:
        main(["plan", "--model", str(model), "--rank", "8", option, amount])
    assert left.value.code == 2
    errors = capsys.readouterr().err.strip().splitlines()
    assert errors[-1].startswith(f"edge-sdk plan: error: argument {option}: ")
    assert said in errors[-1]
    assert [line for line in errors if "error" in line] == errors[-1:]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--memory-budget", "10MB"), "short of"),
        (("--deadline", "1s"), "of time"),
        (("--transfer-budget", "1kB"), "of transfer"),
        (("--rank", "0"), "rank"),
        (("--sketch-sizes", "128"), "k=128"),
        (("--target", "no_such_layer"), "no_such_layer"),
        (("--batch-size", "0"), "batch_size=0"),
        (("--local-steps", "-2"), "local_steps=-2"),
        (("--max-length", "0"), "length=0"),
        (("--learned", "-1"), "learned=-1"),
        (("--threads", "0"), "threads=0"),
        (("--threads", "-4"), "threads=-4"),
        (("--profile", "no-such-board"), "no-such-board"),
        (("--model", "/no/such/folder"), "/no/such/folder"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_what_cannot_be_is_refused_in_one_line(plan, options, said):
    status, output, errors = plan(*options)
    assert (status, output) == (1, "")
    assert errors.startswith("edge-sdk: ")
    assert len(errors.strip().splitlines()) == 1
    assert said in errors


def run_without_torch(*arguments: str, **environment: str) -> tuple[str, list[str]]:
    """Run the command line in a new process; return its output and the heavy modules it loaded."""
    script = (
        "import sys; from edge_sdk.cli import main; status = main(sys.argv[1:])\n"
        "heavy = {'torch', 'transformers', 'peft', 'bitsandbytes'} & sys.modules.keys()\n"
        "print(*sorted(heavy), file=sys.stderr); sys.exit(status)"
    )
    done = subprocess.run(
        [INTERPRETER, "-c", script, *arguments],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, **environment},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr.split()


INTERPRETER = sys.executable  # before a test takes it away


def test_plan_and_probe_answer_without_torch(model, tmp_path):
    said, heavy = run_without_torch(
        *("plan", "--model", str(model), "--rank", "8", "--state", str(tmp_path / "state"))
    )
    assert "of r = 8" in said
    assert heavy == []
    said, heavy = run_without_torch("probe", "--json", "--threads", "1")
    assert json.loads(said)["rates"]["origin"] == "measured"
    assert heavy == []


def test_model_named_by_its_hub_id_is_found_in_the_cache_without_a_network(tmp_path):
    revision = "0123456789abcdef0123456789abcdef01234567"
    cached = tmp_path / "hub" / "hub" / "models--someone--small"
    write_config(cached / "snapshots" / revision, LLAMA)
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text(revision, encoding="ascii")
    said, _ = run_without_torch(
        *("plan", "--model", "someone/small", "--rank", "8", "--json"),
        *("--profile", "raspberry-pi-5-8gb"),
        HF_HOME=str(tmp_path / "hub"),
        HF_HUB_OFFLINE="1",
    )
    assert json.loads(said)["r"] == 8


def test_probe_as_json_holds_readings_and_rates(capsys):
    assert main(["probe", "--json", "--threads", "1"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert msgspec.convert(found["rates"], Rates) == RATES
    assert found["benchmark_failure"] is None
    assert found["memory"]["total_bytes"]["source"]
    assert found["cpu"]["cores"]["value"] >= 1


def test_probe_prints_readings_with_their_sources(capsys):
    assert main(["probe", "--threads", "1"]) == 0
    said = capsys.readouterr().out
    for text in ("memory we may have", "cores we may use", "products in fp32", "80 GFLOP/s"):
        assert text in said
    for text in ("products in int8", "nf4 to int8", "5.0 G numbers/s", "compiled"):
        assert text in said
    assert f"measured, {RATES.threads} thread" in said


def test_probe_that_cannot_measure_says_why_and_still_answers(capsys):
    assert main(["probe", "--refresh", "--threads", "1", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert "cannot be started" in found["benchmark_failure"]
    assert found["rates"]["origin"] == "measured", "what was measured before still holds"
    assert main(["probe", "--refresh", "--threads", "1"]) == 0
    assert "speed was not measured" in capsys.readouterr().out
