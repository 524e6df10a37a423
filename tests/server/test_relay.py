"""A relay sends one sum a round; what comes of it is what one flat server would make."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from edge_sdk.errors import ConfigError, ServerUnreachable
from edge_sdk.wire.messages import encode_message
from server.aggregation.combining import combine
from server.aggregation.server_optimizers import step
from server.rounds.coverage import trained_ranks
from server.storage import tables
from server.storage.lookup import find_task
from tests.server.registries import Signer
from tests.server.relays import RelaySite, Upstream, counted, train
from tests.server.tasks import ready, tiny_spec

DEADLINE_S = 100.0
SIZES = (1, 2, 4, 8)


@pytest.fixture
def upstream(site):
    return site


def tree_spec(**changes):
    rules = {"cohort_size": 6, "quorum": 6, "deadline_s": DEADLINE_S, "rounds": 3}
    return tiny_spec(**(rules | changes))


@pytest.fixture
def one_relay(upstream, tmp_path):
    """An upstream server with places for three, two of them a relay's."""
    spec = upstream.add_task(tree_spec(cohort_size=3, quorum=3))
    relay = RelaySite(tmp_path / "a", upstream, spec, "a", 2)
    yield relay
    relay.site.store.close()


def train_both(relay, seed=1, **report):
    for i in range(2):
        relay.train(f"a{i}", seed + i, SIZES[i], **report)


@pytest.mark.parametrize(
    ("weighting", "server_optimizer", "wire_dtype"),
    [
        ("uniform", "average", "fp32"),
        ("examples", "adam", "fp32"),
        ("inverse_probability", "momentum", "bf16"),
    ],
)
def test_a_tree_of_relays_gives_the_adapter_of_one_flat_server(
    upstream, tmp_path, weighting, server_optimizer, wire_dtype
):
    """Devices of three servers, some of which stay away in round 2."""
    spec = upstream.add_task(
        tree_spec(weighting=weighting, server_optimizer=server_optimizer, wire_dtype=wire_dtype)
    )
    relays = [
        RelaySite(tmp_path / name, upstream, spec, name, size)
        for name, size in (("a", 3), ("b", 2))
    ]
    sites = [upstream, *(relay.site for relay in relays)]
    taken_part: dict[str, list[int]] = {}
    flat, state, seeds = upstream.master(spec, 0), None, []

    for number in (1, 2, 3):
        for relay in relays:
            relay.step()
        for place, (relay, size) in enumerate(((None, 1), (relays[0], 3), (relays[1], 2))):
            site = upstream if relay is None else relay.site
            for i in range(size - (number == 2 and size > 1)):
                device = f"{place}-{i}"
                taken_part.setdefault(device, []).append(number)
                seed = 100 * number + 10 * place + i
                work = train(site, spec, device, seed, SIZES[i + 1], examples=1 + 7 * i + place)
                assert (work.round_number, work.adapter_version) == (number, number - 1)
                seeds.append(work.seed)
        upstream.clock.now += 0.9 * DEADLINE_S
        for relay in relays:
            relay.site.advance()
            relay.step()
        upstream.clock.now += 0.1 * DEADLINE_S
        upstream.advance()

        def weigh(update, number=number):
            rounds = taken_part[update.device_id]
            share = sum(x <= number for x in rounds) / (number - rounds[0] + 1)
            weights = {"uniform": 1.0, "examples": update.examples}
            return float(weights.get(weighting, 1.0 / max(share, 0.1)))

        updates = [x for site in sites for x in counted(site, spec.name, number, weigh)]
        assert len(updates) == (6 if number != 2 else 4)
        mean = combine(spec, updates)
        flat, state = step(flat, mean, spec, state)
        tree = upstream.master(spec, number)
        for name, expected in flat.items():
            # Adam divides by the root of a small mean square: by epsilon=1e-3 at the least.
            atol = 1e-5 if server_optimizer == "adam" else 1e-7
            np.testing.assert_allclose(tree[name], expected, rtol=1e-6, atol=atol, err_msg=name)
        with upstream.store.read() as tx:
            of_tree = trained_ranks(tx, find_task(tx, spec.name), [number])[0]
        of_flat = sum(
            np.isin(np.arange(spec.adapter.r), ranks) for x in updates for ranks in x.indices
        )
        np.testing.assert_array_equal(of_tree, of_flat / len(spec.adapter.layers))

    assert len(set(seeds)) == len(seeds), "no two sketches of the tree are the same draw"
    for relay in relays:
        relay.site.store.close()


