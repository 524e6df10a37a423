"""Closing a round, and coming back after the process was gone at each point in between."""

import gc
import itertools
import tracemalloc

import numpy as np
import pytest

from edge_sdk.errors import RoundClosed, StorageError
from edge_sdk.sketch import draw_sketch
from edge_sdk.wire import payload
from edge_sdk.wire.messages import AdapterSpec, LayerSpec
from server.closing import Closing
from tests.server.tasks import Site, random_arrays, ready, tiny_spec, update_body
from tests.server.test_blobs import disk_refuses_files_beyond

SIZES = {"a": 1, "b": 4, "c": 8}
SPEC = tiny_spec(deadline_s=100.0)


def prepared(folder, order="abc", spec=SPEC) -> Site:
    """A site whose round 1 has the updates of three devices, accepted in the given order."""
    site = Site(folder)
    site.add_task(spec)
    for device in "abc":
        site.add_device(device)
    for device in order:
        site.train(device, spec, seed=ord(device), affordable_k=SIZES[device], examples=ord(device))
    return site


def adapter_after(site) -> str:
    site.advance()
    status = site.coordinator.round_status("tiny", 1)
    assert (status.state, status.accepted, status.adapter_version) == ("closed", 3, 1)
    (_, info) = site.coordinator.adapters("tiny")
    assert info.round_number == 1
    site.store.close()
    return info.digest


@pytest.fixture
def expected(tmp_path):
    """The adapter of a server that was never disturbed."""
    return adapter_after(prepared(tmp_path / "undisturbed"))


def test_arrival_order_does_not_change_a_single_bit(tmp_path, expected):
    for order in itertools.permutations("abc"):
        assert adapter_after(prepared(tmp_path / "".join(order), order)) == expected


@pytest.mark.parametrize("weighting", ["uniform", "examples"])
def test_the_new_adapter_is_the_weighted_mean_on_the_ranks_the_server_recorded(tmp_path, weighting):
    spec = tiny_spec(weighting=weighting, server_lr=0.5)
    site = prepared(tmp_path, spec=spec)
    site.advance()
    before, after = site.master(spec, 0), site.master(spec, 1)
    with site.store.read() as tx:
        rows = tx.assignments("tiny", 1)
    weights = {d: float(ord(d)) if weighting == "examples" else 1.0 for d in SIZES}
    for i, layer in enumerate(spec.adapter.layers):
        name = f"{layer.name}.lora_A"
        mean = np.zeros(before[name].shape)
        for row in rows:
            ranks = draw_sketch(row.seed, spec.adapter.r, row.k, len(spec.adapter.layers))[i]
            update = random_arrays(spec.adapter, row.k, ord(row.device_id))[name]
            mean[ranks] += weights[row.device_id] * update / sum(weights.values())
        np.testing.assert_allclose(after[name], before[name] + 0.5 * mean, rtol=1e-6, atol=1e-8)
    site.store.close()


@pytest.mark.parametrize("restarts", [False, True])
def test_a_device_that_stepped_down_moves_the_ranks_of_its_smaller_record(tmp_path, restarts):
    """Also if the server is started anew after stepping down, and again before closing."""
    spec = tiny_spec(cohort_size=1, quorum=1)
    site = Site(tmp_path)
    site.add_task(spec)
    site.add_device("a")
    first = site.coordinator.check_in("a", "tiny", ready(8)).assignment
    site.coordinator.check_in("a", "tiny", ready(2))
    site = site.restarted() if restarts else site
    work = site.train("a", spec, seed=3, affordable_k=2)
    site = site.restarted() if restarts else site
    site.advance()
    assert (work.k, work.seed) == (2, first.seed)
    before, after = site.master(spec, 0), site.master(spec, 1)
    update = random_arrays(spec.adapter, 2, 3)
    sketch = draw_sketch(first.seed, spec.adapter.r, 2, len(spec.adapter.layers))
    for layer, ranks in zip(spec.adapter.layers, sketch, strict=True):
        A, B = f"{layer.name}.lora_A", f"{layer.name}.lora_B"
        cold = np.setdiff1d(np.arange(spec.adapter.r), ranks)
        np.testing.assert_allclose(after[A][ranks], before[A][ranks] + update[A], rtol=1e-6)
        np.testing.assert_allclose(after[B][:, ranks], before[B][:, ranks] + update[B], rtol=1e-6)
        np.testing.assert_array_equal(after[A][cold], before[A][cold])
        np.testing.assert_array_equal(after[B][:, cold], before[B][:, cold])
    site.store.close()


def closing_of(site) -> Closing:
    return Closing(site.store, site.blobs, site.coordinator._shelf, site.clock)


def nothing(site):
    pass


def frozen(site):
    assert closing_of(site).freeze_if_due("tiny", 1).state == "closing"


def aggregated_but_not_published(site):
    frozen(site)
    closing_of(site).aggregate("tiny", 1)


def adapter_half_written(site):
    frozen(site)
    with pytest.raises(StorageError), disk_refuses_files_beyond(1000):
        closing_of(site).aggregate("tiny", 1)


