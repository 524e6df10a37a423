"""Run one simulation from its first round, or where it was interrupted, to its last."""

from __future__ import annotations

import hashlib
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import lru_cache
from pathlib import Path

import msgspec
from msgspec.structs import replace

from edge_sdk.errors import ConfigError, LossDiverged
from edge_sdk.files.whole_file import write_whole
from server.methods import method_of
from server.methods.cost import adapter_memory_bytes
from server.methods.method import GlobalModel
from simulation.checkpoint import Checkpoint, checkpoint_path, read_checkpoint, write_checkpoint
from simulation.config import ModelConfig, RunConfig
from simulation.coordinator_server import CoordinatorServer
from simulation.coverage import Coverage
from simulation.fleet import Fleet
from simulation.learners import StandIns, Students
from simulation.method_server import MethodServer
from simulation.planned import planned
from simulation.results import Result, RoundRow, summarize
from simulation.rounds import play_round
from simulation.task import make_task

Progress = Callable[[RoundRow], None]


def run_simulation(config: RunConfig, out: Path, on_round: Progress = lambda _row: None) -> Result:
    """Run a simulation and write what came of it; a finished one is read, not run again.

    Args:
        config: What to run.
        out: JSON file of the result; beside it, while it runs, what an interrupted one needs.
        on_round: Told of every round.

    Raises:
        ConfigError: The file says what does not go together, or the result that is there is of
            another configuration.
    """
    if out.exists():
        return _finished(config, out)
    began = time.process_time()
    is_diverged = False
    with Run(config, out) as run:
        try:
            while not run.is_over:
                on_round(run.play())
        except LossDiverged:
            is_diverged = True
        result = run.result(time.process_time() - began, is_diverged)
    write_whole(out, msgspec.json.format(msgspec.json.encode(result), indent=1))
    checkpoint_path(out).unlink(missing_ok=True)
    return result


