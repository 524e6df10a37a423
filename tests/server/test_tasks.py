import numpy as np
import pytest

from edge_sdk.errors import ConfigError
from server.rounds.adapters import AdapterShelf
from server.rounds.tasks import create_task
from tests.server.tasks import in_parallel, tiny_spec


def test_a_new_task_has_version_zero_of_its_adapter(site):
    spec = site.add_task(tiny_spec())
    assert site.coordinator.tasks() == ["tiny"]
    assert site.coordinator.task("tiny") == spec
    (info,) = site.coordinator.adapters("tiny")
    assert (info.version, info.round_number) == (0, 0)
    master = site.master(spec, 0)
    assert all((master[f"{layer.name}.lora_B"] == 0).all() for layer in spec.adapter.layers)


def test_the_same_seed_makes_the_same_adapter(site):
    for name, seed in (("one", 3), ("same", 3), ("other", 4)):
        site.add_task(tiny_spec(name), seed)
    one, same, other = (site.coordinator.adapters(x)[0].digest for x in ("one", "same", "other"))
    assert one == same != other


def test_a_name_that_is_taken_is_refused_and_the_first_task_stays(site):
    spec = site.add_task(tiny_spec())
    before = site.master(spec, 0)
    with pytest.raises(ConfigError, match="exists already"):
        site.add_task(tiny_spec(rounds=9), seed=8)
    assert site.coordinator.task("tiny") == spec
    np.testing.assert_equal(site.master(spec, 0), before)


def test_of_two_who_make_the_same_task_at_once_one_is_told_that_it_exists(site):
    results = in_parallel([lambda s=seed: site.add_task(tiny_spec(), s) for seed in (1, 2, 3)])
    assert sorted(type(result).__name__ for result in results) == [
        "ConfigError",
        "ConfigError",
        "TaskSpec",
    ]
    assert len(site.coordinator.adapters("tiny")) == 1


@pytest.mark.parametrize("seed", [-1, 2**53])
def test_a_seed_that_json_readers_would_change_is_refused(site, seed):
    with pytest.raises(ConfigError, match="seed"):
        create_task(site.store, AdapterShelf(site.blobs), tiny_spec(), seed, 1.0)
    assert site.coordinator.tasks() == []
