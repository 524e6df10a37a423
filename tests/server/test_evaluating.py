"""Reports on adapter versions are added up, each once, and shown once enough have come."""

from __future__ import annotations

from dataclasses import replace

import pytest
import sqlalchemy as sa

from edge_sdk.errors import ConfigError, NotFound, ProtocolMismatch, StorageError
from edge_sdk.wire.messages import EvaluationReport
from edge_sdk.wire.task import BaseModel
from server.operation.fleet_metrics import FleetMetrics
from server.operation.overview import Overviews
from server.operation.refusals import Refusals
from server.registry.evaluating import Evaluations, shown_evaluations
from server.registry.registry_reports import version_reports
from server.storage import evaluation_tables
from server.storage.evaluation_store import EvaluationRow
from tests.server.store_rows import ADAPTER, TASK, device_row, fill
from tests.server.tasks import Site, in_parallel, tiny_spec

DEVICES = ("a", "b", "c")


@pytest.fixture
def filled(store):
    """A task with version 0 and three devices, in either database."""
    fill(store)
    with store.write() as tx:
        tx.add_device(device_row("b"))
        tx.add_device(device_row("c"))
    return store


def report(version: int = 0, **changes) -> EvaluationReport:
    facts = {"examples": 10, "loss_before": 2.0, "loss_after": 1.0, "accepted": True}
    return EvaluationReport(version=version, **{**facts, **changes})


def shown(store, min_devices: int = 3, task: str = "tiny"):
    with store.read() as tx:
        return shown_evaluations(tx, task, min_devices)


def test_reports_add_up_to_means_weighted_by_examples(filled):
    takes = Evaluations(filled)
    takes.record("a", "tiny", report(examples=30))
    takes.record("b", "tiny", report(examples=10, loss_before=1.0, loss_after=3.0, accepted=False))
    takes.record("c", "tiny", report(examples=10))
    found = shown(filled)[0]
    assert (found.devices, found.accepted, found.examples) == (3, 2, 50)
    assert found.loss_before == pytest.approx((30 * 2 + 10 * 1 + 10 * 2) / 50)
    assert found.loss_after == pytest.approx((30 * 1 + 10 * 3 + 10 * 1) / 50)
    assert found.accuracy is None


def test_a_device_counts_once_for_a_version_however_often_it_reports(filled):
    takes = Evaluations(filled)
    for loss in (1.0, 9.0, 0.0):
        takes.record("a", "tiny", report(loss_after=loss))
    found = shown(filled, min_devices=1)[0]
    assert (found.devices, found.examples, found.loss_after) == (1, 10, 1.0)


def test_a_device_counts_once_also_when_its_reports_come_at_the_same_moment(filled):
    takes = Evaluations(filled)
    calls = [lambda: takes.record("a", "tiny", report())] * 4
    assert in_parallel(calls) == [None] * 4
    assert shown(filled, min_devices=1)[0].devices == 1


def test_each_version_and_task_has_sums_of_its_own(filled):
    with filled.write() as tx:
        tx.add_adapter(_adapter(version=1))
        tx.add_task(_task("other"))
        tx.add_adapter(_adapter(task="other"))
    takes = Evaluations(filled)
    takes.record("a", "tiny", report(0, loss_after=0.5))
    takes.record("a", "tiny", report(1, loss_after=0.25))
    takes.record("a", "other", report(0, loss_after=0.125))
    assert {x: y.loss_after for x, y in shown(filled, 1).items()} == {0: 0.5, 1: 0.25}
    assert shown(filled, 1, "other")[0].loss_after == 0.125


def test_too_few_devices_show_nothing(filled):
    takes = Evaluations(filled)
    for device in DEVICES:
        assert shown(filled) == {}
        with filled.read() as tx:
            assert tx.newest_evaluations(3) == {}
        takes.record(device, "tiny", report())
    assert list(shown(filled)) == [0]


def test_the_newest_version_with_enough_reports_is_found(filled):
    with filled.write() as tx:
        for version in (1, 2):
            tx.add_adapter(_adapter(version=version))
    takes = Evaluations(filled)
    for version, devices in ((0, "abc"), (1, "abc"), (2, "ab")):
        for device in devices:
            takes.record(device, "tiny", report(version))
    with filled.read() as tx:
        assert tx.newest_evaluations(3)["tiny"].version == 1
        assert tx.newest_evaluations(2)["tiny"].version == 2