class Run:
    """A simulation between two rounds.

    Args:
        config: What to run.
        out: Where its result will be.
    """

    def __init__(self, config: RunConfig, out: Path) -> None:
        self._config = config
        self._out = out
        self._undo = ExitStack()
        self._learner = _learner(config)
        self._fleet = _fleet(config, self._learner)
        self._spec = make_task(config, self._learner, self._fleet)
        kept = read_checkpoint(out, config_digest(config))
        self._method = method_of(config.method)
        self._server = self._make_server(kept)
        self._coverage = Coverage(len(self._spec.adapter.layers), self._spec.adapter.r)
        if kept is None:
            self._rows, self._draws = list[RoundRow](), 0
            self._start = self._learner.evaluate(self._server.model(), self._spec)
        else:
            self._rows, self._draws, self._start = list(kept.rows), kept.draws, kept.start
            self._coverage.ages = kept.ages.copy()

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *_: object) -> None:
        """Let go of what the server holds; the checkpoint stays."""
        self._undo.close()

    @property
    def is_over(self) -> bool:
        """Whether all rounds are played, or as many as the upload budget allows."""
        budget = self._config.upload_budget_bytes
        is_spent = budget is not None and self._sent() >= budget
        return len(self._rows) >= self._config.rounds or is_spent

    def play(self) -> RoundRow:
        """Play the next round.

        Raises:
            LossDiverged: The step size is too large for this fleet.
        """
        number = len(self._rows) + 1
        now = self._rows[-1].ended_at if self._rows else 0.0
        played, self._draws = play_round(
            self._server, self._learner, self._fleet, number, now, self._draws
        )
        closed = self._server.close(number, played.ended_at)
        trained, oldest = self._coverage.count(played.works)
        row = RoundRow(
            number=number,
            began_at=played.began_at,
            ended_at=played.ended_at,
            assigned=played.assigned,
            accepted=played.accepted,
            dropped=played.dropped,
            late=played.late,
            uplink_bytes=played.uplink_bytes,
            downlink_bytes=played.downlink_bytes,
            total_uplink_bytes=self._sent() + played.uplink_bytes,
            train_loss=played.loss,
            trained_ranks=trained,
            oldest_rank=oldest,
            aggregation_error=closed.aggregation_error,
            server_s=closed.server_s,
            evaluation=None,
        )
        self._rows.append(row)
        if self.is_over or number % self._config.evaluate_every == 0:
            tried = self._learner.evaluate(self._server.model(), self._spec)
            self._rows[-1] = row = replace(row, evaluation=tried)
        self._keep()
        return row

    def model(self) -> GlobalModel:
        """Return the global model after the rounds so far."""
        return self._server.model()

    def result(self, cpu_s: float, is_diverged: bool) -> Result:
        """Return what the rounds so far came to."""
        affordable = sorted({int(k) for k in self._fleet.k})
        largest = min(affordable[-1], self._spec.adapter.r)
        memory_bytes = adapter_memory_bytes(self._method, self._spec, largest, 1)
        return Result(
            config_digest=config_digest(self._config),
            config=self._config,
            r=self._spec.adapter.r,
            affordable=affordable,
            start=self._start,
            rounds=self._rows,
            summary=summarize(self._rows, memory_bytes, cpu_s, is_diverged),
        )

    def _make_server(self, kept: Checkpoint | None) -> MethodServer | CoordinatorServer:
        if self._config.server == "method":
            state = kept.state if kept else None
            return MethodServer(self._spec, self._method, self._config.seed, state)
        scratch = self._undo.enter_context(tempfile.TemporaryDirectory(prefix="edge-simulation-"))
        server = CoordinatorServer(self._spec, self._config.seed, Path(scratch))
        self._undo.callback(server.close_store)
        return server

    def _sent(self) -> int:
        return self._rows[-1].total_uplink_bytes if self._rows else 0

    def _keep(self) -> None:
        if self._config.learner is None or not isinstance(self._server, MethodServer):
            return  # rounds of stand-ins are faster than a disk
        kept = Checkpoint(
            rows=self._rows,
            state=self._server.state,
            draws=self._draws,
            ages=self._coverage.ages,
            start=self._start,
        )
        write_checkpoint(self._out, config_digest(self._config), kept)


def config_digest(config: RunConfig) -> str:
    """Return the SHA-256 of a configuration, 64 hex digits."""
    return hashlib.sha256(msgspec.json.encode(config, order="sorted")).hexdigest()


def _finished(config: RunConfig, out: Path) -> Result:
    try:
        done = msgspec.json.decode(out.read_bytes(), type=Result)
    except msgspec.DecodeError as error:
        raise ConfigError(f"{out} is no result of a simulation: {error}") from error
    if done.config_digest != config_digest(config):
        raise ConfigError(f"{out} is the result of another configuration: remove it first")
    return done


def _learner(config: RunConfig) -> StandIns | Students:
    if config.learner is None:
        return StandIns(config.stand_in)
    training = config.training_spec()
    return _students(
        config.learner, config.adapter.target_modules, training.max_length, training.batch_size
    )


@lru_cache(maxsize=1)
def _students(
    learner: ModelConfig, targets: tuple[str, ...] | None, max_length: int, batch_size: int
) -> Students:
    """Keep the model of the last run: the next one in this process mostly has the same."""
    return Students(learner, targets, max_length, batch_size)


def _fleet(config: RunConfig, learner: StandIns | Students) -> Fleet:
    """Return the fleet, what its devices can afford planned where the file does not say."""
    count = config.fleet.devices or learner.devices
    if count is None:
        raise ConfigError("a fleet of stand-ins needs a number of devices")
    if learner.devices is not None and count > learner.devices:
        raise ConfigError(f"{count} devices, but data for {learner.devices}: write more files")
    shape = learner.shape if isinstance(learner, Students) else None
    classes = tuple(planned(x, config, shape, learner.layers) for x in config.fleet.classes)
    return Fleet(replace(config.fleet, classes=classes), count, config.seed)
