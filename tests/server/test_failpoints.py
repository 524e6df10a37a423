"""A failpoint kills the process that is told to, where it is told to, and no other."""

from __future__ import annotations

import ast
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import server
from server.failpoints import PART_POINTS, POINTS, RELAY_POINTS, VARIABLE

MEETS_IT_THREE_TIMES = """
from server.failpoints import hit
for number in (1, 2, 3):
    hit("after-update-kept")
    print(number, flush=True)
"""


def run(armed: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", MEETS_IT_THREE_TIMES],
        env={**os.environ, VARIABLE: armed},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(
    ("armed", "printed"), [("after-update-kept", ""), ("after-update-kept:3", "1\n2\n")]
)
def test_the_process_dies_as_by_kill_9_when_the_place_is_met_so_often(armed, printed):
    done = run(armed)
    assert (done.returncode, done.stdout) == (-signal.SIGKILL, printed)


@pytest.mark.parametrize("armed", ["", "before-update-kept", "after-update-kept:4"])
def test_nothing_happens_at_a_place_that_is_not_armed(armed):
    done = run(armed)
    assert (done.returncode, done.stdout) == (0, "1\n2\n3\n")


@pytest.mark.parametrize("armed", ["nowhere", "after-update-kept:soon"])
def test_a_place_that_does_not_exist_is_said(armed):
    assert "before-publish-commit" in run(armed).stderr


def test_every_place_is_met_somewhere_in_the_server():
    """Each once, so that the tests that kill at every place kill at every one of them."""
    met = [
        node.args[0].value
        for path in Path(server.__file__).parent.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "hit"
    ]
    assert sorted(met) == sorted((*POINTS, *RELAY_POINTS, *PART_POINTS))
