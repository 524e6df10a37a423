"""The inference process as the host app sees it: started once, asked from any thread."""

from __future__ import annotations

import contextlib
import itertools
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec
import psutil

from edge_sdk.errors import EdgeError, by_code
from edge_sdk.inference.messages import (
    Classify,
    Done,
    Event,
    Failed,
    Generate,
    Request,
    Scores,
    Stop,
    Swap,
    Text,
)
from edge_sdk.wire.typed_json import decode_json


class InferenceProcess:
    """A base model with an adapter, open in a process of its own.

    Args:
        base: Folder of the base model.
        adapter: PEFT folder; None uses the base alone.

    Raises:
        EdgeError: The model cannot be opened.
    """

    def __init__(self, base: Path, adapter: Path | None) -> None:
        command = [sys.executable, "-m", "edge_sdk.inference.process", "--model", str(base)]
        command += ["--adapter", str(adapter)] if adapter is not None else []
        self._process = subprocess.Popen(  # noqa: S603 - this interpreter and two paths
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={"OMP_WAIT_POLICY": "PASSIVE", **os.environ},
            start_new_session=os.name == "posix",
        )
        self._numbers = itertools.count(1)
        self._answers: dict[str, queue.SimpleQueue[Event | None]] = {}
        self._lock = threading.Lock()
        self._has_ended = False
        opened = self._await("")
        self._listener = threading.Thread(
            target=self._listen, name="edge-sdk inference", daemon=True
        )
        self._listener.start()
        self._next(opened)
        self._forget("")

    @property
    def is_alive(self) -> bool:
        """Whether it still serves."""
        return self._process.poll() is None

    @property
    def cpu_s(self) -> float:
        """Processor seconds used so far; 0 once it is gone."""
        try:
            used = psutil.Process(self._process.pid).cpu_times()
        except psutil.Error:
            return 0.0
        return float(used.user + used.system)

    def generate(
        self, prompt: str, *, max_new_tokens: int, chat: bool, temperature: float
    ) -> Iterator[str]:
        """Yield a text piece by piece; to stop asking stops it."""
        name, answers = self._new()
        request = Generate(
            id=name,
            prompt=prompt,
            max_new_tokens=max_new_tokens,
            chat=chat,
            temperature=temperature,
        )
        self._ask(request)
        is_done = False
        try:
            while True:
                event = self._next(answers)
                if isinstance(event, Text):
                    yield event.text
                elif isinstance(event, Done):
                    is_done = True
                    return
        finally:
            self._forget(name)
            if not is_done:
                with contextlib.suppress(EdgeError):
                    self._ask(Stop(id=name))

    def classify(self, text: str, choices: Sequence[str]) -> dict[str, float]:
        """Return the probability of each label."""
        name, answers = self._new()
        self._ask(Classify(id=name, text=text, choices=list(choices)))
        try:
            event = self._next(answers)
            return event.scores if isinstance(event, Scores) else {}
        finally:
            self._forget(name)

    def swap(self, adapter: Path | None) -> None:
        """Use another adapter from the next request on."""
        name, answers = self._new()
        self._ask(Swap(id=name, adapter=str(adapter) if adapter is not None else None))
        try:
            self._next(answers)
        finally:
            self._forget(name)

    def close(self) -> None:
        """End the process; a text that is being made ends with an error."""
        self._process.kill()
        self._listener.join()

    def _new(self) -> tuple[str, queue.SimpleQueue[Event | None]]:
        name = str(next(self._numbers))
        return name, self._await(name)

    def _await(self, name: str) -> queue.SimpleQueue[Event | None]:
        answers: queue.SimpleQueue[Event | None] = queue.SimpleQueue()
        with self._lock:
            self._answers[name] = answers
            if self._has_ended:
                answers.put(None)
        return answers

    def _forget(self, name: str) -> None:
        with self._lock:
            self._answers.pop(name, None)

    def _ask(self, request: Request) -> None:
        stdin = self._process.stdin
        assert stdin is not None  # noqa: S101 - a pipe was asked for
        line = msgspec.json.encode(request) + b"\n"
        try:
            with self._lock:
                stdin.write(line)
                stdin.flush()
        except (OSError, ValueError) as error:  # a value: the pipe is closed on this side too
            raise self._gone() from error

    def _next(self, answers: queue.SimpleQueue[Event | None]) -> Event:
        event = answers.get()
        if event is None:
            raise self._gone()
        if isinstance(event, Failed):
            raise by_code().get(event.code, EdgeError)(event.message)
        return event

    def _gone(self) -> EdgeError:
        return EdgeError(
            f"the inference process ended with status {self._process.poll()}: ask again, it is "
            "started anew"
        )

    def _listen(self) -> None:
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None  # noqa: S101 - pipes were asked for
        assert stdout is not None  # noqa: S101
        with contextlib.suppress(ValueError, OSError), stdout:
            for line in stdout:
                event: Event = decode_json(line, Event)  # type: ignore[arg-type]
                with self._lock:
                    waiting = self._answers.get(getattr(event, "id", ""))
                if waiting is not None:
                    waiting.put(event)
        with self._lock:
            self._has_ended = True
            for waiting in self._answers.values():
                waiting.put(None)
            with contextlib.suppress(OSError):
                stdin.close()  # one that still runs ends with it
        self._process.wait()
