"""Closing a round, and coming back after the process was gone at each point in between."""

import gc
import itertools
import tracemalloc

import numpy as np
import pytest

from edge_sdk.errors import RoundClosed, StorageError
from edge_sdk.sketch import draw_sketch
from edge_sdk.wire import payload
from edge_sdk.wire.task import AdapterSpec, LayerSpec
from server.aggregation.optimizer_state import decode_state
from server.rounds.adapters import indices_of
from server.rounds.closing import Closing
from server.storage.store import AdapterRow
from tests.server.tasks import SEED, Site, random_arrays, ready, tiny_spec, update_body
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


def nothing(site, number=1):
    pass


def frozen(site, number=1):
    assert closing_of(site).freeze_if_due("tiny", number).state == "closing"


def aggregated_but_not_published(site, number=1):
    frozen(site, number)
    closing_of(site).aggregate("tiny", number)


def adapter_half_written(site, number=1):
    frozen(site, number)
    with pytest.raises(StorageError), disk_refuses_files_beyond(1000):
        closing_of(site).aggregate("tiny", number)


def state_not_written(site, number=1):
    """The adapter is stored; the disk is full when the optimizer's state comes."""
    frozen(site, number)
    put, bodies = site.blobs.put, []

    def put_one(body):
        bodies.append(body)
        if len(bodies) > 1:
            raise StorageError("the disk is full")
        return put(body)

    site.blobs.put = put_one
    with pytest.raises(StorageError, match="full"):
        closing_of(site).aggregate("tiny", number)


def published(site, number=1):
    closing_of(site).advance("tiny", number)


@pytest.mark.parametrize(
    "until",
    [nothing, frozen, adapter_half_written, aggregated_but_not_published, published],
)
def test_a_restart_at_any_point_comes_to_the_same_adapter(tmp_path, expected, until):
    site = prepared(tmp_path / "disturbed")
    until(site)
    assert adapter_after(site.restarted()) == expected


def last_row_of_two_rounds(folder, spec, until) -> AdapterRow:
    """Run two rounds of three devices; in the second one the server is killed at some point."""
    site = prepared(folder, spec=spec)
    site.advance()
    for device in "cab":
        site.train(device, spec, seed=7 * ord(device), affordable_k=SIZES[device])
    until(site, 2)
    site = site.restarted()
    site.advance()
    with site.store.read() as tx:
        row = tx.last_adapter("tiny")
    assert row.version == 2
    if row.optimizer_digest is not None:
        decode_state(site.blobs.read(row.optimizer_digest), spec)
    site.store.close()
    return row


@pytest.mark.parametrize(
    "until",
    [frozen, adapter_half_written, state_not_written, aggregated_but_not_published, published],
)
@pytest.mark.parametrize("server_optimizer", ["momentum", "adam"])
def test_a_restart_at_any_point_comes_to_the_same_adapter_and_optimizer_state(
    tmp_path, server_optimizer, until
):
    """With balanced draws, screening and weights by participation as well."""
    spec = tiny_spec(
        server_optimizer=server_optimizer,
        sketching="balanced",
        stragglers="fold",
        weighting="inverse_probability",
        max_norm_ratio=1.02,
    )
    peace = last_row_of_two_rounds(tmp_path / "peace", spec, nothing)
    war = last_row_of_two_rounds(tmp_path / "war", spec, until)
    assert war == peace
    assert peace.optimizer_digest is not None


def by_hand(site, spec, number, weight_of):
    """The mean of a round, from its rows: dense masks, float64, one device after the other.

    ``weight_of`` gives the weight of an update row.
    """
    total = dict.fromkeys(payload.adapter_shapes(spec.adapter, spec.adapter.r), 0.0)
    with site.store.read() as tx:
        rows = [row for row in tx.updates("tiny", number) if row.quarantine is None]
        work = [tx.assignment("tiny", row.round_number, row.device_id) for row in rows]
    for row, record in zip(rows, work, strict=True):
        shapes = payload.adapter_shapes(spec.adapter, record.k)
        arrays, _ = payload.decode(site.blobs.read(row.digest), shapes)
        share = weight_of(row) / sum(weight_of(other) for other in rows)
        sketch = indices_of(SEED, spec, record)
        for layer, ranks in zip(spec.adapter.layers, sketch, strict=True):
            S = np.eye(spec.adapter.r)[ranks]
            A, B = f"{layer.name}.lora_A", f"{layer.name}.lora_B"
            total[A] = total[A] + share * S.T @ arrays[A]
            total[B] = total[B] + share * arrays[B] @ S
        for dense in spec.adapter.dense:
            total[dense.name] = total[dense.name] + share * arrays[dense.name]
    return total


