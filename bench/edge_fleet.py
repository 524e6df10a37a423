"""Our server and its devices as real processes, for ``bench.against_flower``."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

import msgspec
import numpy as np
import requests
import safetensors.numpy

from bench.byte_relay import ByteRelay
from bench.flower_cases import Case, Measured, summarize
from bench.made_up_device import Role
from bench.server_watch import ServerWatch
from edge_sdk.identity.device_key import DeviceKey, make_private_key
from edge_sdk.identity.identity import Identity
from edge_sdk.network.transport import Transport

TASK = "bench"
NAME = "edge-server"

_SEED = "7"
_SHORT_POLL_S = "0.2"
_PATIENCE_S = 120.0


class EdgeServer:
    """An ``edge-server serve`` over one state, on one port, however often it is killed.

    Args:
        state: Its folder.
        port: To listen on; 0 takes a free one, and keeps it.
        flags: Settings other than the defaults.
    """

    def __init__(self, state: Path, port: int = 0, flags: tuple[str, ...] = ()) -> None:
        self.state = state
        self.port = port
        self._flags = flags
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> EdgeServer:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.kill()

    @property
    def pid(self) -> int:
        """Of the process that serves now."""
        if self._process is None:
            raise SystemExit("edge-server is not running")
        return self._process.pid

    def start(self) -> float:
        """Start serving; return the seconds until it answered."""
        began = time.perf_counter()
        command = [sys.executable, "-m", "server", "serve", "--json", "--state", str(self.state)]
        self._process = subprocess.Popen(
            [*command, "--port", str(self.port), "--log-level", "error", *self._flags],
            stdout=subprocess.PIPE,
            text=True,
        )
        line = self._process.stdout.readline() if self._process.stdout else ""
        if not line:
            raise SystemExit("edge-server did not start")
        self.port = int(json.loads(line)["port"])
        requests.get(f"http://127.0.0.1:{self.port}/healthz", timeout=20).raise_for_status()
        return time.perf_counter() - began

    def kill(self) -> None:
        """``kill -9``, if it runs."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def results(self) -> list[dict[str, Any]]:
        """Return every adapter version, the initial one first."""
        found: list[dict[str, Any]] = command("adapter", "list", TASK, state=self.state)
        return found

    def rounds(self) -> list[dict[str, Any]]:
        """Return every round with its devices."""
        found: list[dict[str, Any]] = command("round", "list", TASK, state=self.state)
        return found


def command(*words: str, state: Path) -> Any:
    """Run one ``edge-server`` command and return its JSON."""
    done = subprocess.run(
        [sys.executable, "-m", "server", *words, "--state", str(state), "--json"],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"edge-server {' '.join(words)}: {done.stderr}")
    return json.loads(done.stdout)


def create_task(state: Path, case: Case) -> None:
    """Make the task of a case; its base model is a shape whose weights nobody needs."""
    model = state.parent / f"{state.name}-model"
    model.mkdir()
    (model / "config.json").write_text(json.dumps(dict(case.model)), encoding="utf-8")
    weights = {"none": np.zeros(1, dtype=np.float32)}
    (model / "model.safetensors").write_bytes(safetensors.numpy.save(weights))
    words = ["task", "create", TASK, "--model", str(model), "--rank", str(case.r)]
    words += ["--sketch-sizes", str(case.k), "--rounds", str(case.rounds), "--seed", _SEED]
    words += ["--update-encoding", "wire"]
    command(*words, "--cohort-size", str(case.devices), state=state)


def enrol(state: Path, address: str, count: int) -> list[Identity]:
    """Let new devices in."""
    token = command("token", "create", state=state)["enrolment_token"]
    identities = []
    for position in range(count):
        key = make_private_key()
        enrolment = Transport(address).enrol(token, f"d{position}", DeviceKey(key))
        device_id = enrolment.device_id
        identities.append(
            Identity(server=address, device_id=device_id, private_key=key, name=f"d{position}")
        )
    return identities


class EdgeDevices:
    """A process for every device, until the task is finished.

    Args:
        identities: Of the devices; their server is where they connect.
        case: What they do.
    """

    def __init__(self, identities: list[Identity], case: Case) -> None:
        self._processes = [
            _start_device(identity, case, position) for position, identity in enumerate(identities)
        ]

    def __enter__(self) -> EdgeDevices:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for process in self._processes:
            process.kill()
            process.wait()

    @property
    def are_done(self) -> bool:
        """Say whether every device was told that the task is finished."""
        return all(process.poll() is not None for process in self._processes)

    def finish(self) -> None:
        """Wait until they are done."""
        wait_until(lambda: self.are_done, _PATIENCE_S)
        if any(process.returncode for process in self._processes):
            raise SystemExit("a device of edge-server failed; its error is above")


def measure_edge(case: Case, scratch: Path) -> Measured:
    """Run one case on our server."""
    state = scratch / "edge"
    state.mkdir()
    create_task(state / "state", case)
    flags = ("--poll-s", _SHORT_POLL_S) if case.has_short_polls else ()
    with EdgeServer(state / "state", flags=flags) as server, ByteRelay(server.port) as relay:
        identities = enrol(server.state, f"http://127.0.0.1:{relay.port}", case.devices)
        with ServerWatch(server.pid) as watch:
            time.sleep(1.0)
            began_at = time.time()
            with EdgeDevices(identities, case) as devices:
                devices.finish()
        _, *versions = server.results()
        results_at = [began_at, *(float(version["created_at"]) for version in versions)]
        return summarize(NAME, case, results_at, watch, relay)


def wait_until(condition: Callable[[], object], patience_s: float) -> bool:
    """Look until a condition holds; say whether it did in time."""
    deadline = time.monotonic() + patience_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def _start_device(identity: Identity, case: Case, position: int) -> subprocess.Popen[bytes]:
    role = Role(
        identity=identity,
        task=TASK,
        k=case.k,
        position=position,
        think_s=case.think_s,
        think_in_round=case.think_in_round if position % 2 else 0,
    )
    process = subprocess.Popen(
        [sys.executable, "-m", "bench.made_up_device"], stdin=subprocess.PIPE
    )
    if process.stdin is not None:
        process.stdin.write(msgspec.json.encode(role))
        process.stdin.close()
    return process
