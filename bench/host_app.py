"""A host app that embeds the agent: frames against a deadline, and work as fast as it can.

Run by ``bench.host_impact`` in a process of its own, with its settings as JSON on standard input;
prints its measurements as JSON. It measures before there is an agent, then with training paused and
with it at work, in turns.
"""

from __future__ import annotations

import hashlib
import json
import resource
import sys
import time
from collections.abc import Callable
from typing import Any


def _rss_bytes() -> int:
    if sys.platform == "linux":
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * resource.getpagesize()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


BEFORE_BYTES = _rss_bytes()
_started = time.perf_counter()
import edge_sdk  # noqa: E402, F401

IMPORT_S = time.perf_counter() - _started

from edge_sdk.agent.policy import Policy  # noqa: E402
from edge_sdk.agent.status import Status  # noqa: E402
from edge_sdk.client import EdgeClient  # noqa: E402
from edge_sdk.planning.allowance import Allowance  # noqa: E402

FRAME_S = 1 / 60
FRAME_WORK_S = 0.004
"""What a frame computes takes so long where nobody disturbs it."""

_BLOCK = bytes(range(256)) * 64
_WAIT_S = 300.0


def main() -> int:
    """Measure without an agent, with training paused, and with it at work."""
    settings = json.load(sys.stdin)
    client = EdgeClient(
        server=settings["server"],
        enrolment_token=settings["token"],
        data=settings["data"],
        model=settings["model"],
        state_folder=settings["state"],
        policy=Policy(max_other_cpu_percent=None),
        allowance=Allowance(threads=settings["threads"]),
    )
    units = _calibrate()
    alone = _turn("no agent", settings["seconds"] * settings["turns"], units)
    client.start()
    _wait_for(client, lambda status: status.step >= 2)
    turns = [alone]
    for _ in range(settings["turns"]):
        for is_training in (False, True):
            client.resume() if is_training else client.pause()
            name = "training" if is_training else "paused"
            _wait_for_state(client, name)
            time.sleep(0.5)
            step = client.status().step
            turn = _turn(name, settings["seconds"], units)
            turns.append({**turn, "steps": client.status().step - step})
    added = _rss_bytes() - BEFORE_BYTES
    client.stop()
    heavy = [name for name in ("torch", "numpy", "requests") if name in sys.modules]
    facts = {"import_s": IMPORT_S, "added_bytes": added, "heavy": heavy, "turns": turns}
    sys.stdout.write(json.dumps(facts) + "\n")
    return 0


def _turn(name: str, seconds: float, units: int) -> dict[str, Any]:
    return {"with": name, "frames": _frames(seconds, units), "work": _work(seconds), "steps": 0}


def _calibrate() -> int:
    """Return how many blocks a frame computes."""
    count, begun = 0, time.perf_counter()
    while time.perf_counter() - begun < 0.5:
        hashlib.sha256(_BLOCK).digest()
        count += 1
    return max(1, int(count * FRAME_WORK_S / 0.5))


def _frames(seconds: float, units: int) -> list[float]:
    """Return how long after its due time each frame of 60 per second was ready."""
    taken, due, end = [], time.perf_counter(), time.perf_counter() + seconds
    while due < end:
        time.sleep(max(0.0, due - time.perf_counter()))
        for _ in range(units):
            hashlib.sha256(_BLOCK).digest()
        taken.append(time.perf_counter() - due)
        due += FRAME_S
    return taken


def _work(seconds: float) -> list[int]:
    """Return the blocks computed in each second, one after the other without a rest."""
    counts = []
    for _ in range(int(seconds)):
        count, begun = 0, time.perf_counter()
        while time.perf_counter() - begun < 1:
            hashlib.sha256(_BLOCK).digest()
            count += 1
        counts.append(count)
    return counts


def _wait_for_state(client: EdgeClient, name: str) -> None:
    _wait_for(client, lambda status: status.state == name)


def _wait_for(client: EdgeClient, is_reached: Callable[[Status], bool]) -> None:
    end = time.monotonic() + _WAIT_S
    while not is_reached(client.status()):
        if time.monotonic() > end or client.status().state == "failed":
            raise SystemExit(f"training is not where it should be: {client.status()}")
        time.sleep(0.05)


if __name__ == "__main__":
    sys.exit(main())