def test_a_relay_behind_a_relay_is_part_of_the_same_mean(upstream, tmp_path):
    spec = upstream.add_task(tree_spec(cohort_size=3, quorum=3))
    middle = RelaySite(tmp_path / "middle", upstream, spec, "middle", 3)
    middle.step()
    spec_there = middle.site.coordinator.task(spec.name)
    leaf = RelaySite(tmp_path / "leaf", middle.site, spec_there, "leaf", 2)
    leaf.step()
    leaf.train("l0", 1, 2)
    leaf.train("l1", 2, 4)
    leaf.step()
    middle.train("m0", 3, 8)
    middle.step()
    upstream.advance()
    updates = [
        x for relay in (leaf, middle) for x in counted(relay.site, spec.name, 1, lambda _: 1.0)
    ]
    flat, _ = step(upstream.master(spec, 0), combine(spec, updates), spec, None)
    tree = upstream.master(spec, 1)
    assert len(updates) == 3
    for name, expected in flat.items():
        np.testing.assert_allclose(tree[name], expected, rtol=1e-6, atol=1e-7)
    with upstream.store.read() as tx:
        assert tx.count_updates(spec.name, 1) == 3
    for relay in (leaf, middle):
        relay.site.store.close()


@pytest.mark.parametrize("wire_dtype", ["fp32", "bf16"])
def test_a_site_trains_the_very_adapter_of_the_upstream_round(upstream, tmp_path, wire_dtype):
    spec = upstream.add_task(tree_spec(wire_dtype=wire_dtype))
    relay = RelaySite(tmp_path / "a", upstream, spec, "a", 2)
    relay.step()
    train(relay.site, spec, "full", 1, 8)
    body = relay.site.coordinator.slice_for("full", spec.name, 1)
    assert body == relay.upstream.slice_body(spec, 1, 8)
    relay.site.store.close()


def test_what_goes_upstream_does_not_grow_with_the_devices_of_a_site(upstream, tmp_path):
    asked, sizes = [], []
    for name, size in (("few", 2), ("many", 20)):
        spec = upstream.add_task(tree_spec(name=name, cohort_size=20, quorum=20))
        relay = RelaySite(tmp_path / name, upstream, spec, name, size)
        relay.step()
        for i in range(size):
            relay.train(f"{name}{i}", i, SIZES[i % 4])
        relay.step()
        assert upstream.coordinator.round_status(name, 1).accepted == size
        asked.append(relay.upstream.asked)
        sizes += [len(body) for body in relay.upstream.sent]
        relay.site.store.close()
    assert asked[0] == asked[1]
    assert len(sizes) == 2
    assert abs(sizes[0] - sizes[1]) <= 32, "but for the digits in the report"


def test_a_sum_whose_receipt_was_lost_is_sent_again_and_counts_once(one_relay, upstream):
    one_relay.step()
    train_both(one_relay)
    one_relay.upstream.loses_receipts = True
    with pytest.raises(ServerUnreachable):
        one_relay.step()
    assert one_relay.round(1).state == "closing"
    one_relay.upstream.loses_receipts = False
    one_relay.step()
    first, second = one_relay.upstream.sent
    assert first == second
    assert one_relay.round(1).state == "closed"
    assert upstream.coordinator.round_status("tiny", 1).accepted == 2


