"""The benchmark runs once for real, is remembered, and never keeps a plan from being made."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from edge_sdk.compute.rates import Rates, assumed_rates
from edge_sdk.device import DeviceReport, probe
from edge_sdk.errors import DeviceError
from edge_sdk.files.whole_file import write_whole
from edge_sdk.planning import microbenchmark
from edge_sdk.planning.microbenchmark import known_rates, library_versions, measure_rates
from tests.sdk.workloads import RATES

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(scope="module")
def report() -> DeviceReport:
    return probe()


@pytest.fixture(scope="module")
def measured(
    report: DeviceReport, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Rates, Path]]:
    """The one real run of the benchmark in these tests, and the cache it filled."""
    cache = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(microbenchmark.platformdirs, "user_cache_path", lambda name: cache / name)
        yield measure_rates(report, 1), cache


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of rates."""
    folder = tmp_path / "cache"
    monkeypatch.setattr(microbenchmark.platformdirs, "user_cache_path", lambda name: folder)
    return folder


def test_benchmark_measures_rates_a_plan_can_count_with(measured):
    rates, _ = measured
    assert (rates.origin, rates.threads) == ("measured", 1)
    assert 1e8 < rates.fp32_flops_per_s < 1e14
    assert rates.bf16_flops_per_s > 0
    assert 0 <= rates.half_rate_rows < 10_000
    assert 1e6 < rates.fresh_bytes_per_s < 1e13
    assert 1e-6 < rates.block_overhead_s < 1
    assert 100e6 < rates.process_bytes < 2e9
    assert ("nf4" in rates.unusable) == (rates.nf4_elements_per_s == 0)
    assert 100e6 < rates.lean.process_bytes < rates.process_bytes
    assert rates.lean.block_overhead_s < 1
    assert rates.computes_in_bf16(True) == rates.computes_in_bf16(False)


def test_what_was_measured_is_remembered_and_not_measured_again(measured, report, monkeypatch):
    from edge_sdk.planning.allowance import Allowance
    from edge_sdk.planning.local_plan import LocalPlanner

    rates, cache = measured
    monkeypatch.setattr(microbenchmark.platformdirs, "user_cache_path", lambda name: cache / name)
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    assert known_rates(report, 1) == rates
    assert len(list(cache.rglob("*.json"))) == 1, "nothing half-written is left"
    planner = LocalPlanner(Allowance(threads=1), cache / "state", "model")
    assert planner.rates(measure=True) == rates
    with pytest.raises(DeviceError, match="cannot be started"):
        measure_rates(report, 1)


def test_rates_hold_for_this_number_of_threads_and_these_libraries(cache, report, monkeypatch):
    remember(report, 1)
    assert known_rates(report, 1) == RATES
    assert known_rates(report, 2) == assumed_rates(2)
    newer = {**library_versions(), "torch": "99.0"}
    monkeypatch.setattr(microbenchmark, "library_versions", lambda: newer)
    assert known_rates(report, 1) == assumed_rates(1)


def remember(report: DeviceReport, threads: int) -> Path:
    path = microbenchmark._path(report, threads)
    write_whole(path, msgspec.json.encode(RATES))
    return path


@pytest.mark.parametrize("damage", [b"", b"{}", b"\xff", b'{"origin": "guessed"}', b"[1"], ids=repr)
def test_broken_cache_falls_back_to_assumed_rates(cache, report, damage):
    remember(report, 1).write_bytes(damage)
    assert known_rates(report, 1) == assumed_rates(1)


def install(monkeypatch: pytest.MonkeyPatch, folder: Path, torch: str) -> None:
    """Let every new interpreter find this module instead of torch."""
    (folder / "torch.py").write_text(torch, encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", f"{folder}:{ROOT}")


def test_cache_that_cannot_be_written_is_no_error(tmp_path, report, monkeypatch):
    file = tmp_path / "a file, not a folder"
    file.write_text("", encoding="utf-8")
    monkeypatch.setattr(microbenchmark.platformdirs, "user_cache_path", lambda name: file)
    said = msgspec.json.encode(RATES).decode()
    install(monkeypatch, tmp_path, f"import sys; print({said!r}); sys.exit(0)")
    assert measure_rates(report, 1) == RATES
    assert known_rates(report, 1) == assumed_rates(1)


@pytest.mark.parametrize(
    ("torch", "said"),
    [
        ("raise ImportError('torch is not installed')", "torch is not installed"),
        ("import os; os.abort()", "exit status -6"),
        ("import sys; print('{}'); sys.exit(0)", "exit status 0"),
    ],
    ids=["not installed", "killed", "says nothing of use"],
)
def test_benchmark_that_fails_is_a_device_error_that_names_the_extra(
    cache, report, tmp_path, monkeypatch, torch, said
):
    install(monkeypatch, tmp_path, torch)
    with pytest.raises(DeviceError, match=r"edge-sdk\[train\]") as failed:
        measure_rates(report, 1)
    assert said in str(failed.value)
    assert "\n" not in str(failed.value)
    assert known_rates(report, 1) == assumed_rates(1), "a failure is not remembered"


def test_benchmark_that_hangs_is_ended(cache, report, tmp_path, monkeypatch):
    install(monkeypatch, tmp_path, "import time; time.sleep(60)")
    monkeypatch.setattr(microbenchmark, "_TIMEOUT_S", 1.0)
    with pytest.raises(DeviceError, match="more than 1 s"):
        measure_rates(report, 1)


def test_device_without_torch_still_plans(cache, tmp_path, monkeypatch, caplog):
    from edge_sdk.planning.allowance import Allowance
    from edge_sdk.planning.local_plan import LocalPlanner

    install(monkeypatch, tmp_path, "raise ImportError('torch is not installed')")
    planner = LocalPlanner(Allowance(threads=1), tmp_path / "state", "model")
    assert planner.machine(measure=True).rates == assumed_rates(1)
    assert "edge-sdk[train]" in caplog.text
