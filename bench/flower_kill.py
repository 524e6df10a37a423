"""What survives ``kill -9`` of the server in the middle of a round: Flower's, and ours."""

from __future__ import annotations

import shutil
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from bench.byte_relay import ByteRelay
from bench.edge_fleet import (
    NAME as EDGE,
)
from bench.edge_fleet import (
    TASK,
    EdgeDevices,
    EdgeServer,
    create_task,
    enrol,
    wait_until,
)
from bench.flower_cases import KILLED, Case
from bench.flower_fleet import NAME as FLOWER
from bench.flower_fleet import FlowerFleet
from edge_sdk.errors import EdgeError
from edge_sdk.identity.identity import Identity
from edge_sdk.network.transport import Transport

_DOWN_S = 2.0
_REACH_ROUND_S = 120.0
_GO_ON_S = 120.0
_UNDER_WAY = ("pending", "starting", "running")


@dataclass(frozen=True, slots=True, kw_only=True)
class Survival:
    """What became of a run whose server was killed when half of a round's updates had come.

    Attributes:
        server: Whose.
        killed: Which processes.
        rounds: Asked for.
        finished_before: When it was killed.
        finished_after: In the end; of a run that failed, those of before are lost with it.
        accepted: Updates of that round that the server had when it was killed.
        counted: Of these, in the mean of their round in the end.
        restart_s: From the start of a new server to its first answer.
        next_result_s: From there to the next result, if there was one.
        verdict: What the server says of the run.
        is_exact: Whether the adapter is, to the bit, that of a run nobody disturbed; None if
            it was not compared.
    """

    server: str
    killed: str
    rounds: int
    finished_before: int
    finished_after: int
    accepted: int
    counted: int
    restart_s: float
    next_result_s: float | None
    verdict: str
    is_exact: bool | None

    @property
    def goes_on(self) -> bool:
        """Say whether every round was finished without anybody's help."""
        return self.finished_after == self.rounds

    def as_row(self) -> dict[str, Any]:
        """Return it for the JSON file."""
        return asdict(self)


def kill_flower(
    commands: Path, scratch: Path, is_everything_killed: bool, case: Case = KILLED
) -> Survival:
    """Kill a SuperLink that keeps its state in a database, and start it again on it.

    What starts the app of the server runs beside the SuperLink: below it, which is the default,
    both end when the SuperLink does.

    Args:
        commands: Folder of Flower's commands.
        scratch: For its files.
        is_everything_killed: Whether all processes of the server are killed and started again,
            as when the machine fails, or the SuperLink alone.
        case: What runs.
    """
    folder = scratch / f"flower-killed-{is_everything_killed}"
    folder.mkdir()
    database = ("--database", str(folder / "state.db"))
    quick = range(0, case.devices, 2)
    with (
        FlowerFleet(commands, folder, case, database, has_own_executor=True) as fleet,
        ByteRelay(fleet.port) as relay,
    ):
        fleet.start_devices(relay.port)
        fleet.submit()
        has_half = wait_until(
            lambda: all(fleet.sent(position) >= case.think_in_round for position in quick),
            _REACH_ROUND_S,
        )
        finished = max(0, len(fleet.results_at()) - 1)
        if not has_half or finished != case.think_in_round - 1:
            raise SystemExit(f"Flower had finished {finished} rounds when it was to be killed")
        fleet.kill_server()
        if is_everything_killed:
            fleet.kill_executor()
        time.sleep(_DOWN_S)
        restart_s = fleet.start_server()
        restarted_at = time.time()
        if is_everything_killed:
            fleet.start_executor()
        wait_until(lambda: not fleet.status().startswith(_UNDER_WAY), _GO_ON_S)
        verdict, results_at = fleet.status(), fleet.results_at()
    later = [at for at in results_at if at > restarted_at]
    return Survival(
        server=FLOWER,
        killed="all of the server" if is_everything_killed else "the SuperLink alone",
        rounds=case.rounds,
        finished_before=finished,
        finished_after=len(results_at) - 1,
        accepted=len(quick),
        counted=len(quick) if later else 0,
        restart_s=restart_s,
        next_result_s=later[0] - restarted_at if later else None,
        verdict=verdict,
        is_exact=None,
    )


def kill_edge(scratch: Path, case: Case = KILLED) -> Survival:
    """Kill our server, start it again, and compare with the same fleet in peace."""
    state = scratch / "edge-killed"
    create_task(state, case)
    with EdgeServer(state) as server:
        port = server.port
        identities = enrol(state, f"http://127.0.0.1:{port}", case.devices)
    shutil.copytree(state, scratch / "edge-in-peace")
    with EdgeServer(scratch / "edge-in-peace", port) as peace:
        with EdgeDevices(identities, replace(case, think_s=0.0)) as devices:
            devices.finish()
        expected = [version["digest"] for version in peace.results()]
    with EdgeServer(state, port) as server, EdgeDevices(identities, case) as devices:
        accepted, finished = _wait_for_half(identities[0], case)
        server.kill()
        time.sleep(_DOWN_S)
        restart_s = server.start()
        restarted_at = time.time()
        devices.finish()
        versions, rounds = server.results(), server.rounds()
    later = [v["created_at"] for v in versions if v["created_at"] > restarted_at]
    closed = [entry for entry in rounds if entry["state"] == "closed"]
    of_round = rounds[case.think_in_round - 1]["devices"]
    counted = sum(device["counted_in"] == case.think_in_round for device in of_round)
    return Survival(
        server=EDGE,
        killed="all of the server",
        rounds=case.rounds,
        finished_before=finished,
        finished_after=len(closed),
        accepted=accepted,
        counted=min(counted, accepted),
        restart_s=restart_s,
        next_result_s=later[0] - restarted_at if later else None,
        verdict="finished" if len(closed) == case.rounds else "not finished",
        is_exact=[version["digest"] for version in versions] == expected,
    )


def _wait_for_half(identity: Identity, case: Case) -> tuple[int, int]:
    """Return the updates that are there, and the rounds that are finished."""
    transport = Transport(identity.server, identity)

    def accepted() -> int:
        try:
            return transport.round_status(TASK, case.think_in_round).accepted
        except EdgeError:
            return 0  # the round is not there yet

    if not wait_until(lambda: accepted() >= case.devices // 2, _REACH_ROUND_S):
        raise SystemExit(
            f"round {case.think_in_round} of edge-server never had half of its updates"
        )
    return accepted(), len(transport.adapters(TASK)) - 1
