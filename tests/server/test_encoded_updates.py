"""Updates in codes, from the body to the next version: decoded once, by the server's own record."""

from __future__ import annotations

import json

import numpy as np
import pytest

from edge_sdk.errors import ConfigError, MalformedPayload
from edge_sdk.rounds.error_feedback import read_ranks
from edge_sdk.sketch import scatter_add
from edge_sdk.wire import payload
from edge_sdk.wire.block_codes import CODES
from edge_sdk.wire.messages import decode_message, encode_message
from edge_sdk.wire.task import TaskSpec, TrainingSpec
from edge_sdk.wire.update_body import decode_update
from server.rounds.adapters import indices_of
from server.storage.lookup import find_adapter, find_assignment, find_task
from tests.server.tasks import random_arrays, ready, tiny_spec, update_body

ENCODINGS = sorted(CODES)


def adapter_of(site, spec, version):
    with site.store.read() as tx:
        return site.coordinator._shelf.read(spec.adapter, find_adapter(tx, spec.name, version))


def assignment_of(site, device):
    with site.store.read() as tx:
        return find_task(tx, "tiny"), find_assignment(tx, "tiny", 1, device)


def start(site, **ways):
    spec = site.add_task(tiny_spec(cohort_size=2, quorum=2, **ways))
    for name in "ab":
        site.add_device(name)
    return spec


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_the_next_version_is_the_mean_of_the_decoded_updates_on_their_ranks(site, encoding):
    """Against plain scattering of what decode_update returns."""
    spec = start(site, update_encoding=encoding, error_feedback=True)
    expected = {n: x.astype(np.float64) for n, x in adapter_of(site, spec, 0).items()}
    for name, k, seed in (("a", 4, 1), ("b", 2, 2)):
        assert site.train(name, spec, seed, k).k == k
        update, _ = decode_update(update_body(spec, k, seed), spec, k)
        task, assignment = assignment_of(site, name)
        indices = indices_of(task.seed, spec, assignment)
        for layer, ranks in zip(spec.adapter.layers, indices, strict=True):
            A, B = f"{layer.name}.lora_A", f"{layer.name}.lora_B"
            scatter_add(expected[B], expected[A], update[B], update[A], ranks, 0.5)
        for dense in spec.adapter.dense:
            expected[dense.name] += 0.5 * update[dense.name]
    site.advance()
    for name, array in adapter_of(site, spec, 1).items():
        np.testing.assert_allclose(array, expected[name], atol=1e-7)


@pytest.mark.parametrize("combination", ["median", "trimmed_mean"])
def test_robust_means_take_updates_in_codes(site, combination):
    spec = start(site, update_encoding="int8", combination=combination)
    before = adapter_of(site, spec, 0)
    for name in "ab":
        site.train(name, spec, 1)
    site.advance()
    update, _ = decode_update(update_body(spec, 8, 1), spec, 8)
    for name, array in adapter_of(site, spec, 1).items():
        np.testing.assert_allclose(array, before[name] + update[name], atol=1e-6)


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_an_update_in_the_numbers_of_the_wire_is_refused_where_codes_are_asked_for(site, encoding):
    spec = start(site, update_encoding=encoding)
    site.coordinator.check_in("a", "tiny", ready(4))
    with pytest.raises(MalformedPayload, match="this device has k=4"):
        site.submit("a", "tiny", 1, update_body(tiny_spec(), 4, seed=1))
    site.submit("a", "tiny", 1, update_body(spec, 4, seed=1))


def test_the_limit_of_an_update_follows_its_encoding(site):
    spec = start(site, update_encoding="int4")
    site.coordinator.check_in("a", "tiny", ready(8))
    limit = site.coordinator.expect_update("a", "tiny", 1)
    body = update_body(spec, 8, seed=1)
    assert len(body) <= limit < payload.body_limit(spec.adapter, 8)


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_the_norm_that_is_screened_is_that_of_the_decoded_numbers(site, encoding):
    spec = start(site, update_encoding=encoding, max_norm=0.5)
    site.train("a", spec, 1, scale=0.1)
    site.train("b", spec, 2, scale=0.9)
    with site.store.read() as tx:
        fine, wild = tx.accepted("tiny", 1, "a"), tx.accepted("tiny", 1, "b")
    assert fine.quarantine is None
    assert "above max_norm" in wild.quarantine
    sent = np.concatenate([x.ravel() for x in random_arrays(spec.adapter, 8, 2, 0.9).values()])
    assert wild.norm == pytest.approx(float(np.sqrt(np.square(sent).mean())), rel=0.05)


@pytest.mark.parametrize("sketching", ["independent", "balanced"])
def test_a_slice_names_its_ranks_if_devices_keep_what_was_left_out(site, sketching):
    spec = start(site, update_encoding="int8", error_feedback=True, sketching=sketching)
    site.coordinator.check_in("a", "tiny", ready(2))
    body = site.coordinator.slice_for("a", "tiny", 1)
    slices, message = payload.decode(body, payload.adapter_shapes(spec.adapter, 2))
    whole = adapter_of(site, spec, 0)
    assert len(body) <= payload.body_limit(spec.adapter, 2)
    for layer, ranks in zip(spec.adapter.layers, read_ranks(message, spec.adapter, 2), strict=True):
        name = f"{layer.name}.lora_A"
        np.testing.assert_array_equal(slices[name], whole[name][ranks])


def test_a_slice_says_nothing_of_its_ranks_otherwise(site):
    spec = start(site, update_encoding="int8")
    site.coordinator.check_in("a", "tiny", ready(2))
    body = site.coordinator.slice_for("a", "tiny", 1)
    assert payload.decode(body, payload.adapter_shapes(spec.adapter, 2))[1] == b""


def test_a_task_of_an_older_release_sends_the_numbers_of_the_wire():
    content = json.loads(encode_message(tiny_spec()))
    for name in ("update_encoding", "error_feedback"):
        del content["training"][name]
    found = decode_message(TaskSpec, json.dumps(content).encode())
    assert (found.training.update_encoding, found.training.error_feedback) == ("wire", False)
    assert found == tiny_spec()


def test_feedback_of_nothing_left_out_is_refused():
    with pytest.raises(ConfigError, match="take 'float16', 'int8' or 'int4'"):
        TrainingSpec(error_feedback=True)