def test_nothing_that_is_kept_ties_a_value_to_a_device(filled):
    """One table has devices and no values, the other values and no devices."""
    takes = Evaluations(filled)
    for device in DEVICES:
        takes.record(device, "tiny", report(loss_after=ord(device) / 128))
    with filled.read() as tx:
        marks = tx._connection.execute(sa.select(evaluation_tables.evaluators)).all()
        (sums,) = tx._connection.execute(sa.select(evaluation_tables.evaluations)).mappings()
    assert marks == [("tiny", 0, device) for device in DEVICES]
    assert set(sums) == set(EvaluationRow.__dataclass_fields__)
    assert not set(DEVICES) & {str(value) for value in sums.values()}
    assert sums["loss_after"] == pytest.approx(10 * sum(map(ord, DEVICES)) / 128)


def test_a_version_or_task_that_is_not_there_is_not_found(filled):
    takes = Evaluations(filled)
    with pytest.raises(NotFound, match="no adapter version 1"):
        takes.record("a", "tiny", report(1))
    with pytest.raises(NotFound, match="no task 'none'"):
        takes.record("a", "none", report())


def test_another_protocol_is_refused(filled):
    with pytest.raises(ProtocolMismatch):
        Evaluations(filled).record("a", "tiny", report(protocol=2))


def test_a_report_of_an_unknown_device_leaves_no_trace(filled):
    with pytest.raises(StorageError):
        Evaluations(filled).record("stranger", "tiny", report())
    assert shown(filled, min_devices=1) == {}


def test_a_classifier_reports_its_accuracy_and_no_other_does(filled):
    base = BaseModel(model="m", digest="ab" * 32, task_type="SEQ_CLS", labels=["no", "yes"])
    with filled.write() as tx:
        tx.add_task(_task("colours", base=base))
        tx.add_adapter(_adapter(task="colours"))
    takes = Evaluations(filled)
    takes.record("a", "colours", report(accuracy=0.5))
    takes.record("b", "colours", report(accuracy=1.0, examples=30))
    assert shown(filled, 2, "colours")[0].accuracy == pytest.approx((5 + 30) / 40)
    with pytest.raises(ConfigError, match="accuracy=None"):
        takes.record("c", "colours", report())
    with pytest.raises(ConfigError, match=r"accuracy=0\.5"):
        takes.record("c", "tiny", report(accuracy=0.5))


@pytest.fixture
def evaluated(site: Site) -> Site:
    """Two of three devices use version 0; a fourth device's word is needed for version 1."""
    spec = site.add_task(tiny_spec(quorum=1, cohort_size=1))
    for device in DEVICES:
        site.add_device(device)
    site.train("a", spec, seed=1)
    site.advance()
    takes = Evaluations(site.store)
    for device in DEVICES:
        takes.record(device, "tiny", report(0, accepted=device != "c"))
    for device in "ab":
        takes.record(device, "tiny", report(1))
    return site


def test_the_list_of_versions_shows_what_may_be_shown(evaluated):
    first, second = version_reports(evaluated.store, "tiny", 3)
    assert (first.evaluation.devices, first.evaluation.accepted) == (3, 2)
    assert second.evaluation is None


def test_the_overview_shows_what_may_be_shown(evaluated):
    refusals = Refusals(evaluated.clock)
    newest, oldest = Overviews(evaluated.store, evaluated.clock, refusals, 3).build().task.versions
    assert newest.evaluation is None
    assert (oldest.evaluation.accepted, oldest.evaluation.loss_after) == (2, 1.0)


def test_the_gauges_speak_of_one_version_of_a_task_however_many_there_are(evaluated):
    fleet = FleetMetrics(evaluated.store, evaluated.clock, 3)
    samples = [sample for metric in fleet.collect() for sample in metric.samples]
    fleet.close()
    found = {x.name: (x.labels, x.value) for x in samples if "evaluat" in x.name}
    of_task = {"task": "tiny"}
    assert found == {
        "edge_server_evaluated_version": (of_task, 0),
        "edge_server_evaluating_devices": (of_task, 3),
        "edge_server_evaluation_accepted_ratio": (of_task, pytest.approx(2 / 3)),
        "edge_server_evaluation_loss_change": (of_task, pytest.approx(-1.0)),
    }


def _adapter(**changes):
    return replace(ADAPTER, **changes)


def _task(name: str, **changes):
    return replace(TASK, name=name, spec=replace(TASK.spec, name=name, **changes))
