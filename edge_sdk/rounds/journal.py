"""What a device has of a round, kept on disk so that a loss of power costs no work."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import math
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import numpy as np
import safetensors
import safetensors.numpy
from numpy.typing import NDArray

from edge_sdk.files.whole_file import write_whole
from edge_sdk.rounds.failpoints import Point, lose_power
from edge_sdk.training.progress import Progress, Steps
from edge_sdk.wire.messages import Assignment
from edge_sdk.wire.typed_json import decode_json

log = logging.getLogger("edge_sdk")

PROGRESS_EVERY_S = 3.0
"""Least time between two writes of the progress."""

PROGRESS_SHARE = 0.02
"""Of the training time that may go into them."""

KEPT_ASIDE = 3
"""Damaged files that are kept for people to look at."""

KEPT_JOURNALS = 4
"""Tasks whose work is kept; that of a task nobody returned to is removed first."""

_FOLDER, _ASIDE = "journal", "set-aside"
_FORMATS = {"<f4": "F32", "<f8": "F64"}
_DIGEST_BYTES = 32

_Part = bytes | memoryview
_Facts = TypeVar("_Facts")


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptWork:
    """What the slice belongs to.

    Attributes:
        id: Of the work, see :func:`work_id`.
        assignment: As the server gave it.
    """

    id: str
    assignment: Assignment


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptProgress:
    """What the values belong to, and :class:`edge_sdk.training.progress.Progress` without them."""

    id: str
    losses: list[float]
    step_s: list[float]
    longest: int


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptUpdate:
    """What is known of an update that is ready to be sent.

    Attributes:
        round_number: From 1.
        k: Ranks trained.
        loss: Mean training loss over the local steps.
        training_s: Wall time of the local steps.
        planned_bytes: Peak memory the plan predicted.
        peak_rss_bytes: Peak memory of the process that trained.
    """

    round_number: int
    k: int
    loss: float
    training_s: float
    planned_bytes: int
    peak_rss_bytes: int


def journal_folder(state_folder: Path, server: str, device_id: str, task: str) -> Path:
    """Return where the journal of one task is; of another device or server it is another one."""
    key = hashlib.sha256(f"{server}\n{device_id}\n{task}".encode()).hexdigest()[:16]
    return state_folder / _FOLDER / key


def work_id(work: Assignment, *more: str) -> str:
    """Return what two pieces of work share only if training them is the same.

    Args:
        work: Its round, version, sketch size, seed and hyper-parameters count; its deadline does
            not, which comes closer.
        more: Whatever else decides the result, such as the digests of the base and of the data.
    """
    facts = [work.task, work.round_number, work.adapter_version, work.k, work.seed]
    text = msgspec.json.encode([*facts, work.training, *more])
    return hashlib.sha256(text).hexdigest()


class Journal:
    """The slice, the progress and the finished update of one task's present round.

    Each is one file that is written whole, with a digest over all of it. One that is torn,
    changed or of another form is set aside, logged as a warning, and as good as missing. A disk
    that takes no more is no error either: the work goes on, and is lost if power is.

    Args:
        folder: Of this task, see :func:`journal_folder`; made when something is written.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._id = ""
        self._due_s = math.inf
        self._forget_others()
        self._remove_leftovers()

    def begin(self, id: str) -> None:
        """Go on with a piece of work, or with another one than before, whose files are removed."""
        found = self._read("work", KeptWork)
        if found is None or found[0].id != id:
            self.drop()
        self._id = id
        self._due_s = time.monotonic() + PROGRESS_EVERY_S

    def drop(self) -> None:
        """Remove what is unfinished, because its round went on without this device."""
        found = self._read("work", KeptWork)
        if found is not None:
            number = found[0].assignment.round_number
            log.warning("round %d went on without this device: its work is dropped", number)
        self._remove("progress", "work")

    def slice_body(self) -> bytes | None:
        """Return the tensor body that the work starts from, if it is here."""
        found = self._read("work", KeptWork)
        return found[1] if found is not None and found[0].id == self._id else None

    def progress(self) -> Progress | None:
        """Return how far the work came, if it is known."""
        found = self._read("progress", KeptProgress)
        if found is None or found[0].id != self._id:
            return None
        facts = found[0]
        try:
            arrays: dict[str, NDArray[Any]] = safetensors.numpy.load(found[1])
        except (safetensors.SafetensorError, ValueError, KeyError) as error:
            self._set_aside("progress", str(error))
            return None
        return Progress(facts.losses, facts.step_s, facts.longest, arrays)

    def update(self) -> tuple[KeptUpdate, bytes] | None:
        """Return the update that is ready to be sent, if there is one."""
        return self._read("update", KeptUpdate)

    def keep_slice(self, work: Assignment, body: bytes) -> None:
        """Keep what the work starts from."""
        self._write("work", KeptWork(id=self._id, assignment=work), [body])

    def keep_update(self, facts: KeptUpdate, body: bytes) -> None:
        """Keep a finished update, in place of all that led to it."""
        if self._write("update", facts, [body]):
            self._remove("progress", "work")

    def offer(self, steps: Steps) -> None:
        """Keep the progress, if the last time was long ago and it costs little."""
        started = time.monotonic()
        if started < self._due_s:
            return
        self.keep_progress(steps.progress())
        ended = time.monotonic()
        self._due_s = ended + max(PROGRESS_EVERY_S, (ended - started) / PROGRESS_SHARE)

    def keep_progress(self, progress: Progress) -> None:
        """Keep how far the work came, in place of what was kept before."""
        facts = KeptProgress(
            id=self._id,
            losses=progress.losses,
            step_s=progress.step_s,
            longest=progress.longest,
        )
        self._write("progress", facts, _tensor_parts(progress.arrays))

    def clear(self) -> None:
        """Remove everything: the update was counted, or will never be."""
        self._remove("progress", "work", "update")

    def _path(self, name: Point) -> Path:
        return self._folder / name

    def _write(self, name: Point, facts: object, body: Sequence[_Part]) -> bool:
        parts: list[_Part] = [msgspec.json.encode(facts) + b"\n", *body]
        digest = hashlib.sha256()
        for part in parts:
            digest.update(part)
        parts.append(digest.digest())
        lose_power(name, self._path(name), parts)
        try:
            write_whole(self._path(name), parts)
        except OSError as error:
            log.warning("the %s of this round cannot be kept: %s", name, error)
            return False
        return True

    def _read(self, name: Point, kind: type[_Facts]) -> tuple[_Facts, bytes] | None:
        try:
            content = self._path(name).read_bytes()
            body = content[:-_DIGEST_BYTES]
            if hashlib.sha256(body).digest() != content[-_DIGEST_BYTES:]:
                raise ValueError("its digest is of other bytes")
            head, _, body = body.partition(b"\n")
            return decode_json(head, kind), body
        except FileNotFoundError:
            return None
        except (OSError, ValueError, msgspec.DecodeError) as error:
            self._set_aside(name, str(error))
            return None

    def _set_aside(self, name: Point, reason: str) -> None:
        """Move a damaged file out of the way; of those there, the oldest go."""
        aside = self._folder / _ASIDE
        log.warning("the %s in %s is damaged (%s): set aside", name, self._folder, reason)
        with contextlib.suppress(OSError):
            aside.mkdir(exist_ok=True)
            self._path(name).replace(aside / f"{name}-{time.time_ns()}")
            for path in _newest_first(aside)[KEPT_ASIDE:]:
                path.unlink()

    def _remove(self, *names: Point) -> None:
        for path in (self._path(name) for name in names):
            if not path.exists():
                continue
            lose_power("removal", path)
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)

    def _remove_leftovers(self) -> None:
        """Remove what writes that never ended left behind."""
        known = {"work", "progress", "update", _ASIDE}
        with contextlib.suppress(OSError):
            for path in self._folder.iterdir():
                if path.name not in known:
                    path.unlink()

    def _forget_others(self) -> None:
        with contextlib.suppress(OSError):
            others = [x for x in _newest_first(self._folder.parent) if x != self._folder]
            for path in others[KEPT_JOURNALS - 1 :]:
                shutil.rmtree(path)


def _newest_first(folder: Path) -> list[Path]:
    return sorted(folder.iterdir(), key=lambda path: path.stat().st_mtime_ns, reverse=True)


def _tensor_parts(arrays: dict[str, NDArray[Any]]) -> list[_Part]:
    """Return the safetensors bytes of arrays without copying them: memory is scarce in training."""
    header, parts, end = dict[str, object](), list[_Part](), 0
    for name, array in arrays.items():
        whole = np.ascontiguousarray(array)
        header[name] = {
            "dtype": _FORMATS[whole.dtype.str],
            "shape": list(whole.shape),
            "data_offsets": [end, end + whole.nbytes],
        }
        parts.append(whole.data.cast("B"))
        end += whole.nbytes
    text = msgspec.json.encode(header)
    text += b" " * (-len(text) % 8)
    return [len(text).to_bytes(8, "little") + text, *parts]
