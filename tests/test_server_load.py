import pytest

from bench.fold_cost import measure_fold
from bench.server_load import LLAMA_1B, measure_load

TINY = {
    **LLAMA_1B,
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 32,
}


@pytest.mark.processes
def test_every_update_of_a_made_up_fleet_is_accepted_and_every_round_closed():
    row = measure_load(3, 2, TINY, fewest=4)
    assert (row["rounds"], row["updates_per_round"]) == (2, 2)
    assert row["up_bytes_per_device"] == pytest.approx(row["down_bytes_per_device"], rel=0.02)
    assert min(row["end_rss_bytes"], row["peak_rss_bytes"]) > 0


def test_a_fold_is_measured_against_a_pass_over_the_same_bytes():
    row = measure_fold(TINY, 16, 8, "bf16")
    assert row["passes"] == row["fold_ms"] / row["plain_pass_ms"]
