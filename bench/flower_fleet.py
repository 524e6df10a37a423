"""Flower's SuperLink and SuperNodes as real processes, for ``bench.against_flower``."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

import psutil
import requests

from bench.byte_relay import ByteRelay
from bench.edge_fleet import wait_until
from bench.flower_cases import Case, Measured, summarize
from bench.flower_environment import variables
from bench.server_watch import ServerWatch

NAME = "Flower"

_APP = Path(__file__).parent / "flower_app"
_JOINING_S = 180.0
_MOST_S = 120.0


class FlowerFleet:
    """A SuperLink, and a SuperNode for every device, in deployment mode without TLS.

    Args:
        commands: Folder of Flower's commands.
        scratch: Empty folder for its files.
        case: Its devices and what they do.
        flags: Of the SuperLink, other than the defaults.
        has_own_executor: Whether what starts the app on the server is a process beside the
            SuperLink, which may outlive it, or its child as by default.
    """

    def __init__(
        self,
        commands: Path,
        scratch: Path,
        case: Case,
        flags: Sequence[str] = (),
        has_own_executor: bool = False,
    ) -> None:
        self._commands = commands
        self._scratch = scratch
        self._case = case
        self._flags = flags
        self._has_own_executor = has_own_executor
        self.port = _free_port()
        home = scratch / "home"
        home.mkdir()
        (home / "config.toml").write_text(
            '[superlink]\ndefault = "bench"\n\n'
            f'[superlink.bench]\naddress = "127.0.0.1:{self.port}"\ninsecure = true\n',
            encoding="utf-8",
        )
        self._environment = variables(commands, home, case.has_short_polls)
        self._started: list[subprocess.Popen[bytes]] = []
        self._server: subprocess.Popen[bytes] | None = None
        self._executor: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> FlowerFleet:
        self.start_server()
        if self._has_own_executor:
            self.start_executor()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for process in self._started:
            _kill_tree(process)

    @property
    def pid(self) -> int:
        """Of the SuperLink that runs now."""
        if self._server is None:
            raise SystemExit("the SuperLink is not running")
        return self._server.pid

    def start_server(self) -> float:
        """Start the SuperLink; return the seconds until it answered."""
        began = time.perf_counter()
        address = ("--host", "127.0.0.1", "--port", str(self.port))
        isolation = ("--isolation", "process" if self._has_own_executor else "subprocess")
        own = ("--insecure", "--disable-runtime-dependency-installation", *isolation, *self._flags)
        self._server = self._start("superlink.log", "flower-superlink", *own, *address)
        if not wait_until(lambda: _answers(self.port), _JOINING_S):
            raise SystemExit(f"the SuperLink does not answer: see {self._scratch}/superlink.log")
        return time.perf_counter() - began

    def start_executor(self) -> None:
        """Start what starts the app of the server, as a process beside the SuperLink."""
        address = ("--runtime-api-address", f"127.0.0.1:{self.port}")
        self._executor = self._start("superexec.log", "flower-superexec", "--insecure", *address)

    def start_devices(self, port: int) -> None:
        """Start every SuperNode and wait until all have joined the server behind ``port``."""
        for position in range(self._case.devices):
            self._start(
                f"device{position}.log",
                *("flower-supernode", "--insecure", "--superlink", f"127.0.0.1:{port}"),
                *("--port", str(_free_port()), "--node-config", f"position={position}"),
            )
        if not wait_until(lambda: self._joined() == self._case.devices, _JOINING_S):
            raise SystemExit(f"not all SuperNodes joined: see {self._scratch}")

    def submit(self) -> None:
        """Start the run."""
        shapes = self._scratch / "shapes.json"
        shapes.write_text(json.dumps(self._case.flower_shapes()), encoding="utf-8")
        settings = {
            "shapes": str(shapes),
            "results": str(self._results),
            "rounds": self._case.rounds,
            "devices": self._case.devices,
            "think-s": self._case.think_s,
            "think-in-round": self._case.think_in_round,
        }
        text = " ".join(f"{name}={json.dumps(value)}" for name, value in settings.items())
        self._ask("run", str(_APP), "bench", "--run-config", text)

    def results_at(self) -> list[float]:
        """Return when the run started and when each of its results was there."""
        if not self._results.exists():
            return []
        lines = self._results.read_text(encoding="utf-8").splitlines()
        return [float(json.loads(line)["at"]) for line in lines]

    def status(self) -> str:
        """Return what Flower says of the run, such as ``finished:failed``, with its reason."""
        run = json.loads(self._ask("list", "--format", "json"))["runs"][0]
        reason = run.get("status-details", "N/A")
        return str(run["status"]) if reason == "N/A" else f"{run['status']} ({reason})"

    def kill_server(self) -> None:
        """``kill -9`` of the SuperLink alone: what it started may do what it can."""
        os.kill(self.pid, signal.SIGKILL)
        if self._server is not None:
            self._server.wait()

    def kill_executor(self) -> None:
        """``kill -9`` of what runs beside the SuperLink: the executor, and the app it started."""
        if self._executor is not None:
            _kill_tree(self._executor)

    def sent(self, position: int) -> int:
        """Return how many updates a device has sent, by its own log."""
        return self._log(f"device{position}.log").count("Sent successfully")

    @property
    def _results(self) -> Path:
        return self._scratch / "results.jsonl"

    def _joined(self) -> int:
        devices = range(self._case.devices)
        return sum("SuperNode ID" in self._log(f"device{i}.log") for i in devices)

    def _log(self, name: str) -> str:
        return (self._scratch / name).read_text(encoding="utf-8", errors="replace")

    def _start(self, log: str, *words: str) -> subprocess.Popen[bytes]:
        with (self._scratch / log).open("ab") as output:
            process = subprocess.Popen(
                [str(self._commands / words[0]), *words[1:]],
                stdout=output,
                stderr=subprocess.STDOUT,
                env=self._environment,
            )
        self._started.append(process)
        return process

    def _ask(self, *words: str) -> str:
        done = subprocess.run(
            [str(self._commands / "flwr"), *words],
            capture_output=True,
            text=True,
            env=self._environment,
            check=False,
        )
        if done.returncode:
            raise SystemExit(f"flwr {words[0]}: {done.stdout}{done.stderr}")
        return done.stdout


def measure_flower(commands: Path, case: Case, scratch: Path) -> Measured:
    """Run one case on Flower, for as long as there is time."""
    folder = scratch / "flower"
    folder.mkdir()
    with FlowerFleet(commands, folder, case) as fleet, ByteRelay(fleet.port) as relay:
        fleet.start_devices(relay.port)
        with ServerWatch(fleet.pid) as watch:
            fleet.submit()
            began_at = time.time()
            wait_until(lambda: len(fleet.results_at()) > case.rounds, _MOST_S)
            results_at = fleet.results_at() or [began_at]
            return summarize(NAME, case, results_at, watch, relay)


def _answers(port: int) -> bool:
    try:
        return requests.get(f"http://127.0.0.1:{port}/health", timeout=2).ok
    except requests.RequestException:
        return False


def _kill_tree(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is not None:
        return  # its number may be somebody else's by now
    try:
        family = psutil.Process(process.pid).children(recursive=True)
    except psutil.Error:
        family = []
    for member in family:
        try:
            member.kill()
        except psutil.Error:
            continue
    process.kill()
    process.wait()


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
