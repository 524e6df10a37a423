"""A process in a real memory cgroup is told its limit, and by which file."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

MIB = 1 << 20
LIMIT_BYTES = 256 * MIB
MOUNT = Path("/sys/fs/cgroup")
CHILD = """
import json, os, sys
from pathlib import Path
(Path(sys.argv[1]) / "cgroup.procs").write_text(str(os.getpid()))
from edge_sdk.device import available_memory, probe
report = probe()
held = bytearray(b"x") * (64 << 20)
print(json.dumps([report.memory_total_bytes, report.memory_available_bytes, report.memory_source,
                  *available_memory()]))
"""


def candidates() -> Iterator[tuple[Path, str]]:
    """Yield where a cgroup may be made, and the name of its limit: v1 first, the nearest first."""
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        number, controllers, path = line.split(":", 2)
        here = Path(path.lstrip("/"))
        if "memory" in controllers.split(","):
            for folder in (here, *here.parents):
                yield MOUNT / "memory" / folder, "memory.limit_in_bytes"
        elif number == "0":
            for folder in (here, *here.parents):
                yield MOUNT / folder, "memory.max"


@pytest.fixture
def limit_file() -> Iterator[Path]:
    """The limit file of a new cgroup of 256 MB, which is removed again; skips where it may not."""
    reasons = ["no cgroups on this system"]
    for parent, name in candidates() if Path("/proc/self/cgroup").exists() else ():
        if not (parent / "cgroup.procs").exists():  # no cgroup file system is mounted there
            continue
        folder = parent / f"edge-sdk-test-{os.getpid()}"
        try:
            folder.mkdir()
        except OSError as error:
            reasons.append(str(error))
            continue
        try:
            (folder / name).write_text(str(LIMIT_BYTES))
        except OSError as error:  # a v2 group whose parent does not hand memory down
            reasons.append(str(error))
            folder.rmdir()
            continue
        try:
            yield folder / name
        finally:
            remove(folder)
        return
    pytest.skip(f"no memory cgroup may be made here: {reasons[-1]}")


def remove(folder: Path) -> None:
    """Remove a cgroup; the kernel may still be taking leave of its last process."""
    for _ in range(50):
        try:
            folder.rmdir()
        except OSError:
            time.sleep(0.1)
        else:
            return
    raise AssertionError(f"{folder} is still there")


def test_a_process_in_a_real_cgroup_reports_its_limit_and_the_file(limit_file):
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(limit_file.parent)], capture_output=True, text=True
    )
    if "Permission" in done.stderr:
        pytest.skip("this user may not move a process into a cgroup")
    assert done.returncode == 0, done.stderr
    total, available, source, later, later_source = json.loads(done.stdout)
    assert total == LIMIT_BYTES
    assert source == later_source == str(limit_file)
    assert LIMIT_BYTES // 2 < available < LIMIT_BYTES
    assert 56 * MIB < available - later < 80 * MIB
