"""Agents of tests: a scripted device, a task that lasts, and waiting for a status."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import time as time_of_day
from pathlib import Path

import psutil

from edge_sdk.agent.policy import Policy
from edge_sdk.agent.senses import Sensed
from edge_sdk.agent.status import Status
from edge_sdk.client import EdgeClient
from edge_sdk.planning.allowance import Allowance
from tests.processes import ServerProcess

_numbers = itertools.count(1)

CALM = Sensed(
    local_time=time_of_day(3),
    battery_percent=90.0,
    is_on_mains=False,
    is_metered=False,
    other_cpu_percent=5.0,
    input_idle_s=1000.0,
    temperature_c=40.0,
    free_memory_bytes=8 << 30,
    free_disk_bytes=50 << 30,
)


class Script:
    """Senses that feel what a test says."""

    def __init__(self) -> None:
        self.felt = CALM

    def read(self) -> Sensed:
        return self.felt

    def feel(self, **what: object) -> None:
        self.felt = replace(CALM, **what)


@dataclass(frozen=True)
class LongTask:
    """One task, and what a client needs to take part in it."""

    server: ServerProcess
    name: str
    token: str
    data: Path
    state: Path

    def client(self, **more: object) -> EdgeClient:
        arguments: dict[str, object] = {
            "server": self.server.address,
            "task": self.name,
            "enrolment_token": self.token,
            "data": self.data,
            "state_folder": self.state,
            "policy": Policy.always(),
            "allowance": Allowance(threads=1, quantization="fp32"),
        }
        return EdgeClient(**{**arguments, **more})


def create_task(
    server: ServerProcess, model: Path, data: Path, state: Path, *, local_steps: int
) -> LongTask:
    name = f"t{next(_numbers)}"
    server.command(
        *("task", "create", name, "--model", str(model), "--rank", "4", "--seed", "5"),
        *("--sketch-sizes", "2", "--rounds", "1", "--cohort-size", "1"),
        *("--local-steps", str(local_steps), "--deadline", "86400"),
    )
    token = server.command("token", "create")["enrolment_token"]
    return LongTask(server, name, token, data, state)


def wait_for_status(
    client: EdgeClient, is_it: Callable[[Status], bool], within_s: float = 120.0
) -> Status:
    end = time.monotonic() + within_s
    while not is_it(status := client.status()):
        assert time.monotonic() < end, f"after {within_s} s it is {status}"
        time.sleep(0.02)
    return status


def wait_for_training(client: EdgeClient, within_s: float = 120.0) -> Status:
    return wait_for_status(client, lambda x: x.state == "training" and x.step > 0, within_s)


def cpu_s(pid: int) -> float:
    used = psutil.Process(pid).cpu_times()
    return used.user + used.system
