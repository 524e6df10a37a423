"""Nothing that an encoding leaves out is lost, counted twice, or added to another rank."""

from __future__ import annotations

import logging
import shutil
from dataclasses import replace

import numpy as np
import pytest

from edge_sdk.errors import MalformedMessage
from edge_sdk.rounds.error_feedback import ErrorFeedback, read_ranks
from edge_sdk.rounds.rank_file import RankFile
from edge_sdk.sketch import draw_sketch
from edge_sdk.wire.block_codes import CODES
from edge_sdk.wire.messages import SliceRanks, encode_message
from edge_sdk.wire.payload import digest
from edge_sdk.wire.rank_rows import rank_rows, row_shapes
from edge_sdk.wire.update_body import decode_update, encode_update
from tests.server.tasks import random_arrays, tiny_spec

SPEC = tiny_spec(update_encoding="int4", error_feedback=True)
ADAPTER = SPEC.adapter
SERVER = "http://server:1"


def feedback(folder, spec=SPEC, server=SERVER):
    return ErrorFeedback(folder, server, spec)


def ranks_of(seed, k):
    return draw_sketch(seed, ADAPTER.r, k, len(ADAPTER.layers))


def sent_round(folder, number, k=3, spec=SPEC, is_confirmed=True):
    """One round; returns the update and what the server decodes, as rows, and the ranks."""
    ranks = ranks_of(number, k)
    update = random_arrays(ADAPTER, k, number)
    body = feedback(folder, spec).encode(update, ranks, number, b"{}")
    if is_confirmed:
        feedback(folder, spec).confirm(digest(body))
    decoded, message = decode_update(body, spec, k)
    assert message == b"{}"
    return rank_rows(update, ADAPTER), rank_rows(decoded, ADAPTER), ranks


def scatter(table, rows, ranks):
    names = [f"{layer.name}.lora_{x}" for layer in ADAPTER.layers for x in "AB"]
    chosen = dict(zip(names, np.repeat(ranks, 2, axis=0), strict=True))
    for name, some in rows.items():
        table[name][chosen.get(name, [0])] += some


def table_of_zeros():
    return {name: np.zeros(shape) for name, shape in row_shapes(ADAPTER, ADAPTER.r).items()}


def residual(folder, k, number, spec=SPEC):
    """What the next update of these ranks is changed by: nothing of it is sent here."""
    return feedback(folder, spec)._residual(ranks_of(number, k))


@pytest.mark.parametrize("encoding", sorted(CODES))
def test_the_sum_of_what_was_decoded_stays_within_a_step_of_the_sum_of_what_was_learned(
    tmp_path, encoding
):
    """Per rank, over rounds of changing sketches and sizes; without feedback it drifts away."""
    spec = tiny_spec(update_encoding=encoding, error_feedback=True)
    learned, decoded, plain = table_of_zeros(), table_of_zeros(), table_of_zeros()
    largest = 0.0
    for number in range(1, 17):
        k = 1 + number % 5
        update, sent, ranks = sent_round(tmp_path, number, k, spec)
        scatter(learned, update, ranks)
        scatter(decoded, sent, ranks)
        alone = encode_update(random_arrays(ADAPTER, k, number), spec, number)
        scatter(plain, rank_rows(decode_update(alone, spec, k)[0], ADAPTER), ranks)
        largest = max(largest, *(np.abs(rows).max() for rows in sent.values()))
    step = 1.01 * largest / CODES[encoding].largest * (2**-11 if encoding == "float16" else 1)
    for name, rows in learned.items():
        assert np.abs(decoded[name] - rows).max() <= step
    drift = {n: np.abs(plain[n] - rows).max() for n, rows in learned.items()}
    kept = {n: np.abs(decoded[n] - rows).max() for n, rows in learned.items()}
    assert max(drift.values()) > 1.3 * max(kept.values())


def test_ranks_that_are_not_drawn_keep_their_residual(tmp_path):
    sent_round(tmp_path, 1, k=2)
    first = residual(tmp_path, 2, 1)
    for number in range(2, 6):
        ranks = [(ranks_of(1, 2)[i] + 2 + number) % 8 for i in range(2)]
        ranks = [np.sort(np.setdiff1d(x, y)) for x, y in zip(ranks, ranks_of(1, 2), strict=True)]
        if any(len(x) < 2 for x in ranks):
            continue
        body = feedback(tmp_path).encode(random_arrays(ADAPTER, 2, number), ranks, number, b"")
        feedback(tmp_path).confirm(digest(body))
    again = residual(tmp_path, 2, 1)
    for layer in ADAPTER.layers:
        for name in (f"{layer.name}.lora_A", f"{layer.name}.lora_B"):
            np.testing.assert_array_equal(again[name], first[name])
            assert first[name].any()


def test_an_update_encoded_again_before_it_is_confirmed_is_the_same_bytes(tmp_path):
    sent_round(tmp_path, 1)
    update, ranks = random_arrays(ADAPTER, 3, 2), ranks_of(2, 3)
    bodies = {feedback(tmp_path).encode(update, ranks, 2, b"{}") for _ in range(3)}
    assert len(bodies) == 1


def test_an_update_that_is_never_confirmed_leaves_the_residual_as_it_was(tmp_path):
    sent_round(tmp_path, 1)
    before = residual(tmp_path, 3, 1)
    sent_round(tmp_path, 1, is_confirmed=False)
    after = residual(tmp_path, 3, 1)
    for name, rows in before.items():
        np.testing.assert_array_equal(after[name], rows)


