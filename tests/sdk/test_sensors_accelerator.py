"""Accelerators are read from what their programs and device trees say, up to the command seam."""

from __future__ import annotations

import pytest

from edge_sdk.device import probe
from edge_sdk.sensors.apple import read_metal
from edge_sdk.sensors.commands import run_nothing
from edge_sdk.sensors.cpu import read_cpu
from edge_sdk.sensors.jetson import read_jetson
from edge_sdk.sensors.memory import read_memory
from edge_sdk.sensors.nvidia import read_nvidia
from tests.sdk.captured import JETSON_ORIN_NANO, LAPTOP, RASPBERRY_PI_5, answers, write

GIB = 1 << 30
MIB = 1 << 20
RTX_4060 = "NVIDIA GeForce RTX 4060 Laptop GPU, 8188, 7811, 8.9, 560.94\n"
GTX_1650 = "NVIDIA GeForce GTX 1650, 4096, 4001, 7.5, 560.94\n"


@pytest.fixture
def nvidia(tmp_path):
    """Read what ``nvidia-smi`` printed, on a machine of captured files."""

    def read(printed, machine=LAPTOP, environment=None):
        root = write(tmp_path, machine)
        cpu = read_cpu(root, run_nothing, "Linux")
        programs = answers({"nvidia-smi": printed})
        return read_nvidia(programs, read_memory(root), cpu, environment or {})

    return read


def test_a_card_is_read_from_the_drivers_program(nvidia):
    card = nvidia(RTX_4060)
    assert (card.kind.value, card.name.value) == ("cuda", "NVIDIA GeForce RTX 4060 Laptop GPU")
    assert (card.total_bytes.value, card.free_bytes.value) == (8188 * MIB, 7811 * MIB)
    assert (card.compute_capability.value, card.driver_version.value) == ("8.9", "560.94")
    assert card.is_memory_shared.value is False
    assert card.power_mode.value is None


def test_the_probe_asks_the_program_for_every_field_it_reads(tmp_path):
    asked = []
    probe(write(tmp_path, LAPTOP), run=lambda command: asked.append(list(command)))
    assert [
        "nvidia-smi",
        "--query-gpu=name,memory.total,memory.free,compute_cap,driver_version",
        "--format=csv,noheader,nounits",
    ] in asked


def test_a_gpu_beside_arm_cores_without_memory_of_its_own_shares_the_machines(nvidia):
    card = nvidia("NVIDIA GB10, [N/A], [N/A], 12.1, 580.126.09\n", RASPBERRY_PI_5)
    assert card.is_memory_shared.value is True
    assert card.free_bytes.value == 6 * GIB
    assert card.compute_capability.value == "12.1"


@pytest.mark.parametrize(
    ("untold", "machine"),
    [("[N/A]", LAPTOP), ("[Insufficient Permissions]", RASPBERRY_PI_5)],
)
def test_a_card_that_only_does_not_tell_its_memory_is_not_given_the_machines(
    nvidia, untold, machine
):
    card = nvidia(f"NVIDIA A100, {untold}, {untold}, [N/A], 560.94\n", machine)
    assert card.is_memory_shared.value is False
    assert card.total_bytes.value is None
    assert card.free_bytes.source == f"nvidia-smi: {untold}"
    assert card.compute_capability.value is None


@pytest.mark.parametrize(
    ("visible", "name"),
    [
        ("0", "NVIDIA GeForce RTX 4060 Laptop GPU"),
        ("1", "NVIDIA GeForce GTX 1650"),
        ("1,0", "NVIDIA GeForce GTX 1650"),
        ("", None),
        ("-1", None),
        ("7", None),
    ],
)
def test_the_environment_chooses_or_hides_cards(nvidia, visible, name):
    card = nvidia(RTX_4060 + GTX_1650, environment={"CUDA_VISIBLE_DEVICES": visible})
    assert card.name.value == name


@pytest.mark.parametrize(
    "printed",
    [
        None,
        "",
        "No devices were found\n",
        "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver.\n",
        "a,b,c\n,,,,\n\0\n",
    ],
)
def test_a_program_that_knows_no_card_leaves_a_reason(nvidia, printed):
    card = nvidia(printed)
    assert card.kind.value is None
    assert "nvidia-smi" in card.kind.source


@pytest.mark.parametrize("total", ["-5", "many", "", "9" * 30, "²"])
def test_a_senseless_memory_size_is_missing_and_the_rest_is_kept(nvidia, total):
    card = nvidia(f"Card, {total}, 100, 8.9, 1\n")
    assert card.total_bytes.value is None
    assert card.free_bytes.value == 100 * MIB


