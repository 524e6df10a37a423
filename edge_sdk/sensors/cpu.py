"""The processor: its name, its cores, and the instruction sets that decide training speed."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from edge_sdk.sensors.commands import Run
from edge_sdk.sensors.cores import read_cores, read_logical_cores
from edge_sdk.sensors.files import text
from edge_sdk.sensors.reading import Reading

_X86 = {"avx2", "fma", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8", "avx_vnni"}
_ARM = {"asimdhp", "asimddp", "bf16", "i8mm", "sve"}
_NEON = {"asimd", "neon"}  # as 64-bit and 32-bit kernels call it
_SYSCTL = {
    "hw.optional.avx2_0": "avx2",
    "hw.optional.fma": "fma",
    "hw.optional.avx512f": "avx512f",
    "hw.optional.neon": "neon",
    "hw.optional.AdvSIMD": "neon",
    "hw.optional.arm.AdvSIMD": "neon",
    "hw.optional.neon_fp16": "asimdhp",
    "hw.optional.arm.FEAT_FP16": "asimdhp",
    "hw.optional.arm.FEAT_DotProd": "asimddp",
    "hw.optional.arm.FEAT_BF16": "bf16",
    "hw.optional.arm.FEAT_I8MM": "i8mm",
}
_ARM_CORES = {  # (implementer, part)
    ("0x41", "0xd03"): "Cortex-A53",
    ("0x41", "0xd05"): "Cortex-A55",
    ("0x41", "0xd07"): "Cortex-A57",
    ("0x41", "0xd08"): "Cortex-A72",
    ("0x41", "0xd0b"): "Cortex-A76",
    ("0x41", "0xd42"): "Cortex-A78AE",
    ("0x4e", "0x004"): "Carmel",
}
_BF16_UNITS = {"avx512_bf16", "amx_bf16", "bf16"}


@dataclass(frozen=True, slots=True, kw_only=True)
class CpuReport:
    """The processor and what of it this process may use.

    Attributes:
        model: Name, for people and for telling machines apart.
        cores: Physical cores this process may use, after affinity and cgroup quota; the source
            names what binds.
        logical_cores: Hardware threads of the machine.
        instruction_sets: Sorted, of ``avx2 fma avx512f avx512_vnni avx512_bf16 amx_bf16 amx_int8
            avx_vnni`` on x86 and ``neon asimdhp asimddp bf16 i8mm sve`` on ARM.
    """

    model: Reading[str]
    cores: Reading[int]
    logical_cores: Reading[int]
    instruction_sets: Reading[tuple[str, ...]]

    @property
    def has_native_bf16(self) -> bool:
        """Whether the CPU multiplies bfloat16 in hardware, as far as the system tells."""
        return bool(_BF16_UNITS & set(self.instruction_sets.value or ()))


def read_cpu(root: Path, run: Run, system: str) -> CpuReport:
    """Read the processor of a ``platform.system()``: Linux, Darwin or Windows."""
    path = root / "proc/cpuinfo"
    listed = text(path)
    if listed.value is not None:
        model, sets = _from_cpuinfo(listed.value, str(path))
    elif system == "Darwin":
        model, sets = _from_sysctl(run)
    else:
        model, sets = _from_environment(listed.source, system)
    return CpuReport(
        model=model,
        cores=read_cores(root),
        logical_cores=read_logical_cores(root),
        instruction_sets=sets,
    )


def _from_cpuinfo(content: str, source: str) -> tuple[Reading[str], Reading[tuple[str, ...]]]:
    fields: dict[str, list[str]] = {}
    for line in content.splitlines():
        key, _, value = (part.strip() for part in line.partition(":"))
        fields.setdefault(key, []).append(value)
    words = fields.get("flags") or fields.get("Features")
    sets: Reading[tuple[str, ...]] = Reading(None, f"{source}: no flags")
    if words:
        sets = Reading(_stable_names(set(words[0].split())), source)
    names = fields.get("model name", [])[:1] or _arm_cores(fields)
    name = " + ".join(names)
    return Reading(name or None, source if name else f"{source}: no model"), sets


def _stable_names(words: set[str]) -> tuple[str, ...]:
    neon = {"neon"} if words & _NEON else set()
    return tuple(sorted(words & (_X86 | _ARM) | neon))


def _arm_cores(fields: dict[str, list[str]]) -> list[str]:
    """Name each kind of core; a processor may mix fast and frugal ones."""
    pairs = zip(fields.get("CPU implementer", []), fields.get("CPU part", []), strict=False)
    return [
        _ARM_CORES.get(pair, f"ARM implementer {pair[0]} part {pair[1]}")
        for pair in dict.fromkeys(pairs)
    ]


def _from_sysctl(run: Run) -> tuple[Reading[str], Reading[tuple[str, ...]]]:
    """Ask macOS. Written from its documentation; not measured on hardware."""
    printed = run(["sysctl", "machdep.cpu", "hw.optional"])
    if printed is None:
        reason = "sysctl: no answer"
        return Reading(None, reason), Reading(None, reason)
    pairs = [line.partition(": ")[::2] for line in printed.splitlines()]
    values = {key.strip(): value.strip() for key, value in pairs}
    sets = {name for key, name in _SYSCTL.items() if values.get(key) == "1"}
    model = values.get("machdep.cpu.brand_string") or None
    return (
        Reading(model, "sysctl" if model else "sysctl: no machdep.cpu.brand_string"),
        Reading(tuple(sorted(sets)), "sysctl"),
    )


def _from_environment(reason: str, system: str) -> tuple[Reading[str], Reading[tuple[str, ...]]]:
    if system != "Windows":
        return Reading(None, reason), Reading(None, reason)
    model = os.environ.get("PROCESSOR_IDENTIFIER")
    source = "environment variable PROCESSOR_IDENTIFIER"
    return (
        Reading(model, source if model else f"{source}: not set"),
        Reading(None, "Windows does not list instruction sets"),
    )