@pytest.mark.parametrize("weighting", ["uniform", "inverse_probability"])
def test_a_relay_that_is_started_again_sends_the_same_bytes(upstream, tmp_path, weighting):
    spec = upstream.add_task(tree_spec(cohort_size=3, quorum=3, weighting=weighting))
    relay = RelaySite(tmp_path / "a", upstream, spec, "a", 2)
    relay.step()
    train_both(relay)
    relay.upstream.loses_receipts = True
    with pytest.raises(ServerUnreachable):
        relay.step()
    relay.restart()
    relay.upstream.loses_receipts = False
    relay.step()
    first, second = relay.upstream.sent
    assert first == second
    assert upstream.coordinator.round_status("tiny", 1).accepted == 2
    relay.site.store.close()


def test_a_relay_that_joins_anew_sends_nothing_that_it_may_have_sent_before(one_relay, upstream):
    """As after a restore from a backup that is older than the sum."""
    one_relay.step()
    train_both(one_relay)
    one_relay.relay.forget()
    one_relay.upstream = Upstream(upstream, "b", 2)
    one_relay.step()
    assert one_relay.upstream.sent == []
    assert one_relay.round(1).state == "closed"


def test_other_bytes_after_a_lost_receipt_are_not_counted_beside_the_first(one_relay, upstream):
    """As after an upgrade of what adds numbers up."""
    one_relay.step()
    train_both(one_relay)
    body = one_relay.relay._closing.sum_up("tiny", 1)
    other = body.replace(rb"\"seconds\":0.25", rb"\"seconds\":0.75")
    assert other != body
    one_relay.upstream.submit("tiny", 1, other)
    one_relay.step()
    assert one_relay.round(1).state == "closed"
    assert upstream.coordinator.round_status("tiny", 1).accepted == 2


def test_a_site_opens_no_round_by_itself(one_relay):
    one_relay.step()
    train_both(one_relay)
    one_relay.step()
    reply = one_relay.site.coordinator.check_in("a0", "tiny", ready())
    assert (reply.state, reply.round_number) == ("wait", 1)
    assert one_relay.round(2) is None


def test_a_site_sends_what_it_has_however_many_updates_a_round_needs(upstream, tmp_path):
    spec = upstream.add_task(tree_spec(cohort_size=4, quorum=4, min_updates=4))
    relay = RelaySite(tmp_path / "a", upstream, spec, "a", 2)
    relay.step()
    relay.train("a0", 1, 2)
    upstream.clock.now += 0.9 * DEADLINE_S
    relay.site.advance()
    relay.step()
    assert upstream.coordinator.round_status(spec.name, 1).accepted == 1
    relay.site.store.close()


def test_a_site_is_due_before_its_upstream_server(one_relay, upstream):
    one_relay.step()
    with upstream.store.read() as tx:
        above = tx.round("tiny", 1)
    assert one_relay.round(1).deadline_at == pytest.approx(above.deadline_at - 0.1 * DEADLINE_S)
    one_relay.train("a0", 1, 2)
    upstream.clock.now += 0.9 * DEADLINE_S
    one_relay.site.advance()
    assert one_relay.round(1).state == "closing"
    one_relay.step()
    assert upstream.coordinator.round_status("tiny", 1).accepted == 1


def test_a_site_without_updates_goes_on_with_its_upstream_server(one_relay, upstream):
    one_relay.step()
    for i in range(3):
        upstream.add_device(f"d{i}")
    upstream.clock.now += DEADLINE_S  # nobody sent anything: prolonged, the relay's places are free
    for i in range(3):
        upstream.train(f"d{i}", one_relay.spec, i)
    upstream.advance()
    one_relay.site.advance()
    assert one_relay.step() == 0.0
    one_relay.step()
    assert [one_relay.round(number).state for number in (1, 2)] == ["closed", "open"]
    assert one_relay.train("a0", 1, 2).adapter_version == 1


