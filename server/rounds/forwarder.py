"""One background thread that keeps a relay and its upstream server together."""

from __future__ import annotations

import logging
import socket
import threading
import time

from edge_sdk.errors import EdgeError, ServerBusy
from edge_sdk.identity.identity import load_identity
from edge_sdk.network.enrolment import join
from edge_sdk.network.transport import Transport
from edge_sdk.wire.task import TaskSpec
from server.rounds.relay import Relay
from server.settings.settings import Settings

log = logging.getLogger(__name__)

_LONGEST_PAUSE_S = 60.0
_STOPPING_S = 5.0
_LIST_EVERY_S = 30.0


class Forwarder:
    """Takes a step of every task when it is due, and joins the upstream server before the first.

    Args:
        relay: Knows what to do.
        settings: Name the upstream server; what fails is tried again after twice as long, up to
            a minute.
    """

    def __init__(self, relay: Relay, settings: Settings) -> None:
        self._relay = relay
        self._settings = settings
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="forwarder", daemon=True)
        self._upstream: Transport | None = None
        self._tasks: dict[str, TaskSpec] = {}
        self._listed_at = 0.0
        self._due: dict[str, float] = {}
        self._pauses_s: dict[str, float] = {}

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Let the thread finish the step it is at; one that waits for an answer is left behind."""
        self._stopping.set()
        self._thread.join(_STOPPING_S)

    def _run(self) -> None:
        while not self._stopping.wait(self._settings.tick_s):
            if self._is_due("", has_news=False) and self._list_tasks():
                for spec in list(self._tasks.values()):
                    self._take_step(spec)

    def _list_tasks(self) -> bool:
        """Learn the tasks of the upstream server now and then; say whether they are known."""
        if self._tasks and time.monotonic() < self._listed_at + _LIST_EVERY_S:
            return True
        try:
            upstream = self._joined()
            names = upstream.tasks()
            self._tasks = {name: self._tasks.get(name) or upstream.task(name) for name in names}
        except Exception as error:
            self._fail("", "the upstream server cannot be joined now", error)
            return False
        self._succeed("", 0.0)
        self._listed_at = time.monotonic()
        return True

    def _joined(self) -> Transport:
        if self._upstream is None:
            settings = self._settings
            token = settings.upstream_token or None
            folder = settings.upstream_folder
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            known = load_identity(folder)
            if known is None or known.server != settings.upstream:
                self._relay.forget()
            identity = join(folder, settings.upstream, token, socket.gethostname()[:100])
            self._upstream = Transport(identity.server, identity)
            log.info("this server is a relay of %s", identity.server)
        return self._upstream

    def _take_step(self, spec: TaskSpec) -> None:
        if self._stopping.is_set():
            return
        try:
            has_news = spec.name not in self._pauses_s and self._relay.is_due(spec.name)
            if self._is_due(spec.name, has_news=has_news):
                self._succeed(spec.name, self._relay.step(self._joined(), spec))
        except Exception as error:
            self._fail(spec.name, f"task {spec.name} cannot be relayed now", error)

    def _is_due(self, key: str, *, has_news: bool) -> bool:
        return has_news or time.monotonic() >= self._due.get(key, 0.0)

    def _succeed(self, key: str, pause_s: float) -> None:
        self._pauses_s.pop(key, None)
        self._due[key] = time.monotonic() + pause_s

    def _fail(self, key: str, text: str, error: Exception) -> None:
        pause_s = min(2 * self._pauses_s.get(key, self._settings.poll_s), _LONGEST_PAUSE_S)
        self._pauses_s[key] = pause_s
        wanted = error.retry_after_s if isinstance(error, ServerBusy) else 0.0
        self._due[key] = time.monotonic() + max(pause_s, wanted)
        if isinstance(error, EdgeError):
            log.warning("%s: %s", text, error)
        else:
            log.error("%s", text, exc_info=error)
