"""The study's configurations can be read, and its sums over runs are what they say."""

from __future__ import annotations

import pytest

from bench.study import tables
from bench.study.__main__ import SMALL
from bench.study.cells import HEADER, cells
from bench.study.claims import differences, equal_bytes
from bench.study.show import DOCUMENT, filled
from bench.study.tables import Point, Row, config_path, table_names
from edge_sdk.errors import ConfigError
from simulation.config import read_runs
from simulation.run import config_digest
from tests.simulation.test_config import FILE


def row(variant: str, seed: int, *looks: tuple[int, float]) -> Row:
    """A run with a look at its loss after so many bytes."""
    curve = [
        Point(round_number=n, uplink_bytes=sent, loss=loss, accuracy=loss / 10)
        for n, (sent, loss) in enumerate(looks)
    ]
    return Row(
        variant=variant,
        seed=seed,
        config_digest="",
        r=4,
        curve=curve,
        uplink_bytes=curve[-1].uplink_bytes,
        downlink_bytes=0,
        adapter_memory_bytes=0,
        aggregation_error=None,
        trained_ranks=1.0,
        oldest_rank=0,
        dropped=0,
        server_s=0.0,
        is_diverged=False,
    )


@pytest.mark.parametrize("name", table_names())
def test_every_table_has_a_configuration_that_can_be_read(name):
    runs = read_runs(config_path(name))
    assert runs
    assert all(config.learner.data.startswith(".study/") for config in runs.values())


def test_a_settled_loss_is_the_mean_of_the_last_three_looks():
    losses = [9.0] * 10 + [8.0, 4.0, 2.0, 3.0]
    found = row("a", 0, *((10 * n, loss) for n, loss in enumerate(losses))).settled()
    assert (found.round_number, found.uplink_bytes) == (13, 130)
    assert found.loss == pytest.approx(3.0)
    assert found.accuracy == pytest.approx(0.3)


def test_within_a_budget_only_looks_before_it_was_spent_count():
    one = row("a", 0, (0, 9.0), (10, 4.0), (20, 3.0), (30, 2.0), (40, 1.0))
    assert one.settled(45).loss == pytest.approx(1.5)
    assert one.settled(30).loss == 2.0
    assert one.settled(9).loss == 9.0
    assert one.settled(rounds=3).loss == one.settled(30).loss


def test_runs_are_compared_seed_by_seed_at_the_bytes_that_all_have_sent():
    ours = [row("a", seed, (0, 5.0), (40, 1.0 + seed)) for seed in (0, 1)]
    theirs = [row("b", seed, (0, 5.0), (40, 2.0 + seed), (60, 0.0)) for seed in (1, 0)]
    budget = equal_bytes({"a": ours, "b": theirs}, ["a", "b"])
    assert budget == 40
    mean, half = differences(ours, theirs, budget)
    assert mean == pytest.approx(-1.0)
    assert half == pytest.approx(0.0)


def test_a_rival_may_finish_the_round_in_which_the_bytes_run_out():
    ours = [row("default", 0, (0, 5.0), (40, 1.0), (60, 0.5))]
    theirs = [row("hetlora", 0, (0, 5.0), (70, 3.0), (90, 2.0))]
    assert differences(ours, theirs, 50)[0] == pytest.approx(1.0 - 3.0)
    assert differences(ours, theirs, 70)[0] == pytest.approx(0.5 - 3.0)
    assert differences(theirs, ours, 70)[0] == pytest.approx(3.0 - 0.5)


def table(rows: list[Row], monkeypatch) -> tuple[dict[str, list[str]], str]:
    """The columns of a table by their names, and its caption."""
    monkeypatch.setattr("bench.study.cells.read_table", lambda name: rows)
    lines, caption = cells("any")
    return dict(zip(HEADER, map(list, zip(*lines, strict=True)), strict=True)), caption


def test_a_table_compares_at_equal_rounds_and_at_equal_bytes(monkeypatch):
    rows = [
        row("a", 0, (0, 9.0), (10, 4.0)),
        row("a", 1, (0, 9.0), (10, 2.0)),
        row("b", 0, (0, 9.0), (10, 1.0)),
        row("b", 1, (0, 9.0), (11, 1.0)),
    ]
    found, caption = table(rows, monkeypatch)
    assert found["Loss"] == ["9.000", "3.000 ± 12.706", "1.000 ± 0.000"]
    assert found["Loss at equal bytes"] == ["", "3.000 ± 12.706", "1.000 ± 0.000 †"]
    assert caption == (
        "2 seeds; losses after 1 rounds, and after 10 B sent by all devices; "
        "† with the first look after that"
    )


def test_runs_of_unequal_rounds_are_compared_at_equal_bytes_alone(monkeypatch):
    rows = [
        row("a", 0, (0, 9.0), (10, 4.0)),
        row("b", 0, (0, 9.0), (5, 6.0), (10, 1.0)),
        row("b", 1, (0, 9.0), (5, 6.0), (8, 3.0), (12, 0.0)),
    ]
    found, caption = table(rows, monkeypatch)
    assert found["Rounds"] == ["", "1", "2-3"]
    assert set(found["Loss"]) == {""}
    assert found["Loss at equal bytes"] == ["9.000", "4.000", "2.000 ± 12.706"]
    assert caption == "1/2 seeds; losses after 10 B sent by all devices"


def test_the_document_says_what_the_stored_rows_say():
    text = DOCUMENT.read_text("utf-8")
    assert filled(text) == text


@pytest.mark.parametrize("name", table_names())
def test_every_run_of_a_table_is_stored_as_its_configuration_says(name):
    stored = {f"{x.variant}-{x.seed}": x.config_digest for x in tables.read_table(name)}
    assert stored == {run: config_digest(x) for run, x in read_runs(config_path(name)).items()}


def test_the_row_that_is_run_again_is_one_of_them():
    table, run = SMALL
    assert run in read_runs(config_path(table))


def test_a_stored_row_is_not_run_again_unless_its_configuration_changed(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "FOLDER", tmp_path)
    monkeypatch.setattr(tables, "RAW", tmp_path / "raw")
    (tmp_path / "tables").mkdir()
    (tmp_path / "results").mkdir()
    file = tmp_path / "tables" / "small.toml"
    (tmp_path / "raw" / "small").mkdir(parents=True)
    ran = []
    monkeypatch.setattr(tables, "run_apart", lambda file, runs, out, jobs: ran.append([*runs]))
    file.write_text("seeds = [0, 1]\n" + FILE, encoding="utf-8")
    tables.run_table("small", 1)
    first = tables.read_table("small")
    assert [(x.variant, x.seed) for x in first] == [("small", 0), ("small", 1)]
    tables.run_table("small", 1)
    assert tables.read_table("small") == first
    file.write_text("seeds = [0, 1, 2]\n" + FILE, encoding="utf-8")
    tables.run_table("small", 1)
    assert tables.read_table("small")[:2] == first
    file.write_text("seeds = [0]\n" + FILE.replace("rounds = 3", "rounds = 4"), encoding="utf-8")
    with pytest.raises(ConfigError, match="another"):
        tables.run_table("small", 1)
    assert ran == [["small-0", "small-1"], [], ["small-2"], ["small-0"]]
