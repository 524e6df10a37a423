"""``edge-sdk simulate``: for people a table, for machines JSON, and one line for what is wrong."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import msgspec
import psutil
import pytest

from edge_sdk.cli import main
from edge_sdk.errors import ConfigError
from simulation.config import read_runs
from simulation.interval import interval
from simulation.sweep import run_apart
from tests.numpy_device import wait_for
from tests.simulation.files import students
from tests.simulation.test_config import FILE

VARIANTS = (
    "seeds = [0, 1]\n"
    + FILE
    + ('[[variants]]\nname = "plain"\n[[variants]]\nname = "even"\nsketching = "balanced"\n')
)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "study.toml"
    path.write_text(VARIANTS, encoding="utf-8")
    return path


def test_people_get_a_row_for_each_variant_and_a_file_for_each_run(file, tmp_path, capsys):
    assert main(["simulate", str(file), "--out", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out
    assert "plain" in said
    assert "even" in said
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["even-0.json", "even-1.json", "plain-0.json", "plain-1.json"]
    result = json.loads((tmp_path / "out" / "even-1.json").read_text())
    assert result["config"]["sketching"] == "balanced"
    assert len(result["rounds"]) == result["summary"]["rounds"] == 3


def test_what_was_learned_is_drawn(tiny_llama, tmp_path, capsys):
    """A line for each variant, in a file of the format that its name says."""
    students(tiny_llama, tmp_path / "data")  # writes the data
    file = tmp_path / "real.toml"
    learner = f'[learner]\nmodel = "{tiny_llama}"\ndata = "{tmp_path / "data"}"\n'
    few = VARIANTS.replace("devices = 10", "devices = 4")
    file.write_text(few.replace("[[variants]]", learner + "[[variants]]", 1), encoding="utf-8")
    words = ["simulate", str(file), "--out", str(tmp_path / "out"), "--json"]
    for name in ("a.svg", "b.png"):
        assert main([*words, "--plot", str(tmp_path / name)]) == 0
    drawn = (tmp_path / "a.svg").read_text()
    assert "<!-- plain -->" in drawn
    assert "<!-- even -->" in drawn
    assert (tmp_path / "b.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("name", "reason"),
    [("a.gif", "a.gif must end in one of .svg .png .pdf"), ("a.svg", "no held-out loss")],
)
def test_what_cannot_be_drawn_is_one_line(file, tmp_path, capsys, name, reason):
    """A format that is unknown, before anything is run; and stand-ins, which learn nothing."""
    words = ["--out", str(tmp_path / "out"), "--plot", str(tmp_path / name)]
    assert main(["simulate", str(file), *words]) == 1
    said = capsys.readouterr().err
    assert reason in said
    assert said.count("\n") == 1
    assert (tmp_path / "out").exists() == (name == "a.svg")


def test_machines_get_the_summaries(file, tmp_path, capsys):
    assert main(["simulate", str(file), "--out", str(tmp_path / "out"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [x["run"] for x in found] == ["plain-0", "plain-1", "even-0", "even-1"]
    assert all(x["accepted"] == 12 for x in found)


def test_a_wrong_file_is_one_line_and_a_failure(file, tmp_path, capsys):
    file.write_text(VARIANTS.replace("rounds = 3", "rounds = 0"), encoding="utf-8")
    assert main(["simulate", str(file), "--out", str(tmp_path / "out")]) == 1
    said = capsys.readouterr().err
    assert said.startswith("edge-sdk: ")
    assert said.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.fixture(params=["processes", "ray"])
def on_ray(request) -> bool:
    """Where a sweep runs; a Ray cluster of this machine where Ray is installed."""
    if request.param == "ray":
        pytest.importorskip("ray")
    return bool(request.param == "ray")


@pytest.mark.processes
def test_runs_in_processes_of_their_own_have_the_same_results(file, tmp_path, on_ray):
    runs = read_runs(file)
    run_apart(file, runs, tmp_path / "apart", jobs=2, on_ray=on_ray)
    assert main(["simulate", str(file), "--out", str(tmp_path / "here"), "--json"]) == 0
    for name in runs:
        here, apart = (
            json.loads((tmp_path / folder / f"{name}.json").read_text())
            for folder in ("here", "apart")
        )
        for row in (*here["rounds"], *apart["rounds"]):
            row.pop("server_s")
        assert here["rounds"] == apart["rounds"]


@pytest.mark.processes
def test_a_run_that_fails_in_its_process_is_named(file, tmp_path, on_ray):
    runs = read_runs(file)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "plain-0.json").write_text("{}")
    other = dict(list(runs.items())[:2])
    file.write_text(VARIANTS.replace('name = "plain"', 'name = "gone"'), encoding="utf-8")
    with pytest.raises(ConfigError, match="run plain-1 failed: 'plain-1'"):
        run_apart(file, other, tmp_path / "out", jobs=1, on_ray=on_ray)


@pytest.mark.processes
def test_a_killed_sweep_leaves_no_worker_behind(file, tmp_path):
    file.write_text(VARIANTS.replace("rounds = 3", "rounds = 1000000"), encoding="utf-8")
    words = [str(file), "--out", str(tmp_path / "out"), "--jobs", "2"]
    with psutil.Popen([sys.executable, "-m", "edge_sdk", "simulate", *words]) as sweep:
        wait_for(lambda: len(busy_workers(sweep)) == 2)
        workers = busy_workers(sweep)
        sweep.kill()
    _, alive = psutil.wait_procs(workers, timeout=30)
    for process in alive:
        process.kill()
    assert not alive


def busy_workers(sweep: psutil.Process) -> list[psutil.Process]:
    """Return the workers of a sweep that have had a second of processor time: they are at it."""
    return [x for x in sweep.children() if x.cpu_times().user > 1.0]


def test_the_interval_of_three_is_that_of_students_t():
    mean, half = interval([1.0, 2.0, 6.0])
    assert mean == 3.0
    assert half == pytest.approx(4.303 * math.sqrt(7.0) / math.sqrt(3))
    assert interval([2.0]) == (2.0, None)
    wide, narrow = interval([0.0, 1.0])[1], interval([0.0, 1.0] * 20)[1]
    assert narrow < wide / 10


def test_results_can_be_read_back(file, tmp_path):
    from simulation.results import Result

    main(["simulate", str(file), "--out", str(tmp_path / "out"), "--json"])
    body = (tmp_path / "out" / "plain-0.json").read_bytes()
    assert msgspec.json.decode(body, type=Result).config == read_runs(file)["plain-0"]
