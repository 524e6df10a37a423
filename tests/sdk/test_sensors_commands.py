"""Programs are asked with a time limit, and whatever they do is no crash."""

from __future__ import annotations

import os
import time

import pytest

from edge_sdk.device import probe
from edge_sdk.sensors.commands import run_command

pytestmark = pytest.mark.skipif(os.name != "posix", reason="writes shell scripts")


@pytest.fixture
def program(tmp_path, monkeypatch):
    """Put a shell script onto the PATH under the name ``sensor``, or another one."""

    def make(body: str, name: str = "sensor") -> None:
        path = tmp_path / name
        path.write_text(f"#!/bin/sh\n{body}\n")
        path.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")

    return make


def test_what_a_program_prints_is_returned(program):
    program('echo "asked $1 in $LC_ALL"; echo noise >&2')
    assert run_command(["sensor", "this"]) == "asked this in C\n"


def test_a_program_that_is_not_installed_is_no_answer():
    assert run_command(["no-such-program-anywhere"]) is None


def test_a_program_that_fails_is_no_answer(program):
    program("echo 42; exit 3")
    assert run_command(["sensor"]) is None


def test_a_program_that_cannot_be_started_is_no_answer(tmp_path, monkeypatch):
    (tmp_path / "sensor").write_bytes(b"\x7fELF of another machine")
    (tmp_path / "sensor").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert run_command(["sensor"]) is None


def test_bytes_that_are_no_text_are_still_an_answer(program):
    program(r"printf '\377\376 ok'")
    assert run_command(["sensor"]).endswith(" ok")


@pytest.mark.parametrize("body", ["exec sleep 30", "sleep 8; echo late"])
def test_a_program_that_hangs_is_given_up(program, body):
    """Also when it leaves a child behind that holds its output open."""
    program(body)
    started = time.monotonic()
    assert run_command(["sensor"]) is None
    assert 2 < time.monotonic() - started < 7


def test_the_probe_outlives_a_program_that_hangs(program):
    program("exec sleep 30", "nvidia-smi")
    report = probe()
    assert report.accelerator.kind.value is None
    assert report.memory_available_bytes > 0


def test_a_captured_machine_is_not_described_by_this_machines_programs(program, tmp_path):
    program("echo throttled=0x1", "vcgencmd")
    assert probe().surroundings.throttled_now.value == ("under-voltage",)
    assert probe(tmp_path / "captured").surroundings.throttled_now.value is None
