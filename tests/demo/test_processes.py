"""No process of the demo outlives it, and a failure is named with its log."""

from __future__ import annotations

from queue import Queue

import psutil
import pytest

from demo.processes import Processes, ProcessFailed


@pytest.fixture
def scripts(tmp_path, monkeypatch):
    """Modules that ``python -m`` can run."""
    (tmp_path / "waits.py").write_text("import time; print('{}', flush=True); time.sleep(60)")
    (tmp_path / "stubborn.py").write_text(
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "print('{}', flush=True); time.sleep(60)"
    )
    (tmp_path / "fails.py").write_text("raise SystemExit('no such thing')")
    (tmp_path / "counts.py").write_text("print('{\"n\": 1}'); print('{\"n\": 2}')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_interrupt_and_error_leave_nothing_running(scripts, tmp_path, error, monkeypatch):
    monkeypatch.setattr("demo.processes.STOP_GRACE_S", 0.3)
    started = []

    def interrupted():
        with Processes(tmp_path / "logs", threads=1) as processes:
            for name in ("waits", "stubborn"):
                started.append(processes.start(name, [name]).pid)
                processes.first_line(name)
                processes.follow(name, Queue())
            assert all(psutil.pid_exists(pid) for pid in started)
            raise error

    with pytest.raises(error):
        interrupted()
    assert len(started) == 2
    assert not any(psutil.pid_exists(pid) for pid in started)


def test_failed_process_is_named_with_the_end_of_its_log(scripts, tmp_path):
    with Processes(tmp_path / "logs", threads=1) as processes:
        with pytest.raises(ProcessFailed, match=r"fails ended with status 1: no such thing"):
            processes.run("fails", ["fails"])
        processes.start("fails", ["fails"])
        with pytest.raises(ProcessFailed, match="no such thing"):
            processes.first_line("fails")


def test_lines_arrive_in_order_and_then_the_end(scripts, tmp_path):
    events = Queue()
    with Processes(tmp_path / "logs", threads=1) as processes:
        processes.start("counts", ["counts"])
        processes.follow("counts", events)
        received = [events.get(timeout=20) for _ in range(3)]
    assert received == [("counts", {"n": 1}), ("counts", {"n": 2}), ("counts", None)]


def test_threads_reach_the_process(scripts, tmp_path):
    (tmp_path / "tells.py").write_text(
        "import json, os; print(json.dumps({'threads': os.environ['OMP_NUM_THREADS']}))"
    )
    with Processes(tmp_path / "logs", threads=3) as processes:
        assert processes.run("tells", ["tells"]) == {"threads": "3"}
