"""The journal gives back what was kept, or says that it cannot, and never anything else."""

from __future__ import annotations

import os
from dataclasses import replace

import numpy as np
import pytest

from edge_sdk.rounds import journal as journal_module
from edge_sdk.rounds.deadline import Deadline
from edge_sdk.rounds.journal import KEPT_ASIDE, Journal, KeptUpdate, journal_folder, work_id
from edge_sdk.training.progress import Progress
from edge_sdk.wire.messages import Assignment
from edge_sdk.wire.task import TrainingSpec

WORK = Assignment(
    task="t", round_number=3, adapter_version=2, k=2, seed=9, training=TrainingSpec(), deadline_s=5
)
FACTS = KeptUpdate(
    round_number=3, k=2, loss=0.1, training_s=2.5, planned_bytes=10, peak_rss_bytes=20
)
BODY = bytes(range(256)) * 3


class Taken:
    """Steps that were taken."""

    def __init__(self, count: int) -> None:
        self.losses = [1 / 3] * count
        self.step_s = [0.1] * count
        self.longest = 12
        self.offered = 0

    def progress(self) -> Progress:
        self.offered += 1
        arrays = {
            "value.0": np.arange(6, dtype=np.float32).reshape(2, 3).T,
            "mean.0": np.full((3, 2), np.pi),
        }
        return Progress(self.losses, self.step_s, self.longest, arrays)


@pytest.fixture
def folder(tmp_path):
    return journal_folder(tmp_path, "http://here", "d1", "t")


def begun(folder, id: str = "work") -> Journal:
    journal = Journal(folder)
    journal.begin(id)
    return journal


def names(folder) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_what_was_kept_comes_back_in_another_process_as_it_was(folder):
    journal, steps = begun(folder), Taken(4)
    journal.keep_slice(WORK, BODY)
    journal.keep_progress(steps.progress())
    again = begun(folder)
    assert again.slice_body() == BODY
    found = again.progress()
    assert (found.step, found.losses, found.step_s, found.longest) == (4, *vars(steps).values())[:4]
    for name, array in steps.progress().arrays.items():
        np.testing.assert_array_equal(found.arrays[name], array)
        assert found.arrays[name].dtype == array.dtype
    assert again.update() is None
    again.keep_update(FACTS, BODY)
    assert Journal(folder).update() == (FACTS, BODY)


def test_a_finished_update_takes_the_place_of_what_led_to_it_and_nothing_stays_when_counted(folder):
    journal = begun(folder)
    journal.keep_slice(WORK, BODY)
    journal.keep_progress(Taken(1).progress())
    assert names(folder) == ["progress", "work"]
    journal.keep_update(FACTS, BODY)
    assert names(folder) == ["update"]
    journal.clear()
    assert names(folder) == []


def test_other_work_finds_nothing_and_the_old_is_dropped_and_said(folder, caplog):
    journal = begun(folder)
    journal.keep_slice(WORK, BODY)
    journal.keep_progress(Taken(1).progress())
    other = begun(folder, "other")
    assert (other.slice_body(), other.progress(), names(folder)) == (None, None, [])
    assert "round 3 went on without this device" in caplog.text


def test_work_is_the_same_whatever_its_deadline_and_no_other(tmp_path):
    first = work_id(WORK, "data")
    assert work_id(replace(WORK, deadline_s=1.0), "data") == first
    others = [
        replace(WORK, round_number=4),
        replace(WORK, adapter_version=3),
        replace(WORK, k=1),
        replace(WORK, seed=8),
        replace(WORK, training=TrainingSpec(local_steps=3)),
    ]
    found = {work_id(other, "data") for other in others} | {work_id(WORK, "changed data"), first}
    assert len(found) == len(others) + 2
    places = {journal_folder(tmp_path, s, d, t) for s in "ab" for d in "cd" for t in "ef"}
    assert len(places) == 8


def truncate(share: float):
    return lambda content: content[: int(share * len(content))]


def flip(content: bytes) -> bytes:
    return content[:-40] + bytes([content[-40] ^ 1]) + content[-39:]