@pytest.mark.parametrize(
    ("compatible", "name", "capability"),
    [
        ("nvidia,p3737-0000+p3701-0005\0nvidia,p3701-0005\0nvidia,tegra234", "AGX Orin", "8.7"),
        ("nvidia,p3509-0000+p3767-0000\0nvidia,tegra234", "Orin NX 16GB", "8.7"),
        ("nvidia,p3767-0001\0nvidia,tegra234", "Orin NX 8GB", "8.7"),
        ("nvidia,p3767-0003\0nvidia,tegra234", "Orin Nano 8GB", "8.7"),
        ("nvidia,p3767-0004\0nvidia,tegra234", "Orin Nano 4GB", "8.7"),
        ("nvidia,p3768-0000+p3767-0005-super\0nvidia,tegra234", "Orin Nano 8GB", "8.7"),
        ("nvidia,p9999-0000\0nvidia,tegra234", "Orin", "8.7"),
        ("nvidia,jetson-nano\0nvidia,tegra210", "Nano or TX1", "5.3"),
    ],
)
def test_a_jetson_module_is_named_by_its_device_tree(tmp_path, compatible, name, capability):
    root = write(tmp_path, {"proc/device-tree/compatible": compatible + "\0"})
    report = read_jetson(root, run_nothing, read_memory(root))
    assert report.name.value == f"Jetson {name}"
    assert report.compute_capability.value == capability


def test_a_jetson_kernel_without_a_device_tree_is_still_a_jetson(tmp_path):
    root = write(tmp_path, {"proc/sys/kernel/osrelease": "5.10.120-tegra\n"})
    report = read_jetson(root, run_nothing, read_memory(root))
    assert report.name.value == "Jetson"
    assert report.compute_capability.value is None


@pytest.mark.parametrize(
    "files",
    [
        {},
        LAPTOP,
        RASPBERRY_PI_5,
        {"proc/device-tree/compatible": "google,p3701-clone\0acme,tegra234\0"},
        {"proc/sys/kernel/osrelease": "6.1.0-tegra-like-42\n"},
    ],
)
def test_other_machines_are_no_jetson(tmp_path, files):
    root = write(tmp_path, files)
    assert read_jetson(root, run_nothing, read_memory(root)) is None


def test_a_jetsons_free_memory_is_what_the_host_and_its_cgroup_leave(tmp_path):
    files = {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/memory.max": f"{2 * GIB}\n"}
    report = probe(write(tmp_path, JETSON_ORIN_NANO | files))
    assert report.accelerator.is_memory_shared.value is True
    assert report.accelerator.free_bytes.value == 2 * GIB
    assert report.accelerator.free_bytes.source.endswith("memory.max")


def test_a_jetson_is_not_asked_for_a_card(tmp_path):
    """Its nvidia-smi knows only a family's name, and no memory."""
    programs = answers({"nvidia-smi": "Orin (nvgpu), [N/A], [N/A], [N/A], N/A\n"})
    report = probe(write(tmp_path, JETSON_ORIN_NANO), run=programs)
    assert report.accelerator.name.value == "Jetson Orin Nano 8GB"


@pytest.mark.parametrize(
    ("printed", "mode", "source"),
    [
        ("NV Power Mode: 15W\n0\n", "15W", "nvpmodel -q"),
        ("NV Fan Mode:quiet\nNV Power Mode: MAXN_SUPER\n2\n", "MAXN_SUPER", "nvpmodel -q"),
        ("NVPM ERROR: failed\n", "pmode:0002", "status"),
        (None, "pmode:0002", "status"),
    ],
)
def test_the_power_mode_comes_from_nvpmodel_or_its_file(tmp_path, printed, mode, source):
    programs = answers({"nvpmodel": printed})
    report = probe(write(tmp_path, JETSON_ORIN_NANO), run=programs)
    assert report.accelerator.power_mode.value == mode
    assert report.accelerator.power_mode.source.endswith(source)


def test_only_a_mac_with_an_apple_chip_has_metal(tmp_path):
    root = write(tmp_path, LAPTOP)
    cpu, memory = read_cpu(root, run_nothing, "Darwin"), read_memory(root)
    report = read_metal("Darwin", "arm64", cpu, memory)
    assert (report.kind.value, report.is_memory_shared.value) == ("metal", True)
    assert report.free_bytes.value == 9 * GIB
    assert read_metal("Darwin", "x86_64", cpu, memory) is None
    assert read_metal("Linux", "arm64", cpu, memory) is None
