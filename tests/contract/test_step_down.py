"""Over HTTP: a device that can no longer afford its work gets less of it in the same round."""

import numpy as np
import pytest
import requests

from edge_sdk.sketch import draw_sketch
from edge_sdk.wire import payload
from edge_sdk.wire.messages import CheckInReply, decode_message
from edge_sdk.wire.task import AdapterSpec, LayerSpec
from server.access.auth import make_enrolment_token
from tests.contract.conftest import Device, Service
from tests.contract.test_api import wait_for_state
from tests.contract.test_api_errors import check_problem
from tests.processes import ServerProcess
from tests.server.tasks import Site, random_arrays, tiny_spec, update_body, wait_until

UPDATE = "/v1/tasks/tiny/rounds/1/update"


def work_of(answer: requests.Response, state="assigned"):
    assert answer.status_code == 200
    reply = decode_message(CheckInReply, answer.content)
    assert (reply.state, reply.round_number) == (state, 1)
    return reply.assignment


def facts(work):
    """All of an assignment but the time that is left."""
    return work.round_number, work.adapter_version, work.seed, work.training, work.k


def slice_of(device, spec, k):
    answer = device.call("GET", f"/v1/tasks/{spec.name}/rounds/1/slice")
    payload.check_content_digest(answer.content, answer.headers["Content-Digest"])
    return payload.decode(answer.content, payload.adapter_shapes(spec.adapter, k))[0]


def accepted(device):
    return device.call("GET", "/v1/tasks/tiny/rounds/1").json()["accepted"]


def test_a_smaller_affordable_k_gets_a_smaller_sketch_of_the_same_work(service, device):
    first = work_of(device.check_in(affordable_k=8))
    second = work_of(device.check_in(affordable_k=3))
    assert facts(second) == (*facts(first)[:-1], 2)
    assert 599 < second.deadline_s <= first.deadline_s
    arrays = slice_of(device, service.spec, 2)
    whole = service.site.master(service.spec, 0)
    ranks = draw_sketch(first.seed, 8, 2, 2)
    for layer, mine in zip(service.spec.adapter.layers, ranks, strict=True):
        name = f"{layer.name}.lora_A"
        np.testing.assert_array_equal(arrays[name], whole[name][mine])


def test_what_still_fits_and_what_is_larger_changes_nothing(device):
    device.check_in(affordable_k=8)
    stepped = work_of(device.check_in(affordable_k=4))
    for affordable_k in (4, 5, 8, 2**53):
        assert facts(work_of(device.check_in(affordable_k=affordable_k))) == facts(stepped)


def test_below_the_ladder_is_refused_and_the_work_stays(service, device):
    service.site.add_task(tiny_spec("coarse", sketch_sizes=[2, 8]))
    first = work_of(device.check_in("coarse", affordable_k=8))
    problem = check_problem(device.check_in("coarse", affordable_k=1), 400, "invalid_config")
    assert "k=2" in problem.detail
    assert facts(work_of(device.check_in("coarse", affordable_k=8))) == facts(first)


def test_an_update_of_the_size_before_is_refused_and_the_smaller_one_counted_once(service, device):
    device.check_in(affordable_k=8)
    device.check_in(affordable_k=2)
    problem = check_problem(device.put(update_body(service.spec, 8, 1)), 400, "malformed_payload")
    assert "k=2 in round 1" in problem.detail
    assert accepted(device) == 0
    body = update_body(service.spec, 2, seed=1)
    first, again = device.put(body), device.put(body)
    assert (first.status_code, again.status_code) == (200, 200)
    assert first.json() == again.json()
    assert accepted(device) == 1


def test_a_device_whose_update_is_accepted_waits_instead_of_stepping_down(service, device):
    body = update_body(service.spec, work_of(device.check_in(affordable_k=8)).k, seed=1)
    receipt = device.put(body).json()
    assert work_of(device.check_in(affordable_k=1), state="wait") is None
    assert device.put(body).json() == receipt