@pytest.mark.parametrize(("stragglers", "late"), [("refuse", 0), ("fold", 2)])
def test_a_late_sum_is_refused_or_folded_as_the_task_says(upstream, tmp_path, stragglers, late):
    spec = upstream.add_task(tree_spec(cohort_size=4, quorum=2, stragglers=stragglers))
    relay = RelaySite(tmp_path / "a", upstream, spec, "a", 2)
    relay.step()
    relay.train("a0", 1, 2)
    for i in range(2):
        train(upstream, spec, f"d{i}", i, 2)
    upstream.advance()
    upstream.clock.now += 1
    relay.step()
    relay.step()
    assert relay.round(1).state == "closed"
    with upstream.store.read() as tx:
        folded = [x for x in tx.updates(spec.name, 2) if x.round_number == 1]
    assert [(x.members, x.staleness) for x in folded] == ([(1, 1)] if late else [])
    assert relay.round(2).state == "open"
    relay.site.store.close()


def test_a_site_hears_that_a_task_is_finished_when_it_has_the_last_version(one_relay, upstream):
    spec = one_relay.spec
    for number in (1, 2, 3):
        one_relay.step()
        train_both(one_relay, seed=number)
        train(upstream, spec, "d", number, 2)
        one_relay.step()
        upstream.advance()
    coordinator = one_relay.site.coordinator
    assert coordinator.check_in("a0", "tiny", ready()).state == "wait"
    one_relay.step()
    assert coordinator.check_in("a0", "tiny", ready()).state == "finished"
    assert (
        coordinator.adapters("tiny")[-1].digest == upstream.coordinator.adapters("tiny")[-1].digest
    )


def test_a_relay_that_missed_rounds_takes_part_in_the_running_one(one_relay, upstream):
    one_relay.step()
    work = one_relay.train("a0", 1, 2)
    with one_relay.site.store.read() as tx:
        digest = tx.accepted("tiny", 1, "a0").digest
    upstream.clock.now += DEADLINE_S
    for number in (1, 2):
        for i in range(3):
            train(upstream, one_relay.spec, f"d{i}", 10 * number + i, 2)
            upstream.clock.now += 0.01
        upstream.advance()
        if number == 1:  # nobody keeps places for it: it is prolonged first
            upstream.coordinator.check_in("d0", "tiny", ready())
            upstream.clock.now += DEADLINE_S
    while one_relay.step() == 0.0:
        pass
    assert (work.round_number, one_relay.train("a0", 1, 4).round_number) == (1, 3)
    with one_relay.site.store.read() as tx:
        assert tx.adapter("tiny", 1) is None
        assert digest not in tx.needed_digests("", upstream.clock.now + 10**9)
    assert one_relay.round(2) is None
    manifest = Signer(one_relay.site).manifest(2)
    assert (manifest.version, manifest.parent_version, manifest.parent_digest) == (2, 1, None)


def test_places_are_kept_for_a_relay_until_the_first_deadline(one_relay, upstream):
    for i in range(2):
        upstream.add_device(f"d{i}")
    states = [upstream.coordinator.check_in(f"d{i}", "tiny", ready()).state for i in range(2)]
    assert states == ["assigned", "wait"]
    upstream.clock.now += DEADLINE_S
    assert upstream.coordinator.check_in("d1", "tiny", ready()).state == "assigned"


def test_a_relay_gets_all_its_places_or_none(upstream):
    spec = upstream.add_task(tree_spec(cohort_size=3, quorum=3))
    relays = [Upstream(upstream, name, 2) for name in "ab"]
    ask = replace(ready(), is_relay=True)
    replies = [relay.check_in(spec.name, ask) for relay in relays]
    assert [reply.state for reply in replies] == ["assigned", "wait"]
    assert replies[0].assignment.members == 2
    status = upstream.coordinator.round_status(spec.name, 1)
    assert (status.assigned, status.accepted) == (2, 0)


