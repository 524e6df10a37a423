import numpy as np
import pytest

from edge_sdk.errors import StorageError
from edge_sdk.sketch import draw_sketch
from edge_sdk.wire import payload
from server.blobs.blobs import BlobFolder
from server.rounds.adapters import AdapterShelf, indices_of
from server.rules.balanced import balanced_sketch
from server.storage.store import AssignmentRow, TaskRow
from tests.server.tasks import SEED, random_arrays, tiny_spec


def write(shelf, spec, adapter, version=0):
    return shelf.write(spec, adapter, task="tiny", version=version, round_number=version, now=1.0)


@pytest.mark.parametrize("wire_dtype", ["fp32", "bf16"])
def test_the_master_copy_keeps_every_bit_whatever_the_wire_says(tmp_path, wire_dtype):
    spec = tiny_spec(wire_dtype=wire_dtype).adapter
    adapter = random_arrays(spec, spec.r, 1)
    row = write(AdapterShelf(BlobFolder(tmp_path)), spec, adapter)
    again = AdapterShelf(BlobFolder(tmp_path)).read(spec, row)
    assert all(again[name].tobytes() == adapter[name].tobytes() for name in adapter)


@pytest.mark.parametrize("wire_dtype", ["fp32", "bf16"])
def test_what_devices_download_is_in_the_numbers_of_the_task(tmp_path, wire_dtype):
    spec = tiny_spec(wire_dtype=wire_dtype).adapter
    adapter = random_arrays(spec, spec.r, 1)
    blobs = BlobFolder(tmp_path)
    row = write(AdapterShelf(blobs), spec, adapter)
    body = blobs.read(row.digest)
    arrays, _ = payload.decode(body, payload.adapter_shapes(spec, spec.r), wire_dtype)
    assert row.size_bytes == len(body)
    for name, array in arrays.items():
        np.testing.assert_allclose(array, adapter[name], rtol=0 if wire_dtype == "fp32" else 2e-2)


@pytest.mark.parametrize("drawn_from", [None, 13])
def test_a_slice_is_cut_with_the_ranks_of_the_stored_record(tmp_path, drawn_from):
    task = TaskRow(name="tiny", spec=tiny_spec(), seed=SEED, created_at=0.0)
    spec = task.spec.adapter
    adapter = random_arrays(spec, spec.r, 1)
    shelf = AdapterShelf(BlobFolder(tmp_path))
    row = write(shelf, spec, adapter)
    assignment = AssignmentRow(
        task="tiny",
        round_number=1,
        device_id="a",
        k=2,
        seed=11,
        adapter_version=0,
        assigned_at=0.0,
        drawn_from=drawn_from,
    )
    expected = draw_sketch(11, spec.r, 2, len(spec.layers))
    if drawn_from is not None:
        expected = balanced_sketch(SEED, spec.r, 4, len(spec.layers), drawn_from, 2)
    for mine, theirs in zip(indices_of(SEED, task.spec, assignment), expected, strict=True):
        assert (mine == theirs).all()
    body = shelf.slice(task, row, assignment)
    arrays, message = payload.decode(body, payload.adapter_shapes(spec, 2))
    assert message == b""
    name = spec.layers[0].name
    assert (arrays[f"{name}.lora_A"] == adapter[f"{name}.lora_A"][expected[0]]).all()


def test_reading_another_version_never_returns_the_remembered_one(tmp_path):
    spec = tiny_spec().adapter
    shelf = AdapterShelf(BlobFolder(tmp_path))
    rows = [write(shelf, spec, random_arrays(spec, spec.r, v), v) for v in range(2)]
    name = spec.layers[0].name + ".lora_A"
    for version in (0, 1, 1, 0):
        expected = random_arrays(spec, spec.r, version)[name]
        assert (shelf.read(spec, rows[version])[name] == expected).all()


def test_a_lost_adapter_file_is_a_storage_error(tmp_path):
    spec = tiny_spec().adapter
    blobs = BlobFolder(tmp_path)
    row = write(AdapterShelf(blobs), spec, random_arrays(spec, spec.r, 1))
    blobs.path(row.master_digest).unlink()
    with pytest.raises(StorageError, match=row.master_digest):
        AdapterShelf(blobs).read(spec, row)