def published(site):
    closing_of(site).advance("tiny", 1)


@pytest.mark.parametrize(
    "until",
    [nothing, frozen, adapter_half_written, aggregated_but_not_published, published],
)
def test_a_restart_at_any_point_comes_to_the_same_adapter(tmp_path, expected, until):
    site = prepared(tmp_path / "disturbed")
    until(site)
    assert adapter_after(site.restarted()) == expected


def test_two_processes_that_close_the_same_round_close_it_once(tmp_path, expected):
    site = prepared(tmp_path / "twice")
    frozen(site)
    other = Site(site.settings.state, site.clock)
    mine, theirs = closing_of(site), closing_of(other)
    rows = [mine.aggregate("tiny", 1), theirs.aggregate("tiny", 1)]
    mine.publish("tiny", 1, rows[0])
    theirs.publish("tiny", 1, rows[1])
    assert theirs.aggregate("tiny", 1).version == 1
    other.store.close()
    assert adapter_after(site) == expected


def test_after_freezing_no_update_slips_in_however_long_aggregation_takes(tmp_path):
    spec = tiny_spec(quorum=2, deadline_s=100.0)
    site = Site(tmp_path)
    site.add_task(spec)
    for device in "abc":
        site.add_device(device)
        site.coordinator.check_in(device, "tiny", ready(4))
    site.train("a", spec, seed=1)
    site.train("b", spec, seed=2)
    for step in (frozen, aggregated_but_not_published, published):
        step(site)
        with pytest.raises(RoundClosed):
            site.submit("c", "tiny", 1, update_body(spec, 4, seed=3))
    assert site.coordinator.round_status("tiny", 1).accepted == 2
    site.store.close()


def test_a_round_at_its_deadline_closes_with_what_is_there(site):
    spec = site.add_task(tiny_spec(quorum=3, min_updates=1, deadline_s=100.0))
    site.add_device("a")
    site.train("a", spec, seed=1)
    site.advance()
    assert site.coordinator.round_status("tiny", 1).state == "open"
    site.clock.now += 100
    site.advance()
    assert site.coordinator.round_status("tiny", 1).state == "closed"


def test_a_prolonged_round_keeps_every_accepted_update(site):
    spec = site.add_task(tiny_spec(quorum=2, min_updates=2, deadline_s=100.0))
    for device in "ab":
        site.add_device(device)
    site.train("a", spec, seed=1)
    for _ in range(3):
        site.clock.now += 150
        site.advance()
        status = site.coordinator.round_status("tiny", 1)
        assert (status.state, status.accepted, status.deadline_s) == ("open", 1, 100.0)
    site.train("b", spec, seed=2)
    site.advance()
    status = site.coordinator.round_status("tiny", 1)
    assert (status.state, status.accepted) == ("closed", 2)


def test_a_damaged_update_stops_the_round_and_nothing_half_done_is_published(tmp_path, expected):
    site = prepared(tmp_path / "damaged")
    with site.store.read() as tx:
        path = site.blobs.path(tx.accepted("tiny", 1, "b").digest)
    body = path.read_bytes()
    path.write_bytes(body[:-1] + b"\x00")
    with pytest.raises(StorageError, match="damaged"):
        site.advance()
    assert site.coordinator.round_status("tiny", 1).state == "closing"
    path.write_bytes(body)
    assert adapter_after(site) == expected


def test_small_steps_are_not_lost_although_the_wire_has_few_bits(site):
    """In bf16 a step of a thousandth of a number would be rounded away, every round."""
    spec = site.add_task(
        tiny_spec(wire_dtype="bf16", rounds=20, cohort_size=1, quorum=1, server_lr=1e-3)
    )
    site.add_device("a")
    for _ in range(20):
        site.train("a", spec, seed=1)
        site.advance()
    name = "score.weight"
    steps = random_arrays(spec.adapter, 8, 1)[name]
    before, after = site.master(spec, 0)[name], site.master(spec, 20)[name]
    np.testing.assert_allclose(after - before, 20 * 1e-3 * steps, rtol=2e-2, atol=1e-6)


def test_memory_of_closing_does_not_grow_with_the_cohort(tmp_path):
    adapter = AdapterSpec(
        r=16,
        lora_alpha=16,
        target_modules=["q"],
        layers=[LayerSpec(name=f"{i}.q", d_in=512, d_out=512) for i in range(4)],
    )
    update_bytes = sum(4 * a * b for a, b in payload.adapter_shapes(adapter, 8).values())

    def peak_bytes(devices: int) -> int:
        site = Site(tmp_path / str(devices))
        base = tiny_spec(cohort_size=devices, quorum=devices, sketch_sizes=[8])
        spec = site.add_task(
            type(base)(
                name="tiny",
                base=base.base,
                adapter=adapter,
                training=base.training,
                policy=base.policy,
            )
        )
        for i in range(devices):
            site.train(site.add_device(f"{i:03}"), spec, seed=i)
        gc.collect()
        tracemalloc.start()
        site.advance()
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        site.store.close()
        return peak

    peak_bytes(1)
    assert peak_bytes(50) - peak_bytes(2) < 2 * update_bytes