def test_only_the_body_that_was_sent_is_confirmed(tmp_path):
    sent_round(tmp_path, 1, is_confirmed=False)
    feedback(tmp_path).confirm("00" * 32)
    assert not any(rows.any() for rows in residual(tmp_path, 3, 1).values())


def test_confirming_twice_is_once(tmp_path):
    ranks, update = ranks_of(1, 3), random_arrays(ADAPTER, 3, 1)
    body = feedback(tmp_path).encode(update, ranks, 1, b"")
    for _ in range(2):
        feedback(tmp_path).confirm(digest(body))
        kept = residual(tmp_path, 3, 1)
        total = rank_rows(decode_update(body, SPEC, 3)[0], ADAPTER)
        for name, rows in rank_rows(update, ADAPTER).items():
            np.testing.assert_allclose(kept[name], rows - total[name], atol=1e-7)


def test_a_kill_at_any_write_of_a_confirmation_loses_and_doubles_nothing(tmp_path, monkeypatch):
    """Every prefix of what a confirmation does on disk, then a new process."""
    sent_round(tmp_path / "start", 1)
    update, ranks = random_arrays(ADAPTER, 3, 1), ranks_of(1, 3)
    body = feedback(tmp_path / "start").encode(update, ranks, 5, b"")
    whole = shutil.copytree(tmp_path / "start", tmp_path / "whole")
    feedback(whole).confirm(digest(body))
    expected = residual(whole, 3, 1)

    class Killed(BaseException):
        pass

    def write(file, some_ranks, rows):
        for name in list(rows)[: killed_after[0]]:
            kept = RankFile.read(file, some_ranks)
            real(file, some_ranks, {**kept, name: rows[name]})
        raise Killed

    real, killed_after = RankFile.write, [0]
    for killed_after[0] in range(len(expected) + 1):
        folder = shutil.copytree(tmp_path / "start", tmp_path / f"killed-{killed_after[0]}")
        monkeypatch.setattr(RankFile, "write", write)
        with pytest.raises(Killed):
            feedback(folder).confirm(digest(body))
        monkeypatch.setattr(RankFile, "write", real)
        found = residual(folder, 3, 1)
        for name, rows in expected.items():
            np.testing.assert_array_equal(found[name], rows)


def test_damage_is_set_aside_reported_and_starts_from_nothing(tmp_path, caplog):
    sent_round(tmp_path, 1)
    (path,) = tmp_path.rglob("residual.safetensors")
    content = bytearray(path.read_bytes())
    content[len(content) // 2 :] = bytes(len(content) - len(content) // 2)
    content[-1] ^= 1
    path.write_bytes(bytes(content[:-3]))
    with caplog.at_level(logging.WARNING, "edge_sdk"):
        _, _, ranks = sent_round(tmp_path, 2)
    assert "set aside as" in caplog.text
    assert path.with_suffix(".damaged").exists()
    assert any(rows.any() for rows in feedback(tmp_path)._residual(ranks).values())


@pytest.mark.parametrize("name", ["pending", "confirmed"])
def test_a_damaged_remainder_is_never_used(tmp_path, caplog, name):
    ranks, update = ranks_of(1, 3), random_arrays(ADAPTER, 3, 1)
    body = feedback(tmp_path).encode(update, ranks, 1, b"")
    (pending,) = tmp_path.rglob("pending.safetensors")
    whole = pending.read_bytes()
    path = pending.with_name(f"{name}.safetensors")
    pending.unlink()
    for place in range(0, len(whole), 37):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        feedback(tmp_path).confirm(digest(body))
        assert not any(rows.any() for rows in residual(tmp_path, 3, 1).values()), place
        path.unlink(missing_ok=True)


def test_tasks_servers_and_adapters_do_not_share_residuals(tmp_path):
    sent_round(tmp_path, 1)
    others = (
        feedback(tmp_path, replace(SPEC, name="other")),
        feedback(tmp_path, server="http://other:1"),
        feedback(tmp_path, replace(SPEC, adapter=replace(ADAPTER, lora_alpha=99.0))),
    )
    for other in others:
        assert not any(rows.any() for rows in other._residual(ranks_of(1, 3)).values())


def test_on_a_full_disk_an_update_goes_without_feedback(tmp_path, monkeypatch, caplog):
    sent_round(tmp_path, 1)
    before = residual(tmp_path, 3, 1)

    def refuse(path, content):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("edge_sdk.rounds.error_feedback.write_whole", refuse)
    update = random_arrays(ADAPTER, 3, 2)
    body = feedback(tmp_path).encode(update, ranks_of(1, 3), 2, b"{}")
    assert body == encode_update(update, SPEC, 2, b"{}")
    assert "No space left" in caplog.text
    feedback(tmp_path).confirm(digest(body))
    after = residual(tmp_path, 3, 1)
    for name, rows in before.items():
        np.testing.assert_array_equal(after[name], rows)


@pytest.mark.parametrize(
    "ranks",
    [[], [[0, 1]], [[0, 1], [1]], [[0, 1], [1, 0]], [[0, 0], [1, 2]], [[0, 8], [1, 2]],
     [[-1, 0], [1, 2]], [[0, 1], [1, 2], [3, 4]]],
)  # fmt: skip
def test_ranks_that_no_slice_can_have_are_refused(ranks):
    assert len(read_ranks(encode_message(SliceRanks(ranks=[[0, 7], [1, 2]])), ADAPTER, 2)) == 2
    with pytest.raises(MalformedMessage):
        read_ranks(encode_message(SliceRanks(ranks=ranks)), ADAPTER, 2)


def test_a_slice_without_ranks_is_refused():
    with pytest.raises(MalformedMessage):
        read_ranks(b"", ADAPTER, 2)
