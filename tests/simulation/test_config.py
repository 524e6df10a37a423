"""A file of a simulation says one thing, or why it does not."""

from __future__ import annotations

from pathlib import Path

import pytest

from edge_sdk.errors import ConfigError
from simulation.config import merge, read_runs

FILE = """
rounds = 3
cohort_size = 4
[adapter]
r = 8
[training]
local_lr = 0.001
[fleet]
devices = 10
[[fleet.classes]]
share = 1.0
k = 4
step_s = 1.0
"""


@pytest.fixture
def write(tmp_path: Path):
    def written(text: str) -> Path:
        path = tmp_path / "study.toml"
        path.write_text(text, encoding="utf-8")
        return path

    return written


def test_a_file_without_variants_is_one_run_named_after_it(write):
    assert list(read_runs(write(FILE))) == ["study-0"]


def test_every_variant_runs_with_every_seed_and_differs_in_what_it_says(write):
    text = (
        "seeds = [0, 5]\n"
        + FILE
        + (
            '[[variants]]\nname = "plain"\n'
            '[[variants]]\nname = "fast"\nmethod = "hetlora"\ntraining = { local_lr = 0.1 }\n'
        )
    )
    runs = read_runs(write(text))
    assert list(runs) == ["plain-0", "plain-5", "fast-0", "fast-5"]
    assert [runs[x].seed for x in runs] == [0, 5, 0, 5]
    assert runs["plain-5"].training_spec().local_lr == 0.001
    fast = runs["fast-5"]
    assert (fast.method, fast.training_spec().local_lr, fast.adapter.r) == ("hetlora", 0.1, 8)


def test_tables_within_tables_are_merged_and_other_values_replaced():
    assert merge({"a": {"b": 1, "c": [1]}, "d": 2}, {"a": {"c": [2]}, "d": 3}) == {
        "a": {"b": 1, "c": [2]},
        "d": 3,
    }


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ("rounds = 3", "rounds = 0", "rounds"),
        ("rounds = 3", "rounds = 3\nspeed = 1", "speed"),
        ("local_lr = 0.001", "local_rate = 0.001", "'local_rate' is none of .*local_lr"),
        ("local_lr = 0.001", "local_lr = -1.0", "local_lr=-1"),
        ("share = 1.0", "share = 0.9", "add up to 1"),
        ("k = 4\n", "", "needs k and step_s, or a profile"),
        ("devices = 10", "dropout = 1.0", "dropout=1.0"),
        ("devices = 10", "hours_per_day = 0.0", "hours_per_day=0.0"),
        ("rounds = 3", 'rounds = 3\nmethod = "fedavg"', "'fedavg' is none of"),
        ("rounds = 3", 'rounds = 3\nmethod = "hetlora"\nserver = "coordinator"', "hetlora needs"),
        (
            "[adapter]",
            'method = "rolora"\naggregation = { server_optimizer = "adam" }\n[adapter]',
            "server_optimizer=average",
        ),
        ("rounds = 3", "rounds = ", "no TOML"),
    ],
)
def test_what_is_wrong_is_one_line_with_the_file_in_it(write, before, after, said):
    assert before in FILE
    with pytest.raises(ConfigError, match=said) as refused:
        read_runs(write(FILE.replace(before, after, 1)))
    assert "study.toml" in str(refused.value)
    assert "\n" not in str(refused.value)


def test_two_variants_of_one_name_are_refused(write):
    twice = '[[variants]]\nname = "a"\n' * 2
    with pytest.raises(ConfigError, match="a name of its own, got 'a'"):
        read_runs(write(FILE + twice))


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"none\.toml cannot be read"):
        read_runs(tmp_path / "none.toml")