def test_a_body_on_its_way_while_the_device_steps_down_is_refused(service, device):
    """The first piece is taken under the limit of the old size, the last after stepping down."""
    device.check_in(affordable_k=8)
    body = update_body(service.spec, 8, seed=1)
    partial = service.site.settings.blob_folder / "partial"
    sizes = []

    def pieces():
        yield body[:100]
        wait_until(lambda: list(partial.iterdir()))
        sizes.append(work_of(device.check_in(affordable_k=2)).k)
        yield body[100:]

    digest = {"Content-Digest": payload.content_digest(body)}
    answer = device.call("PUT", UPDATE, data=pieces(), headers=digest)
    check_problem(answer, 400, "malformed_payload")
    assert (sizes, accepted(device)) == ([2], 0)
    assert device.put(update_body(service.spec, 2, seed=1)).status_code == 200


def test_an_update_beyond_the_smaller_limit_is_too_large(service, device):
    wide = wide_spec()
    service.site.add_task(wide)
    device.check_in("wide", affordable_k=8)
    device.check_in("wide", affordable_k=1)
    check_problem(device.put(update_body(wide, 8, 1), task="wide"), 413, "too_large")
    assert device.put(update_body(wide, 1, 1), task="wide").status_code == 200


def wide_spec():
    """A task whose update at k=8 is larger than everything that may come at k=1."""
    narrow = tiny_spec("wide", r=8)
    adapter = AdapterSpec(
        r=8,
        lora_alpha=16.0,
        target_modules=["q_proj"],
        layers=[LayerSpec(name="model.layers.0.self_attn.q_proj", d_in=9_000, d_out=9_000)],
    )
    return type(narrow)(
        name="wide",
        base=narrow.base,
        adapter=adapter,
        training=narrow.training,
        policy=narrow.policy,
    )


@pytest.mark.processes
def test_a_server_killed_after_the_step_down_and_before_closing_keeps_the_smaller_record(tmp_path):
    """``kill -9`` after the check-in and right after the receipt; the ranks are those of k=2."""
    site = Site(tmp_path / "state")
    spec = site.add_task(tiny_spec(cohort_size=2, quorum=2))
    token = make_enrolment_token(site.store, 0.0)
    with ServerProcess(tmp_path / "state") as server:
        service = Service(server.address, site, spec, token)
        device, other = service.device("a"), service.device("b")
        seed = work_of(device.check_in(affordable_k=8)).seed
        device.check_in(affordable_k=2)
        kill_and_start(server)
        work = work_of(device.check_in(affordable_k=2))
        assert (work.k, work.seed) == (2, seed)
        assert device.put(update_body(spec, 2, seed=1)).status_code == 200
        kill_and_start(server)
        train_at(other, spec, k=1)
        assert wait_for_state(device, "closed").adapter_version == 1
    for i, layer in enumerate(spec.adapter.layers):
        check_moved(site, spec, i, f"{layer.name}.lora_A", seed)
    site.store.close()


def kill_and_start(server: ServerProcess) -> None:
    server.kill()
    server.start()


def train_at(device: Device, spec, k: int) -> None:
    """Send nothing but zeros, so that every rank that moves is another device's."""
    work = work_of(device.check_in(affordable_k=k))
    zeros = {name: 0 * array for name, array in random_arrays(spec.adapter, work.k, 0).items()}
    _, message = payload.decode(
        update_body(spec, work.k, 0), payload.adapter_shapes(spec.adapter, work.k)
    )
    assert device.put(payload.encode(zeros, "fp32", message)).status_code == 200


def check_moved(site: Site, spec, layer: int, name: str, seed: int) -> None:
    """Half the update of k=2 is on the ranks its record draws, and nothing anywhere else."""
    before, after = site.master(spec, 0)[name], site.master(spec, 1)[name]
    expected = before.copy()
    expected[draw_sketch(seed, 8, 2, 2)[layer]] += random_arrays(spec.adapter, 2, 1)[name] / 2
    np.testing.assert_allclose(after, expected, rtol=1e-6, atol=1e-9)
