"""Power, heat, network, disk and load: what is known, and why the rest is not."""

from __future__ import annotations

import shutil
from collections import namedtuple
from pathlib import Path

import psutil
import pytest

from edge_sdk.device import probe
from edge_sdk.sensors.commands import run_nothing
from edge_sdk.sensors.network import read_metered
from edge_sdk.sensors.power import read_power
from edge_sdk.sensors.thermal import read_temperature, read_throttling
from tests.sdk.captured import LAPTOP, answers, write

SUPPLIES = "sys/class/power_supply"
Battery = namedtuple("Battery", "percent secsleft power_plugged")


def supplies(**found: dict[str, str]) -> dict[str, str]:
    """Return the files of power supplies, given by name."""
    return {
        f"{SUPPLIES}/{name}/{key}": f"{value}\n"
        for name, files in found.items()
        for key, value in files.items()
    }


@pytest.mark.parametrize(
    ("found", "percent", "is_on_mains"),
    [
        (supplies(AC={"type": "Mains", "online": "1"}), None, True),
        (supplies(BAT0={"type": "Battery", "capacity": "80", "status": "Charging"}), 80, True),
        (supplies(BAT0={"type": "Battery", "capacity": "80", "status": "Full"}), 80, True),
        (supplies(BAT0={"type": "Battery", "capacity": "9", "status": "Discharging"}), 9, False),
        (supplies(BAT0={"type": "Battery", "capacity": "9", "status": "Unknown"}), 9, None),
        (
            supplies(
                BAT0={"type": "Battery", "capacity": "80", "status": "Discharging"},
                BAT1={"type": "Battery", "capacity": "40", "status": "Not charging"},
            ),
            60,
            False,
        ),
        (
            supplies(
                BAT0={"type": "Battery", "capacity": "50", "status": "Unknown"},
                AC={"type": "Mains", "online": "0"},
            ),
            50,
            False,
        ),
        (
            supplies(
                BAT0={"type": "Battery", "capacity": "50", "status": "Discharging"},
                ucsi={"type": "USB_PD", "online": "1"},
            ),
            50,
            True,
        ),
        (supplies(BAT0={"serial": "no type and no state"}), None, None),
        (supplies(BAT0={"type": "Battery", "capacity": "300", "status": "?"}), None, None),
        (
            supplies(
                mouse={
                    "type": "Battery",
                    "scope": "Device",
                    "capacity": "5",
                    "status": "Discharging",
                }
            ),
            None,
            True,
        ),
    ],
)
def test_power_supplies_tell_charge_and_mains(tmp_path, found, percent, is_on_mains):
    battery, mains = read_power(write(tmp_path, found))
    assert battery.value == percent
    assert mains.value is is_on_mains


def test_a_machine_that_lists_no_power_supply_runs_on_mains(tmp_path):
    (tmp_path / SUPPLIES).mkdir(parents=True)
    battery, mains = read_power(tmp_path)
    assert battery.value is None
    assert mains.value is True
    assert mains.source.endswith("no battery")


def test_a_capture_without_power_supplies_claims_nothing(tmp_path):
    assert [reading.value for reading in read_power(tmp_path)] == [None, None]


@pytest.mark.parametrize(
    ("told", "percent", "is_on_mains"),
    [
        (None, None, True),
        (Battery(33, 600, False), 33, False),
        (Battery(99, -2, True), 99, True),
        (Battery(50, -1, None), 50, None),
    ],
)
def test_psutil_is_asked_where_there_is_no_sysfs(monkeypatch, told, percent, is_on_mains):
    monkeypatch.setattr(Path, "is_dir", lambda path: False)
    monkeypatch.setattr(psutil, "sensors_battery", lambda: told, raising=False)
    battery, mains = read_power(Path("/"))
    assert (battery.value, mains.value) == (percent, is_on_mains)


