"""A run corrects the next plan of the same model, format and device, and of no other."""

from __future__ import annotations

import os
from dataclasses import replace

import pytest

from edge_sdk.errors import StorageError
from edge_sdk.planning.calibration import Calibration
from edge_sdk.planning.cost import Budget, Correction, cost_of
from tests.sdk.workloads import MACHINE, execution, llama_shape, workload

SHAPE = llama_shape(num_hidden_layers=3, vocab_size=8000)
WORK = workload(SHAPE)
BUDGET = Budget(memory_bytes=2 * 10**9)
WAY = execution(SHAPE, quantization="nf4", k=4)
COST = cost_of(WORK, MACHINE, BUDGET, WAY)
MEASURED_BYTES, MEASURED_S = COST.need.total + 23_456_789, 1.7 * COST.step.total


def test_prediction_of_what_was_measured_is_the_measurement(tmp_path):
    calibration = Calibration(tmp_path, "this device")
    calibration.learn("model", COST, MEASURED_BYTES, MEASURED_S)
    machine = replace(MACHINE, corrections=calibration.corrections("model"))
    again = cost_of(WORK, machine, BUDGET, WAY)
    assert again.peak_bytes == MEASURED_BYTES
    assert again.step_s == pytest.approx(MEASURED_S)
    assert again.is_calibrated


def test_learning_from_a_corrected_plan_does_not_add_corrections_up(tmp_path):
    """The same run a second time changes nothing but the count of runs."""
    calibration = Calibration(tmp_path, "this device")
    for runs in (1, 2, 3):
        calibration.learn("model", COST, MEASURED_BYTES, MEASURED_S)
        machine = replace(MACHINE, corrections=calibration.corrections("model"))
        cost = cost_of(WORK, machine, BUDGET, WAY)
        assert cost.peak_bytes == MEASURED_BYTES
        assert calibration.corrections("model")["nf4"].runs == runs
        calibration.learn("other", cost, MEASURED_BYTES, MEASURED_S)
        other = calibration.corrections("other")["nf4"]
        assert other.memory_bytes == 23_456_789
        assert other.time_factor == pytest.approx(1.7)


def test_correction_survives_a_restart(tmp_path):
    learned = Calibration(tmp_path, "this device").learn("model", COST, MEASURED_BYTES, MEASURED_S)
    assert Calibration(tmp_path, "this device").corrections("model") == {"nf4": learned}
    assert learned == Correction(memory_bytes=23_456_789, time_factor=pytest.approx(1.7), runs=1)


def test_other_models_formats_and_devices_are_not_corrected(tmp_path):
    calibration = Calibration(tmp_path, "this device")
    calibration.learn("model", COST, MEASURED_BYTES, MEASURED_S)
    assert calibration.corrections("another model") == {}
    assert calibration.corrections("mode") == {}
    assert calibration.corrections("model").keys() == {"nf4"}
    assert Calibration(tmp_path, "newer libraries").corrections("model") == {}


def test_what_was_learned_before_stays_when_more_is_learned(tmp_path):
    calibration = Calibration(tmp_path, "this device")
    calibration.learn("model", COST, MEASURED_BYTES, MEASURED_S)
    other = cost_of(WORK, MACHINE, BUDGET, replace(WAY, quantization="fp32"))
    calibration.learn("model", other, other.need.total - 5_000_000, other.step.total)
    known = calibration.corrections("model")
    assert known["nf4"].memory_bytes == 23_456_789
    assert known["fp32"].memory_bytes == -5_000_000


@pytest.mark.parametrize(
    "damage",
    [b"", b"{", b"\xff\xfe", b"[]", b'{"a": 1}', b'{"a": {"memory_bytes": "much"}}'],
    ids=repr,
)
def test_damaged_file_counts_as_none_and_is_written_anew(tmp_path, damage):
    (tmp_path / "calibration.json").write_bytes(damage)
    calibration = Calibration(tmp_path, "this device")
    assert calibration.corrections("model") == {}
    calibration.learn("model", COST, MEASURED_BYTES, MEASURED_S)
    assert Calibration(tmp_path, "this device").corrections("model")["nf4"].runs == 1
    assert os.listdir(tmp_path) == ["calibration.json"], "nothing half-written is left"


def test_folder_that_cannot_be_written_is_a_storage_error(tmp_path):
    file = tmp_path / "a file, not a folder"
    file.write_text("", encoding="utf-8")
    calibration = Calibration(file, "this device")
    assert calibration.corrections("model") == {}
    with pytest.raises(StorageError, match="cannot be written"):
        calibration.learn("model", COST, MEASURED_BYTES, MEASURED_S)


def test_failed_write_leaves_the_old_file(tmp_path):
    calibration = Calibration(tmp_path, "this device")
    calibration.learn("model", COST, MEASURED_BYTES, MEASURED_S)
    blocking = tmp_path / f"calibration.{os.getpid()}"
    blocking.mkdir()
    with pytest.raises(StorageError):
        calibration.learn("model", COST, 0, 1.0)
    assert calibration.corrections("model")["nf4"].memory_bytes == 23_456_789
