"""The agent: one thread that starts, suspends, resumes and restarts the training process."""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from edge_sdk.agent.child import Child
from edge_sdk.agent.eligibility import Eligibility, Verdict
from edge_sdk.agent.only_one import OnlyOne
from edge_sdk.agent.policy import Policy
from edge_sdk.agent.status import State, Status, write_status

if TYPE_CHECKING:
    from edge_sdk.agent.senses import Senses

log = logging.getLogger("edge_sdk")

LOOK_EVERY_S = 0.25
"""How often the rules are looked at: a change stops or resumes training within twice that."""

MOST_FAILURES = 6
"""In a row, without a round in between, after which an agent gives up."""

_FIRST_WAIT_S, _LONGEST_WAIT_S = 1.0, 300.0
_MEMORY_WAIT_S, _MEMORY_CALM_S = 30.0, 600.0
_WRITE_EVERY_S = 1.0
_END_S = 10.0
_MOVED = ("uploaded_bytes", "downloaded_bytes")
_TOLD = {"round_number", "k", "step", "steps", "loss", "version", *_MOVED}

EventKind = Literal["state", "round", "log", "failure"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something an app may want to know.

    Attributes:
        kind: ``state``: the status has another state or other reasons. ``round``: a round ended.
            ``log``: a line for people. ``failure``: the training process failed, or was killed.
        message: For people.
        status: After it.
        facts: Of a round, those of :class:`edge_sdk.rounds.round_loop.RoundResult`; else empty.
    """

    kind: EventKind
    message: str
    status: Status
    facts: dict[str, Any]


class Supervisor:
    """Keeps a training process at work while the rules allow it.

    Args:
        settings: Of the training process, see :mod:`edge_sdk.agent.trainer`.
        policy: When it may train.
        state_folder: Of the device; one agent at a time.
        on_event: Called on the agent's thread; what it raises is logged and harms nothing.
        senses: What the rules look at; None takes this device's sensors.
        other_cpu_s: Returns the processor seconds of more processes that are not the owner's.
    """

    def __init__(
        self,
        settings: dict[str, Any],
        policy: Policy,
        state_folder: Path,
        on_event: Callable[[Event], None] | None = None,
        senses: Senses | None = None,
        other_cpu_s: Callable[[], float] = lambda: 0.0,
    ) -> None:
        self._settings = {**settings, "yields": policy.yields}
        self._state = state_folder
        self._on_event = on_event
        self._other_cpu_s = other_cpu_s
        self._policy = policy
        self._senses = senses
        self._status = Status(
            since=time.time(), server=settings.get("server"), task=settings.get("task")
        )
        self._child: Child | None = None
        self._told: dict[str, Any] = {}
        self._phase: State = "starting"
        self._trouble: tuple[str, ...] = ()
        self._failure: dict[str, Any] | None = None
        self._moved_before = (0, 0)
        self._ended_cpu_s = 0.0
        self._failures = 0
        self._not_before = 0.0
        self._paused_at: float | None = None
        self._gave_memory_at: float | None = None
        self._memory_wait_s = 0.0
        self._written_at = 0.0
        self._is_paused_by_app = False
        self._outcome: tuple[State, str] | None = None
        self._stopping = threading.Event()
        self._wake = threading.Event()
        self._lock = OnlyOne(state_folder)
        self._thread = threading.Thread(target=self._run, name="edge-sdk agent", daemon=True)
        self._thread.start()

    @property
    def status(self) -> Status:
        """What it is doing; at most a quarter of a second old."""
        return self._status

    @property
    def is_over(self) -> bool:
        """Whether the task is finished, or has failed for good."""
        return self._outcome is not None

    def pause(self, is_paused: bool) -> None:
        """Suspend training, or let it go on; returns at once, takes effect within a moment."""
        self._is_paused_by_app = is_paused
        self._wake.set()

    def stop(self) -> None:
        """End training; what was done of a round stays in the journal."""
        self._stopping.set()
        self._wake.set()
        if self._thread is not threading.current_thread():
            self._thread.join(_END_S)

    def join(self, timeout_s: float | None) -> bool:
        """Wait for the end; return whether it has come. On the agent's own thread it has not."""
        if self._thread is threading.current_thread():
            return False
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _run(self) -> None:
        try:
            eligibility = Eligibility(self._policy, self._senses or self._this_device())
            while not self._stopping.is_set() and self._outcome is None:
                self._look(eligibility.check())
                self._wake.wait(LOOK_EVERY_S)
                self._wake.clear()
        except Exception:  # the host app must not notice
            log.exception("the agent ended by a mistake of its own")
            self._outcome = "failed", "the agent ended by a mistake of its own: see the log"
        finally:
            try:
                self._end_child()
                state, reason = self._outcome or ("stopped", "")
                self._say(state, (reason,) if reason else ())
                write_status(self._state, self._status)
            finally:
                self._lock.release()

    def _this_device(self) -> Senses:
        """Return this device's sensors, imported on the agent's thread: the host waits for none."""
        from edge_sdk.agent.senses import ThisDevice

        asks_for_input = self._policy.min_input_idle_s is not None
        return ThisDevice(self._state, self._own_cpu_s, asks_for_input=asks_for_input)

    def _look(self, checked: list[Verdict]) -> None:
        """Bring the training process to where the rules want it, once."""
        self._status = replace(self._status, verdicts=tuple(checked))
        verdicts = [found for found in checked if not found.may_train]
        if self._is_paused_by_app:
            verdicts.insert(0, Verdict(rule="app", may_train=False, reason="paused by the app"))
        if self._child is not None:
            self._hear(self._child)
        if self._outcome is not None:
            return
        if verdicts:
            self._hold(verdicts)
            self._say("paused", _reasons(verdicts), _rules(verdicts))
            return
        self._paused_at = None
        if self._child is None and time.monotonic() >= self._not_before:
            self._phase, self._told, self._failure, self._trouble = "starting", {}, None, ()
            self._child = Child(self._settings, self._state / "agent.log")
        elif self._child is not None and self._child.is_suspended:
            self._child.resume()
        if self._child is not None:
            self._say(self._phase, self._trouble)
        elif self._status.state != "retrying":
            self._say("retrying", self._status.reasons)

    def _hold(self, verdicts: list[Verdict]) -> None:
        """Suspend the training process; take its memory back if it is wanted, or after long."""
        now = time.monotonic()
        self._paused_at = self._paused_at or now
        if self._child is None:
            return
        if self._child.has_begun and not self._child.is_suspended:
            self._child.suspend()
        is_memory_wanted = any(found.needs_memory for found in verdicts)
        if is_memory_wanted:
            self._wait_longer_for_memory(now)
        if is_memory_wanted or now - self._paused_at > self._policy.keeps_memory_s:
            self._end_child()

    def _wait_longer_for_memory(self, now: float) -> None:
        """Come back at once the first time; who is sent away again soon after waits longer."""
        is_again = self._gave_memory_at is not None and now - self._gave_memory_at < _MEMORY_CALM_S
        self._memory_wait_s = max(_MEMORY_WAIT_S, 2 * self._memory_wait_s) if is_again else 0.0
        self._gave_memory_at = now
        self._not_before = now + min(self._memory_wait_s, _LONGEST_WAIT_S)

    def _hear(self, child: Child) -> None:
        """Take in what the training process told, and whether it ended."""
        has_ended = child.exit_status is not None
        for told in child.events(is_last=has_ended):
            kind = told.pop("event", "")
            if kind == "round":
                self._count(told)
            elif kind == "log":
                self._emit("log", str(told.get("message", "")))
            elif kind == "finished":
                self._outcome = "finished", ""
            elif kind == "failed":
                self._failure = told
            else:
                self._phase = kind
                self._trouble = (str(told["trouble"]),) if "trouble" in told else ()
                self._told.update(self._in_all(told))
        if has_ended:
            status = child.exit_status
            self._end_child()
            if self._outcome is None:
                self._fail(self._failure, status)

    def _in_all(self, told: dict[str, Any]) -> dict[str, Any]:
        """Add to the bytes of this process those of the ones before it."""
        told = {name: value for name, value in told.items() if name in _TOLD}
        more = zip(_MOVED, self._moved_before, strict=True)
        return {**told, **{name: told[name] + before for name, before in more if name in told}}

    def _count(self, facts: dict[str, Any]) -> None:
        self._failures = 0
        counted = int(bool(facts.get("counted")))
        self._status = replace(
            self._status,
            rounds_counted=self._status.rounds_counted + counted,
            update_bytes=int(facts.get("update_bytes", 0)),
        )
        self._emit("round", f"round {facts.get('round_number')} is done", facts)

    def _fail(self, failure: dict[str, Any] | None, exit_status: int | None) -> None:
        """Try again later, longer every time, or give up; a server that is away is waited for."""
        is_outage = failure is not None and failure["is_outage"]
        self._failures = max(1, self._failures) if is_outage else self._failures + 1
        if failure is None:
            crashes = self._status.crashes + 1
            self._status = replace(self._status, crashes=crashes)
            message = f"the training process {_how(exit_status)}: see {self._state / 'agent.log'}"
        else:
            message = str(failure["message"])
        self._emit("failure", message)
        if (failure is not None and failure["is_for_good"]) or self._failures >= MOST_FAILURES:
            self._outcome = "failed", message
            return
        wait_s = min(_FIRST_WAIT_S * 2 ** (self._failures - 1), _LONGEST_WAIT_S)
        self._not_before = time.monotonic() + wait_s * random.uniform(0.5, 1.0)  # noqa: S311 - jitter
        self._say("retrying", (message,))

    def _end_child(self) -> None:
        if self._child is None:
            return
        child, self._child = self._child, None
        if child.exit_status is None:
            self._ended_cpu_s += child.cpu_s
            child.kill()
        child.close()
        self._moved_before = (self._status.uploaded_bytes, self._status.downloaded_bytes)

    def _own_cpu_s(self) -> float:
        now = self._child.cpu_s if self._child is not None else 0.0
        return self._ended_cpu_s + now + self._other_cpu_s()

    def _say(
        self, state: State, reasons: tuple[str, ...] = (), rules: tuple[str, ...] = ()
    ) -> None:
        """Renew the status, and tell the app and the disk if it has changed."""
        old, child = self._status, self._child
        is_new = (state, rules) != (old.state, old.rules)
        self._status = replace(
            old,
            **self._told,
            state=state,
            since=time.time() if is_new else old.since,
            reasons=reasons,
            rules=rules,
            pid=child.pid if child is not None else None,
            rss_bytes=child.rss_bytes if child is not None else 0,
        )
        if is_new:
            self._emit("state", "; ".join(reasons))
        now = time.monotonic()
        if is_new or now - self._written_at >= _WRITE_EVERY_S:
            self._written_at = now
            write_status(self._state, self._status)

    def _emit(self, kind: EventKind, message: str, facts: dict[str, Any] | None = None) -> None:
        if self._on_event is None:
            return
        event = Event(kind=kind, message=message, status=self._status, facts=facts or {})
        try:
            self._on_event(event)
        except Exception:  # a mistake of the app's is no reason to stop
            log.exception("the app's on_event failed on a %s event", kind)


def _reasons(verdicts: list[Verdict]) -> tuple[str, ...]:
    return tuple(found.reason for found in verdicts)


def _rules(verdicts: list[Verdict]) -> tuple[str, ...]:
    return tuple(found.rule for found in verdicts)


def _how(exit_status: int | None) -> str:
    if exit_status is not None and exit_status < 0:
        return f"was ended by signal {-exit_status}"
    return f"ended with status {exit_status}"
