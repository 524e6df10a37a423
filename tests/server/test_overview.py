"""The overview says where every task stands, in a size that does not grow with the fleet."""

from __future__ import annotations

import numpy as np
import pytest

from edge_sdk.errors import NotFound
from server.operation import overview
from server.operation.overview import Overviews
from server.operation.refusals import Refusals
from tests.server.tasks import ready, tiny_spec


@pytest.fixture
def overviews(site):
    for i in range(12):
        site.add_device(f"d{i:02}")
    return Overviews(site.store, site.clock, Refusals(site.clock), 3)


def close_rounds(site, spec, count, affordable_k=8):
    """Run whole rounds of three devices each."""
    for number in range(count):
        for i in range(3):
            site.train(f"d{i:02}", spec, 10 * number + i, affordable_k)
        site.advance()


def test_a_server_without_tasks_has_an_empty_overview(overviews):
    found = overviews.build()
    assert (found.tasks, found.tasks_total, found.task, found.refusals) == ([], 0, None, [])


def test_a_task_is_new_then_open_then_between_rounds_then_finished(site, overviews):
    spec = site.add_task(tiny_spec(rounds=2))
    states = [overviews.build().task.line.state]
    site.coordinator.check_in("d00", spec.name, ready())
    states.append(overviews.build().task.line.state)
    close_rounds(site, spec, 1)
    states.append(overviews.build().task.line.state)
    close_rounds(site, spec, 1)
    states.append(overviews.build().task.line.state)
    assert states == ["new", "open", "between", "finished"]
    assert overviews.build().task.line.closed == 2


def test_a_running_task_then_an_unfinished_one_is_shown_unless_another_is_named(site, overviews):
    done = site.add_task(tiny_spec("a-done", rounds=1))
    site.add_task(tiny_spec("b-new"))
    close_rounds(site, done, 1)
    assert overviews.build().task.line.name == "b-new"
    running = site.add_task(tiny_spec("c-running"))
    site.coordinator.check_in("d00", running.name, ready())
    assert overviews.build().task.line.name == "c-running"
    assert overviews.build("a-done").task.line.name == "a-done"
    assert [line.name for line in overviews.build().tasks] == ["a-done", "b-new", "c-running"]


def test_an_unknown_task_is_not_found(overviews):
    with pytest.raises(NotFound, match="no-such"):
        overviews.build("no-such")


def test_the_running_round_counts_down_and_names_who_trains_for_longest(site, overviews):
    spec = site.add_task(tiny_spec(cohort_size=12, quorum=12, deadline_s=100.0))
    for i in range(10):
        site.coordinator.check_in(f"d{i:02}", spec.name, ready())
        site.clock.now += 1
    site.train("d00", spec, 1)
    running = overviews.build().task.running
    assert (running.assigned, running.accepted, running.quorum) == (10, 1, 12)
    assert (running.deadline_s, running.is_prolonged) == (90.0, False)
    assert running.waiting_total == 9
    assert [x.device_id for x in running.waiting] == [f"d{i:02}" for i in range(1, 9)]
    assert running.waiting[0].since_s == 9.0
    site.clock.now += 30
    assert overviews.build().task.running.deadline_s == 60.0


def test_a_prolonged_round_says_so(site, overviews):
    spec = site.add_task(tiny_spec(deadline_s=100.0))
    site.coordinator.check_in("d00", spec.name, ready())
    site.clock.now += 101
    site.advance()
    assert overviews.build().task.running.is_prolonged


def test_closed_rounds_have_no_running_round_and_say_when_they_closed(site, overviews):
    spec = site.add_task(tiny_spec(rounds=1))
    close_rounds(site, spec, 1)
    task = overviews.build().task
    assert task.running is None
    assert [(x.state, x.accepted, x.closed_at) for x in task.rounds] == [
        ("closed", 3, site.clock.now)
    ]


def test_only_the_newest_rounds_versions_and_tasks_are_shown(site, overviews, monkeypatch):
    monkeypatch.setattr(overview, "MOST_ROUNDS", 2)
    monkeypatch.setattr(overview, "MOST_VERSIONS", 3)
    monkeypatch.setattr(overview, "MOST_TASKS", 1)
    spec = site.add_task(tiny_spec("a-task", rounds=4))
    site.add_task(tiny_spec("b-task"))
    close_rounds(site, spec, 4)
    found = overviews.build("a-task")
    assert [x.round_number for x in found.task.rounds] == [3, 4]
    assert found.task.coverage.rounds == [3, 4]
    assert [x.version for x in found.task.versions] == [4, 3, 2]
    assert (found.task.versions_total, len(found.tasks), found.tasks_total) == (5, 1, 2)