def test_a_battery_psutil_cannot_read_is_not_taken_for_mains(monkeypatch):
    monkeypatch.setattr(Path, "is_dir", lambda path: False)
    monkeypatch.delattr(psutil, "sensors_battery", raising=False)
    battery, mains = read_power(Path("/"))
    assert (battery.value, mains.value) == (None, None)


def test_the_hottest_plausible_sensor_is_reported_with_its_file(tmp_path):
    zones = {"x86_pkg_temp": 52000, "PMIC-Die": 100000, "iwlwifi": -274000, "acpitz": 27800}
    files = {}
    for number, (kind, milli) in enumerate(zones.items()):
        files[f"sys/class/thermal/thermal_zone{number}/type"] = kind
        files[f"sys/class/thermal/thermal_zone{number}/temp"] = f"{milli}\n"
    reading = read_temperature(write(tmp_path, files))
    assert reading.value == 52.0
    assert reading.source.endswith("thermal_zone0/temp")


def test_processor_chips_count_and_unwired_mainboard_inputs_do_not(tmp_path):
    reading = read_temperature(write(tmp_path, LAPTOP))
    assert reading.value == 71.125
    assert reading.source.endswith("hwmon0/temp1_input")


@pytest.mark.parametrize("content", ["", "hot", "999999999", "nan"])
def test_a_broken_thermometer_is_no_sensor(tmp_path, content):
    reading = read_temperature(write(tmp_path, {"sys/class/thermal/thermal_zone0/temp": content}))
    assert reading.value is None
    assert reading.source.endswith("no sensor")


@pytest.mark.parametrize(
    ("printed", "now", "since_boot"),
    [
        ("throttled=0x0\n", (), ()),
        ("throttled=0x50000\n", (), ("under-voltage", "throttled")),
        ("throttled=0x80008\n", ("soft temperature limit",), ("soft temperature limit",)),
        ("throttled=0x2\n", ("frequency capped",), ()),
        ("VCHI initialization failed\n", None, None),
        ("throttled=0xFFFFFFFFFFFFFFFF\n", None, None),
        (None, None, None),
    ],
)
def test_raspberry_pi_throttling_is_told_now_and_since_boot(printed, now, since_boot):
    readings = read_throttling(answers({"vcgencmd": printed}))
    assert tuple(reading.value for reading in readings) == (now, since_boot)


@pytest.mark.parametrize(
    ("code", "is_metered"), [(0, None), (1, True), (2, False), (3, True), (4, False), (9, None)]
)
def test_network_manager_codes_count_guesses_as_the_truth(code, is_metered):
    assert read_metered(answers({"busctl": f"u {code}\n"}), "Linux").value is is_metered


@pytest.mark.parametrize(
    ("printed", "is_metered"),
    [
        ("no\n\nunknown\n", False),
        ("no (guessed)\n\nyes (guessed)\n\nunknown\n", True),
        ("yes\n", True),
        ("unknown\n", None),
        ("Error: NetworkManager is not running.\n", None),
        (None, None),
    ],
)
def test_devices_are_asked_where_the_bus_does_not_answer(printed, is_metered):
    assert read_metered(answers({"nmcli": printed}), "Linux").value is is_metered


def test_the_connection_in_use_outweighs_other_devices():
    programs = answers({"busctl": "u 2\n", "nmcli": "yes\n"})
    assert read_metered(programs, "Linux").value is False


@pytest.mark.parametrize("system", ["Linux", "Darwin", "Windows"])
def test_an_unknown_network_has_a_reason(system):
    reading = read_metered(run_nothing, system)
    assert reading.value is None
    assert reading.source


def test_free_disk_is_that_of_the_state_folder_even_before_it_is_made(tmp_path):
    reading = probe(state_folder=tmp_path / "not" / "yet").surroundings.disk_free_bytes
    assert reading.value == pytest.approx(shutil.disk_usage(tmp_path).free, abs=1 << 28)
    assert reading.source.endswith("not/yet")
