import resource
import tempfile
from dataclasses import replace

import numpy as np
import pytest

from edge_sdk.errors import StorageError
from edge_sdk.wire.task import DenseSpec
from server.aggregation.update_spool import UpdateSpool
from tests.server.updates import ADAPTER, an_update, trained, values_per_number


def test_every_number_comes_back_once_with_those_of_the_other_devices():
    updates = [an_update(seed, k) for seed, k in enumerate((1, 8, 3, 2))]
    with UpdateSpool(ADAPTER) as spool:
        for update in updates:
            spool.add(update)
        assert len(spool) == 4
        found = {}
        for part in spool.parts():
            for column, values in zip(
                range(part.columns.start, part.columns.stop), part.values.T, strict=True
            ):
                assert (part.tensor, part.rank, column) not in found
                found[part.tensor, part.rank, column] = values.tolist()
    expected = {}
    for (name, index), values in values_per_number(updates).items():
        key = {"A": index, "B": index[::-1]}.get(name[-1])
        if key is None:
            shape = next(dense.shape for dense in ADAPTER.dense if dense.name == name)
            key = (0, int(np.ravel_multi_index(index, shape)))
        expected[(name, *key)] = [value for _, value in values]
    assert found == expected


def test_ranks_nobody_trained_do_not_come():
    update = an_update(3, 2)
    with UpdateSpool(ADAPTER) as spool:
        spool.add(update)
        came = {(part.tensor, part.rank) for part in spool.parts()}
    for i, layer in enumerate(ADAPTER.layers):
        for letter in "AB":
            ranks = {rank for name, rank in came if name == f"{layer.name}.lora_{letter}"}
            assert ranks == set(trained([update], i))


def test_no_more_than_a_million_numbers_come_at_once():
    head = DenseSpec(name="head", shape=[40_000])
    spec, devices = replace(ADAPTER, dense=[head]), 30
    with UpdateSpool(spec) as spool:
        for seed in range(devices):
            spool.add(an_update(seed, 1, spec=spec))
        sizes = [part.values.size for part in spool.parts() if part.tensor == "head"]
    assert max(sizes) <= 2**20 < sum(sizes) == devices * 40_000


def test_an_empty_spool_has_no_parts():
    with UpdateSpool(ADAPTER) as spool:
        assert list(spool.parts()) == []


def test_a_spool_leaves_no_file_behind(monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with UpdateSpool(ADAPTER) as spool:
        spool.add(an_update(0, 2))
    assert list(tmp_path.iterdir()) == []


def test_a_missing_temporary_folder_is_a_storage_error(monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))
    with pytest.raises(StorageError, match="TMPDIR"):
        UpdateSpool(ADAPTER)


def test_a_full_disk_is_a_storage_error():
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1024, hard))
    try:
        with pytest.raises(StorageError, match="TMPDIR"), UpdateSpool(ADAPTER) as spool:
            spool.add(an_update(0, ADAPTER.r))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_file_that_was_cut_is_a_storage_error_and_no_invented_numbers():
    with UpdateSpool(ADAPTER) as spool:
        spool.add(an_update(0, 2))
        spool._file.truncate(8)
        with pytest.raises(StorageError, match="cut short"):
            list(spool.parts())