def assert_moved(site, spec, number, by):
    before, after = site.master(spec, number - 1), site.master(spec, number)
    for name, array in after.items():
        np.testing.assert_allclose(array, before[name] + by[name], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("sketching", ["independent", "balanced"])
@pytest.mark.parametrize("exponent", [0.0, 0.5, 2.0])
def test_a_late_update_weighs_by_its_staleness_on_the_ranks_of_its_own_record(
    tmp_path, sketching, exponent
):
    """b has two updates in round 3: one of round 1, two versions behind, at another k."""
    spec = tiny_spec(stragglers="fold", quorum=2, sketching=sketching, staleness_exponent=exponent)
    site = Site(tmp_path)
    site.add_task(spec)
    for device in "abc":
        site.add_device(device)
    site.coordinator.check_in("b", "tiny", ready(4))
    for number in (1, 2):
        for device in "ac":
            site.train(device, spec, seed=number, affordable_k=SIZES[device])
        site.advance()
    site.train("b", spec, seed=5, affordable_k=2)
    site.submit("b", "tiny", 1, update_body(spec, 4, seed=6))
    site.advance()
    with site.store.read() as tx:
        found = [(x.device_id, x.round_number, x.staleness) for x in tx.updates("tiny", 3)]
    assert found == [("b", 3, 0), ("b", 1, 2)]
    by = by_hand(site, spec, 3, lambda row: (1 + row.staleness) ** -exponent)
    assert_moved(site, spec, 3, by)
    site.store.close()


def test_weights_by_participation_are_one_over_the_share_of_rounds(tmp_path):
    """After three rounds: a was in all, b in two of three, c came in the last one."""
    spec = tiny_spec(weighting="inverse_probability", cohort_size=3, quorum=3, deadline_s=100.0)
    site = Site(tmp_path)
    site.add_task(spec)
    for device in "abc":
        site.add_device(device)
    for number, devices in enumerate(("ab", "a", "abc"), 1):
        for device in devices:
            site.train(device, spec, seed=number * ord(device), affordable_k=SIZES[device])
        site.clock.now += 100
        site.advance()
    weights = {"a": 1.0, "b": 1.5, "c": 1.0}
    assert_moved(site, spec, 3, by_hand(site, spec, 3, lambda row: weights[row.device_id]))
    site.store.close()


def test_the_median_of_a_round_is_taken_if_the_task_says_so(tmp_path):
    spec = tiny_spec(combination="median", sketch_sizes=[8])
    site = Site(tmp_path)
    site.add_task(spec)
    for device in "abc":
        site.train(site.add_device(device), spec, seed=ord(device))
    site.advance()
    updates = [random_arrays(spec.adapter, 8, ord(device)) for device in "abc"]
    by = {name: np.median([x[name] for x in updates], axis=0) for name in updates[0]}
    assert_moved(site, spec, 1, by)
    site.store.close()


def test_the_state_of_the_server_optimizer_goes_from_round_to_round_as_a_blob(tmp_path):
    """Momentum on full sketches: the second step is 0.9 of the first mean, and the second."""
    spec = tiny_spec(server_optimizer="momentum", sketch_sizes=[8], cohort_size=1, quorum=1)
    site = Site(tmp_path)
    site.add_task(spec)
    site.add_device("a")
    for seed in (1, 2):
        site.train("a", spec, seed=seed)
        site.advance()
        site = site.restarted()
    with site.store.read() as tx:
        digests = [row.optimizer_digest for row in tx.adapters("tiny")]
    assert digests[0] is None
    assert len(set(digests)) == 3
    one, two = (random_arrays(spec.adapter, 8, seed) for seed in (1, 2))
    assert_moved(site, spec, 1, one)
    assert_moved(site, spec, 2, {name: 0.9 * one[name] + two[name] for name in one})
    site.store.close()


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