def test_a_closed_round_is_added_up_once(site, overviews, monkeypatch):
    asked = []

    def spy(tx, row, full_rank_bytes):
        asked.append(row.number)
        return summarize(tx, row, full_rank_bytes)

    summarize = overview.summarize_round
    monkeypatch.setattr(overview, "summarize_round", spy)
    spec = site.add_task(tiny_spec(rounds=3))
    close_rounds(site, spec, 2)
    site.coordinator.check_in("d00", spec.name, ready())
    assert overviews.build().task.rounds == overviews.build().task.rounds
    assert asked == [1, 2, 3, 3]


def test_rounds_forgotten_for_room_are_added_up_again(site, overviews, monkeypatch):
    monkeypatch.setattr(overview, "_REMEMBERED_ROUNDS", 2)  # those of one task
    for name, k in (("one", 8), ("other", 1)):
        close_rounds(site, site.add_task(tiny_spec(name, rounds=2)), 2, affordable_k=k)
    before = overviews.build("one").task
    assert overviews.build("other").task.rounds != before.rounds
    assert overviews.build("one").task == before


def test_plain_lora_trains_every_rank_in_every_round(site, overviews):
    spec = site.add_task(tiny_spec(rounds=2))
    close_rounds(site, spec, 2, affordable_k=8)
    coverage = overviews.build().task.coverage
    assert coverage.updates == [[3.0] * 8] * 2
    assert (coverage.ages, coverage.oldest_age) == ([0] * 8, 0)


def test_a_row_of_the_coverage_adds_up_to_the_ranks_that_were_trained(site, overviews):
    spec = site.add_task(tiny_spec(rounds=3))
    for i, k in enumerate((1, 2, 4)):
        site.train(f"d{i:02}", spec, i, affordable_k=k)
    site.advance()
    coverage = overviews.build().task.coverage
    assert sum(coverage.updates[0]) == pytest.approx(1 + 2 + 4)


def test_the_oldest_rank_is_one_that_is_still_untrained(site, overviews):
    spec = site.add_task(tiny_spec(rounds=3, cohort_size=1, quorum=1))
    for number in (1, 2):
        site.train("d00", spec, number, affordable_k=1)
        site.advance()
    coverage = overviews.build().task.coverage
    assert coverage.oldest_age == max(coverage.ages) == coverage.ages[coverage.oldest_rank] > 0


def test_many_ranks_share_columns_by_their_mean(site, overviews, monkeypatch):
    spec = site.add_task(tiny_spec(rounds=1))
    close_rounds(site, spec, 1, affordable_k=2)
    narrow = overviews.build().task.coverage
    monkeypatch.setattr(overview, "MOST_COLUMNS", 3)
    wide = Overviews(site.store, site.clock, Refusals(site.clock), 3).build().task.coverage
    assert (narrow.group, wide.group, len(wide.ages)) == (1, 3, 3)
    pieces = [narrow.updates[0][0:3], narrow.updates[0][3:6], narrow.updates[0][6:8]]
    np.testing.assert_allclose(wide.updates[0], [np.mean(x) for x in pieces], atol=1e-3)
    assert wide.ages == [max(narrow.ages[i : i + 3]) for i in (0, 3, 6)]


def test_a_round_too_large_to_look_into_has_no_coverage(site, overviews, monkeypatch):
    monkeypatch.setattr(overview, "MOST_DRAWS", 5)  # three updates on two layers are six
    spec = site.add_task(tiny_spec(rounds=1))
    close_rounds(site, spec, 1)
    task = overviews.build().task
    assert (task.coverage, task.rounds[0].accepted) == (None, 3)


def test_what_is_too_much_for_one_overview_comes_with_the_next(site, overviews, monkeypatch):
    monkeypatch.setattr(overview, "MOST_DRAWS", 6)  # one round of three updates on two layers
    spec = site.add_task(tiny_spec(rounds=2))
    close_rounds(site, spec, 2)
    assert overviews.build().task.coverage.updates == [None, [3.0] * 8]
    assert overviews.build().task.coverage.updates == [[3.0] * 8] * 2
