import pytest

from server.operation.fleet_metrics import FleetMetrics
from server.rounds.coverage import rank_ages
from server.storage.lookup import find_task
from tests.server.tasks import ready, tiny_spec, wait_until


class Ticks:
    """A clock that only a test moves."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def ticks():
    return Ticks()


@pytest.fixture
def fleet(site, ticks):
    found = FleetMetrics(site.store, site.clock, 3, ticks)
    yield found
    found.close()


def gauges(fleet):
    """Every gauge, by name without prefix and by label values."""
    return {
        (sample.name.removeprefix("edge_server_"), *sample.labels.values()): sample.value
        for metric in fleet.collect()
        for sample in metric.samples
    }


def run_round(site, spec, number):
    """Close one round of two devices."""
    for i, name in enumerate(("a", "b")):
        site.train(name, spec, seed=10 * number + i, affordable_k=2)
    site.advance()


@pytest.fixture
def spec(site):
    """A task and its two devices."""
    for name in ("a", "b"):
        site.add_device(name)
    return site.add_task(tiny_spec(cohort_size=2, quorum=2))


def test_an_empty_server_has_no_tasks_and_answers(fleet):
    assert gauges(fleet) == {("database_up",): 1, ("tasks",): 0, ("devices",): 0}


def test_the_gauges_are_what_the_database_holds(site, fleet, spec):
    run_round(site, spec, 1)
    run_round(site, spec, 2)
    site.coordinator.check_in("a", "tiny", ready())
    site.coordinator.slice_for("a", "tiny", 3)
    site.clock.now += 30
    found = gauges(fleet)
    with site.store.read() as tx:
        updates = [row for number in (1, 2) for row in tx.updates("tiny", number)]
        downloads = [row for number in (1, 2, 3) for row in tx.assignments("tiny", number)]
    assert (found["tasks",], found["devices",]) == (1, 2)
    states = {state: found["rounds", "tiny", state] for state in ("open", "closing", "closed")}
    assert states == {"open": 1, "closing": 0, "closed": 2}
    assert found["updates", "tiny", "on_time"] == len(updates) == 4
    assert found["updates", "tiny", "late"] == found["updates", "tiny", "quarantined"] == 0
    assert found["upload_bytes", "tiny"] == sum(row.size_bytes for row in updates) > 0
    assert found["download_bytes", "tiny"] == sum(row.download_bytes for row in downloads) > 0
    assert found["adapter_version", "tiny"] == 2
    assert found["last_round_closed_age_seconds", "tiny"] == 30


def test_a_task_without_a_closed_round_has_no_age_of_its_last_one(site, fleet):
    site.add_task(tiny_spec())
    found = gauges(fleet)
    assert found["adapter_version", "tiny"] == 0
    assert ("last_round_closed_age_seconds", "tiny") not in found


def test_an_update_is_late_or_quarantined_or_neither(site, fleet, spec):
    run_round(site, spec, 1)
    run_round(site, spec, 2)
    with site.store.write() as tx:
        late, quarantined, *_ = tx.updates("tiny", 1)
        tx.quarantine(quarantined, "too large")
        tx._connection.exec_driver_sql(
            "UPDATE updates SET counted_in = 2 WHERE round_number = 1 AND device_id = ?",
            (late.device_id,),
        )
    found = gauges(fleet)
    outcomes = {name: found["updates", "tiny", name] for name in ("on_time", "late", "quarantined")}
    assert outcomes == {"on_time": 2, "late": 1, "quarantined": 1}


def test_the_age_of_the_coldest_rank_follows_the_closed_rounds(site, fleet, spec, ticks):
    for number in (1, 2):
        run_round(site, spec, number)
        ticks.now += 10
        with site.store.read() as tx:
            expected = rank_ages(tx, find_task(tx, "tiny")).max()
        key = ("oldest_rank_age_rounds", "tiny")
        wait_until(lambda key=key, expected=expected: gauges(fleet).get(key) == expected)


def test_the_database_is_asked_at_most_every_five_seconds(site, fleet, ticks):
    assert gauges(fleet)["tasks",] == 0
    site.add_task(tiny_spec())
    ticks.now = 4.9
    assert gauges(fleet)["tasks",] == 0
    ticks.now = 5.0
    assert gauges(fleet)["tasks",] == 1


def test_a_database_that_does_not_answer_is_a_gauge_and_no_error(site, fleet, ticks, caplog):
    gauges(fleet)
    site.store.close()
    path = site.settings.state / "server.sqlite"
    for part in path.parent.glob("server.sqlite*"):
        part.unlink()
    path.mkdir()
    ticks.now = 10.0
    assert gauges(fleet) == {("database_up",): 0}
    assert "the fleet cannot be counted" in caplog.text
