"""Captured machines: the system files of a device as a folder that a probe can read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from edge_sdk.sensors.commands import Run

RASPBERRY_PI_5 = {
    "proc/device-tree/model": "Raspberry Pi 5 Model B Rev 1.0\0",
    "proc/device-tree/compatible": "raspberrypi,5-model-b\0brcm,bcm2712\0",
    "proc/meminfo": "MemTotal:  8245984 kB\nMemFree:  512000 kB\nMemAvailable:  6291456 kB\n",
    "proc/cpuinfo": "".join(
        f"processor\t: {core}\nBogoMIPS\t: 108.00\n"
        "Features\t: fp asimd evtstrm aes crc32 fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp\n"
        "CPU implementer\t: 0x41\nCPU architecture: 8\nCPU part\t: 0xd0b\n\n"
        for core in range(4)
    ),
    "proc/swaps": "Filename\tType\tSize\tUsed\tPriority\n/var/swap file 524272 1024 -2\n",
    "proc/loadavg": "2.00 1.00 0.50 1/200 4242\n",
    "proc/self/status": "Name:\tpython\nVmSize:\t  20480 kB\nCpus_allowed_list:\t0-3\n",
    "sys/class/thermal/thermal_zone0/type": "cpu-thermal\n",
    "sys/class/thermal/thermal_zone0/temp": "61250\n",
    "sys/class/power_supply/rpi-poe/name": "nothing of interest\n",
}

JETSON_ORIN_NANO = {
    "proc/device-tree/model": "NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super\0",
    "proc/device-tree/compatible": (
        "nvidia,p3768-0000+p3767-0005-super\0nvidia,p3767-0005\0nvidia,tegra234\0"
    ),
    "proc/sys/kernel/osrelease": "5.15.148-tegra\n",
    "proc/meminfo": "MemTotal:  7802880 kB\nMemFree:  262144 kB\nMemAvailable:  5242880 kB\n",
    "proc/cpuinfo": "".join(
        f"processor\t: {core}\n"
        "Features\t: fp asimd aes fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp uscat ilrcpc\n"
        "CPU implementer\t: 0x41\nCPU part\t: 0xd42\n\n"
        for core in range(6)
    ),
    "proc/swaps": "Filename Type Size Used Priority\n"
    + "".join(f"/dev/zram{i} partition 650240 0 5\n" for i in range(6)),
    **{f"sys/block/zram{i}/disksize": f"{650240 * 1024}\n" for i in range(6)},
    "var/lib/nvpmodel/status": "pmode:0002\n",
    "sys/class/thermal/thermal_zone0/type": "cpu-thermal\n",
    "sys/class/thermal/thermal_zone0/temp": "48500\n",
    "sys/class/thermal/thermal_zone1/type": "PMIC-Die\n",
    "sys/class/thermal/thermal_zone1/temp": "100000\n",
    "sys/class/thermal/thermal_zone2/type": "cv0-thermal\n",
    "sys/class/thermal/thermal_zone2/temp": "-256000\n",
}

LAPTOP = {
    "proc/meminfo": "MemTotal:  16303104 kB\nMemAvailable:  9437184 kB\n",
    "proc/cpuinfo": "".join(
        f"processor\t: {thread}\nmodel name\t: AMD Ryzen 7 7840U w/ Radeon 780M Graphics\n"
        f"physical id\t: 0\ncore id\t\t: {thread // 2}\n"
        "flags\t\t: fpu sse2 fma avx avx2 avx512f avx512_bf16 avx512_vnni\n\n"
        for thread in range(16)
    ),
    "proc/loadavg": "4.00 3.00 2.00 3/900 77\n",
    "proc/pressure/memory": "some avg10=1.50 avg60=0.20 avg300=0.00 total=9\n"
    "full avg10=0.75 avg60=0.10 avg300=0.00 total=5\n",
    "sys/class/power_supply/AC/type": "Mains\n",
    "sys/class/power_supply/AC/online": "0\n",
    "sys/class/power_supply/BAT0/type": "Battery\n",
    "sys/class/power_supply/BAT0/capacity": "57\n",
    "sys/class/power_supply/BAT0/status": "Discharging\n",
    "sys/class/hwmon/hwmon0/name": "k10temp\n",
    "sys/class/hwmon/hwmon0/temp1_input": "71125\n",
    "sys/class/hwmon/hwmon1/name": "nct6775\n",
    "sys/class/hwmon/hwmon1/temp5_input": "127000\n",
}


def write(root: Path, files: Mapping[str, str]) -> Path:
    """Lay a captured machine out under ``root``, which is returned."""
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return root


def answers(printed: Mapping[str, str | None]) -> Run:
    """Stand in for the programs of a captured machine: what each printed, by its name."""

    def run(command: Sequence[str]) -> str | None:
        return printed.get(command[0])

    return run