@pytest.mark.parametrize(
    ("option", "named"),
    [
        ({"combination": "median"}, "combination=median"),
        ({"combination": "trimmed_mean"}, "combination=trimmed_mean"),
        ({"max_norm_ratio": 3.0}, "max_norm_ratio"),
        ({"sketching": "balanced"}, "sketching=balanced"),
    ],
)
def test_an_option_that_needs_single_updates_takes_no_relay(upstream, tmp_path, option, named):
    spec = upstream.add_task(tree_spec(cohort_size=2, quorum=2, **option))
    relay = RelaySite(tmp_path / "a", upstream, spec, "a", 2)
    with pytest.raises(ConfigError, match=f"takes no relays: {named} needs every single update"):
        relay.step()
    upstream.add_device("d")
    assert upstream.coordinator.check_in("d", spec.name, ready()).state == "assigned"
    relay.site.store.close()


def test_a_relay_for_more_devices_than_a_round_has_is_refused(upstream, tmp_path):
    spec = upstream.add_task(tree_spec())
    with pytest.raises(ConfigError, match=r"speaks for 7 devices.*has places for 6"):
        RelaySite(tmp_path / "a", upstream, spec, "a", 7).step()


def test_only_a_relays_token_makes_a_relay_and_it_makes_nothing_else(upstream):
    spec = upstream.add_task(tree_spec())
    upstream.add_device("d")
    with pytest.raises(ConfigError, match="made with --relay-for"):
        upstream.coordinator.check_in("d", spec.name, replace(ready(), is_relay=True))
    with pytest.raises(ConfigError, match="made without --relay-for"):
        Upstream(upstream, "a", 2).check_in(spec.name, ready())


def test_a_task_of_another_name_or_spec_is_not_overwritten(one_relay):
    one_relay.site.add_task(replace(one_relay.spec, training=replace(one_relay.spec.training)))
    with pytest.raises(ConfigError, match="a state folder of its own"):
        one_relay.step()


def test_updates_of_a_site_are_kept_until_their_sum_is_sent_and_then_go(one_relay):
    one_relay.step()
    train_both(one_relay)
    with one_relay.site.store.read() as tx:
        digests = {row.digest for row in tx.updates("tiny", 1)}
        assert digests <= tx.needed_digests("", one_relay.site.clock.now + 10**9)
    one_relay.step()
    train(one_relay.upstream.server, one_relay.spec, "d", 5, 2)
    one_relay.upstream.server.advance()
    one_relay.step()
    with one_relay.site.store.read() as tx:
        assert not digests & tx.needed_digests("", one_relay.site.clock.now + 10**9)


def test_a_sum_larger_than_its_devices_may_be_is_quarantined(upstream, tmp_path):
    spec = upstream.add_task(tree_spec(cohort_size=3, quorum=3, max_norm=0.5))
    relay = RelaySite(tmp_path / "a", upstream, spec, "a", 2)
    relay.step()
    with relay.site.store.write() as tx:  # the relay does not screen its devices
        row = find_task(tx, spec.name)
        lax = replace(row.spec, aggregation=replace(spec.aggregation, max_norm=None))
        tx._connection.execute(tables.tasks.update().values(spec=encode_message(lax).decode()))
    for i in range(2):
        relay.train(f"a{i}", i, 8, scale=5.0)
    relay.step()
    with upstream.store.read() as tx:
        (sent,) = tx.updates(spec.name, 1)
        assert "above max_norm=0.5" in sent.quarantine
        assert tx.count_updates(spec.name, 1) == 0
        assert tx.count_seats(spec.name, 1, 0.0) == 0
    relay.site.store.close()


def test_a_device_that_is_too_loud_for_the_task_is_left_out_by_its_site(upstream, tmp_path):
    spec = upstream.add_task(tree_spec(cohort_size=3, quorum=2, max_norm=0.5))
    relay = RelaySite(tmp_path / "a", upstream, spec, "a", 2)
    relay.step()
    relay.train("loud", 1, 8, scale=50.0)
    relay.train("a0", 2, 8)
    relay.train("a1", 3, 8)
    relay.step()
    with upstream.store.read() as tx:
        (sent,) = tx.updates(spec.name, 1)
    assert (sent.members, sent.quarantine) == (2, None)
    relay.site.store.close()
