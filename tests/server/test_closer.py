import logging
import threading
import time

import pytest

from server.rounds.closer import Closer
from server.rounds.coordinator import Coordinator
from tests.server.tasks import tiny_spec, wait_until


@pytest.fixture
def woken_site(site):
    """A site whose coordinator wakes a closer that would otherwise sleep for an hour."""
    wake = threading.Event()
    site.coordinator = Coordinator(site.store, site.blobs, site.clock, wake=wake)
    closer = Closer(site.coordinator, wake, tick_s=3600.0)
    closer.start()
    yield site
    closer.stop()


def state(site, task="tiny"):
    return site.coordinator.round_status(task, 1).state


def test_the_update_that_completes_the_quorum_wakes_the_closer(woken_site):
    spec = woken_site.add_task(tiny_spec(cohort_size=1, quorum=1))
    woken_site.train(woken_site.add_device("a"), spec, seed=1)
    wait_until(lambda: state(woken_site) == "closed")


def test_a_deadline_is_noticed_without_any_request(site):
    spec = site.add_task(tiny_spec(deadline_s=100.0))
    site.train(site.add_device("a"), spec, seed=1)
    closer = Closer(site.coordinator, threading.Event(), tick_s=0.02)
    closer.start()
    time.sleep(0.1)
    assert state(site) == "open"
    site.clock.now += 100
    wait_until(lambda: state(site) == "closed")
    closer.stop()


def test_a_round_left_frozen_by_a_killed_process_is_closed_at_start(site):
    spec = site.add_task(tiny_spec(cohort_size=1, quorum=1))
    site.train(site.add_device("a"), spec, seed=1)
    assert state(site) == "closing"
    closer = Closer(site.coordinator, threading.Event(), tick_s=3600.0)
    closer.start()
    wait_until(lambda: state(site) == "closed")
    closer.stop()


def test_a_round_that_cannot_be_closed_is_logged_and_does_not_hold_up_others(site, caplog):
    caplog.set_level(logging.ERROR)
    site.add_device("a")
    for seed, name in enumerate(("broken", "tiny")):
        site.train("a", site.add_task(tiny_spec(name, cohort_size=1, quorum=1), seed), seed=1)
    (info,) = site.coordinator.adapters("broken")
    site.blobs.path(info.digest).write_bytes(b"damaged")
    closer = Closer(site.coordinator, threading.Event(), tick_s=3600.0)
    closer.start()
    wait_until(lambda: state(site) == "closed")
    closer.stop()
    assert "round 1 of broken" in caplog.text
    assert state(site, "broken") == "closing"


def test_a_round_that_cannot_be_closed_is_tried_less_and_less_often_until_it_can(site, caplog):
    caplog.set_level(logging.ERROR)
    spec = site.add_task(tiny_spec(cohort_size=1, quorum=1))
    site.train(site.add_device("a"), spec, seed=1)
    (info,) = site.coordinator.adapters("tiny")
    path = site.blobs.path(info.digest)
    whole = path.read_bytes()
    path.write_bytes(b"damaged")
    closer = Closer(site.coordinator, threading.Event(), tick_s=0.01)
    closer.start()
    time.sleep(0.5)
    path.write_bytes(whole)
    wait_until(lambda: state(site) == "closed")
    closer.stop()
    assert 2 <= caplog.text.count("round 1 of tiny cannot be closed now") <= 7


def test_stopping_waits_for_the_thread(site):
    closer = Closer(site.coordinator, threading.Event(), tick_s=3600.0)
    closer.start()
    closer.stop()
    assert "closer" not in {thread.name for thread in threading.enumerate()}
