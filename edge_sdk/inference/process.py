"""The inference process of a host app: requests in on stdin, events out on stdout, a line each.

Started with ``python -m edge_sdk.inference.process --model FOLDER``. Texts are made one after the
other; an adapter is swapped, and a text stopped, while one is being made. The process ends when its
stdin does, so it never outlives its host. It never imports torch.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import queue
import sys
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO, get_args

import msgspec

from edge_sdk.errors import EdgeError, MalformedMessage
from edge_sdk.inference.messages import (
    Classify,
    Done,
    Event,
    Failed,
    Generate,
    Ready,
    Request,
    Scores,
    Stop,
    Swap,
    Swapped,
    Text,
)
from edge_sdk.inference.sampling import Sampling
from edge_sdk.inference.session import Session, open_session
from edge_sdk.inference.weight_format import WeightFormat
from edge_sdk.wire.task import TaskType
from edge_sdk.wire.typed_json import decode_json

_log = logging.getLogger(__name__)


class Process:
    """Serves one host.

    Args:
        session: The open model.
        out: Where events go.
    """

    def __init__(self, session: Session, out: BinaryIO) -> None:
        self._session = session
        self._out = out
        self._writing = threading.Lock()
        self._work: queue.SimpleQueue[Generate | Classify] = queue.SimpleQueue()
        self._open: set[str] = set()  # accepted, not answered to the end
        self._stopped: set[str] = set()

    def serve(self, lines: Iterable[bytes]) -> None:
        """Answer requests until there are no more; a text that is being made then is dropped."""
        threading.Thread(target=self._work_on, name="inference", daemon=True).start()
        self._send(Ready())
        for line in lines:
            request_id = ""
            try:
                request = _read(line)
                request_id = request.id
                self._accept(request)
            except EdgeError as error:
                self._send(Failed(id=request_id, code=error.code, message=str(error)))

    def _accept(self, request: Request) -> None:
        if isinstance(request, Swap):
            began = time.perf_counter()
            self._session.swap(None if request.adapter is None else Path(request.adapter))
            self._send(Swapped(id=request.id, seconds=time.perf_counter() - began))
        elif isinstance(request, Stop):
            self._stopped |= {request.id} & self._open
        else:
            self._open.add(request.id)
            self._work.put(request)

    def _work_on(self) -> None:
        while True:
            request = self._work.get()
            try:
                self._answer(request)
            except EdgeError as error:
                self._send(Failed(id=request.id, code=error.code, message=str(error)))
            except Exception as error:
                _log.exception("request %s failed", request.id)
                self._send(Failed(id=request.id, code=EdgeError.code, message=repr(error)))
            self._open.discard(request.id)
            self._stopped.discard(request.id)

    def _answer(self, request: Generate | Classify) -> None:
        if isinstance(request, Classify):
            scores = self._session.classify(request.text, request.choices)
            self._send(Scores(id=request.id, scores=scores))
            return
        pieces = self._session.generate(
            request.prompt,
            max_new_tokens=request.max_new_tokens,
            chat=request.chat,
            sampling=Sampling(
                temperature=request.temperature, top_p=request.top_p, seed=request.seed
            ),
        )
        for piece in pieces:
            if request.id in self._stopped:
                self._send(Done(id=request.id, reason="stopped"))
                return
            self._send(Text(id=request.id, text=piece))
        self._send(Done(id=request.id, reason="end"))

    def _send(self, event: Event) -> None:
        with self._writing:
            self._out.write(msgspec.json.encode(event) + b"\n")
            self._out.flush()


def main() -> int:
    """Open the model and serve; return 1 if it cannot be opened."""
    options = _parser().parse_args()
    events = _own_stdout()
    try:
        session = open_session(
            options.model,
            options.adapter,
            weight_format=options.format,
            task_type=options.task_type,
            threads=options.threads,
            cache=options.cache,
        )
    except EdgeError as error:
        failed = Failed(id="", code=error.code, message=str(error))
        events.write(msgspec.json.encode(failed) + b"\n")
        events.flush()
        return 1
    with contextlib.suppress(BrokenPipeError):  # the host is gone
        Process(session, events).serve(sys.stdin.buffer)
    return 0


def _own_stdout() -> BinaryIO:
    """Return stdout for events alone: what a library prints goes to stderr from now on."""
    events = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    return events


def _read(line: bytes) -> Request:
    try:
        return decode_json(line, Request)  # type: ignore[arg-type]
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise MalformedMessage(f"not a request: {error}") from error


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m edge_sdk.inference.process", description="Serve a host app."
    )
    parser.add_argument("--model", type=Path, required=True, help="folder of the base model")
    parser.add_argument("--adapter", type=Path, help="PEFT folder or adapter file")
    parser.add_argument("--format", choices=get_args(WeightFormat), default="nf4")
    parser.add_argument("--task-type", choices=get_args(TaskType))
    parser.add_argument("--threads", type=int, help="default: one per physical core")
    parser.add_argument("--cache", type=Path, help="folder of exports")
    return parser


if __name__ == "__main__":
    status = main()
    sys.stderr.flush()
    os._exit(status)  # at once: ending the interpreter under a running model aborts it
