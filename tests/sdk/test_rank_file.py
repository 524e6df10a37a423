"""A file of rows by rank: exact, bounded, and honest about damage."""

from __future__ import annotations

import numpy as np
import pytest
import safetensors.numpy

from edge_sdk.rounds.rank_file import DamagedFile, RankFile
from edge_sdk.sketch import draw_sketch
from edge_sdk.wire.rank_rows import row_shapes
from tests.server.tasks import tiny_spec

ADAPTER = tiny_spec().adapter


def ranks_of(seed, k=3):
    return draw_sketch(seed, ADAPTER.r, k, len(ADAPTER.layers))


def rows_of(seed, k=3):
    rng = np.random.default_rng(seed)
    return {
        name: rng.normal(size=shape).astype(np.float32)
        for name, shape in row_shapes(ADAPTER, k).items()
    }


@pytest.fixture
def path(tmp_path):
    return tmp_path / "kept" / "rows.safetensors"


def same(found, expected):
    assert found.keys() == expected.keys()
    for name, rows in expected.items():
        np.testing.assert_array_equal(found[name], rows)


def test_what_was_never_written_is_zero_and_makes_no_file(path):
    for rows in RankFile(path, ADAPTER, "a").read(ranks_of(1)).values():
        assert not rows.any()
    assert not path.exists()


def test_rows_come_back_by_rank_whatever_was_written_before_and_after(path):
    """Against a plain table of rank r, over many sketches of changing size."""
    file = RankFile(path, ADAPTER, "a")
    table = {name: np.zeros(shape, np.float32) for name, shape in row_shapes(ADAPTER, 8).items()}

    def chosen(ranks):
        names = [f"{layer.name}.lora_{x}" for layer in ADAPTER.layers for x in "AB"]
        picked = dict(zip(names, np.repeat(ranks, 2, axis=0), strict=True))
        return {name: picked.get(name, [0]) for name in table}

    for seed in range(12):
        k = 1 + seed % 8
        ranks, rows = ranks_of(seed, k), rows_of(seed, k)
        same(file.read(ranks), {n: table[n][x] for n, x in chosen(ranks).items()})
        file.write(ranks, rows)
        for name, some in chosen(ranks).items():
            table[name][some] = rows[name]
    everything = [np.arange(8)] * len(ADAPTER.layers)
    same(RankFile(path, ADAPTER, "a").read(everything), table)


def test_writing_the_same_twice_changes_nothing(path):
    file = RankFile(path, ADAPTER, "a")
    file.write(ranks_of(1), rows_of(1))
    once = path.read_bytes()
    file.write(ranks_of(1), rows_of(1))
    assert path.read_bytes() == once


def test_the_file_is_one_adapter_in_fp32_and_a_checksum_per_row(path):
    file = RankFile(path, ADAPTER, "a")
    file.write(ranks_of(1), rows_of(1))
    tensors = safetensors.numpy.load_file(path)
    shapes = row_shapes(ADAPTER, ADAPTER.r).values()
    assert tensors["rows"].nbytes == 4 * sum(rows * width for rows, width in shapes)
    assert tensors["checksums"].nbytes == 4 * sum(rows for rows, _ in shapes)
    assert path.stat().st_size < tensors["rows"].nbytes + tensors["checksums"].nbytes + 400
    assert path.stat().st_mode & 0o077 == 0


def test_a_file_of_another_owner_or_adapter_is_refused(path):
    RankFile(path, ADAPTER, "a").write(ranks_of(1), rows_of(1))
    for other in (
        RankFile(path, ADAPTER, "b"),
        RankFile(path, tiny_spec(r=6, sketch_sizes=[2]).adapter, "a"),
    ):
        with pytest.raises(DamagedFile):
            other.read([np.arange(2)] * 2)
        with pytest.raises(DamagedFile):
            other.write([np.arange(2)] * 2, rows_of(1, 2))


def test_a_flipped_byte_anywhere_is_found_where_it_is_read(path):
    file = RankFile(path, ADAPTER, "a")
    everything = [np.arange(8)] * len(ADAPTER.layers)
    file.write(everything, rows_of(1, 8))
    whole = path.read_bytes()
    for place in range(0, len(whole), 61):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
        with pytest.raises(DamagedFile):
            file.read(everything)
    for length in (0, 7, 100, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(DamagedFile):
            file.read(everything)