DAMAGE = {
    "empty": truncate(0.0),
    "half": truncate(0.5),
    "all but a byte": lambda content: content[:-1],
    "longer": lambda content: content + b"\0",
    "one bit": flip,
    "zeros": lambda content: bytes(len(content)),
    "foreign": lambda content: b"{}\n" + content,
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
@pytest.mark.parametrize("name", ["work", "progress", "update"])
def test_a_damaged_file_is_set_aside_and_said_and_as_good_as_missing(folder, caplog, name, damage):
    journal = begun(folder)
    journal.keep_update(FACTS, BODY)
    journal.keep_slice(WORK, BODY)
    journal.keep_progress(Taken(1).progress())
    path = folder / name
    path.write_bytes(damage(path.read_bytes()))
    again = begun(folder)
    found = {"work": again.slice_body(), "progress": again.progress(), "update": again.update()}
    assert found[name] is None
    assert f"the {name} in {folder} is damaged" in caplog.text
    assert [x.name.partition("-")[0] for x in (folder / "set-aside").iterdir()] == [name]


def test_a_whole_file_of_another_kind_is_set_aside(folder):
    journal = begun(folder)
    journal.keep_slice(WORK, BODY)
    (folder / "update").write_bytes((folder / "work").read_bytes())
    (folder / "progress").write_bytes((folder / "work").read_bytes())
    assert (journal.update(), journal.progress()) == (None, None)
    assert names(folder) == ["set-aside", "work"]


def test_damaged_files_and_forgotten_tasks_and_leftovers_stay_few(tmp_path):
    for number in range(8):
        folder = journal_folder(tmp_path, "http://here", "d1", f"task-{number}")
        begun(folder).keep_slice(WORK, BODY)
        os.utime(folder, (number, number))
    assert len(list(folder.parent.iterdir())) == journal_module.KEPT_JOURNALS
    for _ in range(KEPT_ASIDE + 2):
        (folder / "update").write_bytes(b"torn")
        assert Journal(folder).update() is None
    assert len(list((folder / "set-aside").iterdir())) == KEPT_ASIDE
    (folder / "progress.123").write_bytes(b"the power went")
    Journal(folder)
    assert names(folder) == ["set-aside", "work"]


def test_a_disk_that_takes_nothing_is_said_and_no_error(tmp_path, caplog):
    (tmp_path / "journal").write_text("a file where the folder should be")
    journal = begun(journal_folder(tmp_path, "http://here", "d1", "t"))
    journal.keep_slice(WORK, BODY)
    journal.keep_progress(Taken(1).progress())
    journal.keep_update(FACTS, BODY)
    assert (journal.slice_body(), journal.progress(), journal.update()) == (None, None, None)
    assert caplog.text.count("cannot be kept") == 3
    journal.clear()


def test_progress_is_kept_now_and_then(folder, monkeypatch):
    journal, steps = begun(folder), Taken(2)
    journal.offer(steps)
    assert steps.offered == 0, "short steps do not write constantly"
    monkeypatch.setattr(journal_module, "PROGRESS_EVERY_S", 0.0)
    begun(folder).offer(steps)
    assert steps.offered == 1


def test_writing_progress_takes_no_more_than_its_share_of_the_time(folder, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(journal_module.time, "monotonic", lambda: now[0])
    journal, steps, spent = begun(folder), Taken(1), 0.0

    def slow_write(progress: Progress) -> None:
        nonlocal spent
        now[0] += 0.5  # a slow card
        spent += 0.5

    monkeypatch.setattr(journal, "keep_progress", slow_write)
    for _ in range(3000):
        now[0] += 0.1
        journal.offer(steps)
    assert 0.015 < spent / now[0] <= 0.02


def test_what_is_left_is_out_of_reach_if_it_takes_longer_than_the_round():
    now = [100.0]
    deadline = Deadline(10.0, lambda: now[0])
    assert not deadline.is_out_of_reach([], 99)
    assert not deadline.is_out_of_reach([9.0], 99), "the first step is slower than the others"
    assert not deadline.is_out_of_reach([9.0, 1.0], 10)
    assert deadline.is_out_of_reach([9.0, 1.0], 11)
    assert not deadline.is_out_of_reach([9.0, 1.0, 60.0, 1.0], 10), "one pause is not the rule"
    now[0] = 105.0
    assert deadline.left_s() == 5.0
    assert deadline.is_out_of_reach([9.0, 1.0], 6)
    now[0] = 200.0
    assert deadline.left_s() == 0.0
    assert not deadline.is_out_of_reach([9.0, 1.0], 0), "what is done can still be sent"
    assert Deadline(60.0).left_s() == pytest.approx(60.0, abs=5.0)


def test_files_are_for_their_owner_alone(folder):
    with_secrets = begun(folder)
    with_secrets.keep_slice(WORK, BODY)
    assert (folder / "work").stat().st_mode & 0o077 == 0
