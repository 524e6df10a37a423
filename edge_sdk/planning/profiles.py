"""Device profiles: what a device one does not hold can do, to plan for it or to imitate it.

One JSON file describes one class of device; ``device_profiles/README.md`` says what each field
means and where the numbers come from. Own files are looked for before the shipped ones.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from inspect import cleandoc
from pathlib import Path
from typing import Literal, TypeVar

import msgspec

from edge_sdk.errors import ProfileError
from edge_sdk.wire.typed_json import decode_json

FOLDERS_VARIABLE = "EDGE_SDK_PROFILES"
"""Environment variable with folders of own profiles, separated like those of ``PATH``."""

# Next to the package, in a checkout as in an installation. Not importlib.resources: there is no
# __init__.py in that folder, so one of the same name in the current directory would join it.
_SHIPPED = Path(__file__).parents[2] / "device_profiles"
_SCHEMA_NAME = "schema"
_NAME = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")
_ISA = re.compile(r"[a-z0-9_]+")
_INT8_ISA = frozenset({"avx512_vnni", "avx_vnni", "amx_int8"})
_COMPUTE_CAPABILITY = re.compile(r"\d+\.\d")
_RATES = {"fp32_flops_per_s", "fp16_flops_per_s", "bf16_flops_per_s", "int8_ops_per_s"}

Basis = Literal["data sheet", "published benchmark", "derived", "unverified", "measured"]
GpuKind = Literal["cuda", "metal", "rocm", "vulkan"]
GenericQuantization = Literal["nf4", "bf16", "fp32"]
Part = TypeVar("Part", bound=msgspec.Struct)


class PowerMode(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One setting of the device's power limit.

    Attributes:
        name: As the device's own tool calls it.
        watts: Power limit; None if the maker states none.
        cpu_share: Part of the CPU's full rate that is left, above 0 and at most 1.
        gpu_share: The same for the GPU.
    """

    name: str
    watts: float | None = None
    cpu_share: float = 1.0
    gpu_share: float = 1.0

    def __post_init__(self) -> None:
        _require(bool(self.name), "name", self.name, "not empty")
        _check_positive(self, "watts")
        for share in ("cpu_share", "gpu_share"):
            value = getattr(self, share)
            _require(0 < value <= 1, share, value, "above 0 and at most 1")


class Cpu(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The processor.

    Attributes:
        cores: Physical cores of all kinds.
        fast_cores: Those of the fastest kind.
        isa: Instruction sets that decide speed, as Linux names them.
        fp32_flops_per_s: Sustained matrix multiplication on all cores.
        has_native_bf16: Multiplies bfloat16 faster than fp32; the instruction alone is not enough.
        bf16_flops_per_s: The same in bfloat16; None without fast bfloat16, or if unknown.
    """

    cores: int
    fast_cores: int
    isa: tuple[str, ...]
    fp32_flops_per_s: float
    has_native_bf16: bool
    bf16_flops_per_s: float | None = None

    def __post_init__(self) -> None:
        _check_positive(self, "cores", "fast_cores", "fp32_flops_per_s", "bf16_flops_per_s")
        _require(
            self.fast_cores <= self.cores, "fast_cores", self.fast_cores, f"at most {self.cores}"
        )
        for name in self.isa:
            _require(bool(_ISA.fullmatch(name)), "isa", name, "lower-case letters, digits and _")
        _require(
            self.has_native_bf16 or self.bf16_flops_per_s is None,
            "bf16_flops_per_s",
            self.bf16_flops_per_s,
            "null without has_native_bf16",
        )

    @property
    def multiplies_int8(self) -> bool:
        """Whether it has instructions for products of integers that the trainer can use."""
        return bool(_INT8_ISA & set(self.isa))


class Gpu(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The graphics processor.

    Attributes:
        name: For people.
        kind: What programs it.
        memory_bytes: Its own memory; None if it shares the device's.
        memory_bandwidth_bytes_per_s: Of its own memory, at most; None if it shares the device's.
        fp32_flops_per_s: Sustained matrix multiplication.
        fp16_flops_per_s: The same in half precision; None if it cannot, or if unknown.
        bf16_flops_per_s: The same in bfloat16; None if it cannot, or if unknown.
        int8_ops_per_s: The same with 8-bit integers, dense; None if it cannot, or if unknown.
        compute_capability: NVIDIA's version of the instruction set, such as ``8.7``.
    """

    name: str
    kind: GpuKind
    memory_bytes: int | None = None
    memory_bandwidth_bytes_per_s: float | None = None
    fp32_flops_per_s: float
    fp16_flops_per_s: float | None = None
    bf16_flops_per_s: float | None = None
    int8_ops_per_s: float | None = None
    compute_capability: str | None = None

    def __post_init__(self) -> None:
        _check_positive(self, "memory_bytes", "memory_bandwidth_bytes_per_s")
        _check_positive(self, "fp32_flops_per_s", "fp16_flops_per_s", "bf16_flops_per_s")
        _check_positive(self, "int8_ops_per_s")
        version = self.compute_capability
        is_right = version is None or (
            self.kind == "cuda" and bool(_COMPUTE_CAPABILITY.fullmatch(version))
        )
        _require(is_right, "compute_capability", version, "like 8.7 for cuda, null otherwise")


class Bitsandbytes(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How the library that quantizes the base model runs there.

    Attributes:
        cpu: ``fast`` with vector instructions, ``slow`` without, ``none`` if not at all.
        gpu: ``pypi`` if the published wheel runs, ``source`` if it must be built, or ``none``.
        note: What to know, for people.
    """

    cpu: Literal["fast", "slow", "none"]
    gpu: Literal["pypi", "source", "none"]
    note: str = ""


class Source(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where some of the facts come from.

    Attributes:
        basis: How far to trust them.
        text: The document, or how the numbers were derived.
        covers: Fields, with a dot inside ``cpu`` and ``gpu``: ``cpu.fp32_flops_per_s``.
        url: Where to read it.
    """

    basis: Basis
    text: str
    covers: tuple[str, ...]
    url: str | None = None


class DeviceProfile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What one class of device can do.

    Attributes:
        name: Lower-case words joined by dashes; also the name of the file.
        title: For people.
        memory_total_bytes: Memory fitted.
        memory_usable_bytes: What a training process can have on an otherwise idle device.
        is_memory_shared: CPU and GPU use the same memory.
        memory_bandwidth_bytes_per_s: Of that memory, at most.
        cpu: The processor.
        gpu: The graphics processor; None if there is none, or none that counts.
        bitsandbytes: How the quantization library runs there.
        cpu_quantizations: Number formats of the base model that can be trained on the CPU.
        power_modes: Power limits to choose from, at least one.
        power_mode: The mode the rates in this profile are for.
        sources: Where the facts come from.
        notes: What to know, for people.
    """

    name: str
    title: str
    memory_total_bytes: int
    memory_usable_bytes: int
    is_memory_shared: bool
    memory_bandwidth_bytes_per_s: float
    cpu: Cpu
    gpu: Gpu | None = None
    bitsandbytes: Bitsandbytes
    cpu_quantizations: tuple[GenericQuantization, ...]
    power_modes: tuple[PowerMode, ...]
    power_mode: str
    sources: tuple[Source, ...] = ()
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        is_name = bool(_NAME.fullmatch(self.name)) and self.name != _SCHEMA_NAME
        _require(is_name, "name", self.name, "lower-case words joined by dashes, not 'schema'")
        _check_positive(self, "memory_total_bytes", "memory_usable_bytes")
        _check_positive(self, "memory_bandwidth_bytes_per_s")
        _require(
            self.memory_usable_bytes <= self.memory_total_bytes,
            "memory_usable_bytes",
            self.memory_usable_bytes,
            f"at most memory_total_bytes, {self.memory_total_bytes}",
        )
        formats = self.cpu_quantizations
        _require(
            len(formats) == len(set(formats)) > 0, "cpu_quantizations", formats, "some, each once"
        )
        self._check_gpu_memory()
        self._check_power_modes()
        self._check_sources()

    def _check_gpu_memory(self) -> None:
        own = None if self.gpu is None else self.gpu.memory_bytes
        is_right = (own is None) == (self.gpu is None or self.is_memory_shared)
        _require(is_right, "gpu.memory_bytes", own, "given exactly if the GPU has its own memory")
        is_possible = self.gpu is not None or not self.is_memory_shared
        _require(is_possible, "is_memory_shared", self.is_memory_shared, "false without a gpu")

    def _check_power_modes(self) -> None:
        names = [mode.name for mode in self.power_modes]
        _require(len(names) == len(set(names)), "power_modes", names, "of different names")
        _require(self.power_mode in names, "power_mode", self.power_mode, _one_of(names))

    def _check_sources(self) -> None:
        known = set(self.__struct_fields__) | {f"cpu.{name}" for name in Cpu.__struct_fields__}
        if self.gpu is not None:
            known |= {f"gpu.{name}" for name in Gpu.__struct_fields__}
        for source in self.sources:
            for name in source.covers:
                _require(name in known, "sources.covers", name, "a field of this profile")


class Emulation(msgspec.Struct, frozen=True, kw_only=True):
    """What a simulation on this machine must do to behave like a device.

    Attributes:
        memory_limit_bytes: Limit of the training process.
        threads: Threads it computes with.
        slowdown: How many times longer a step must be made to take, at least 1.
        is_exact: False if the device is faster than this machine with these threads: the memory
            is then still the device's, but the steps here are slower than there.
    """

    memory_limit_bytes: int
    threads: int
    slowdown: float
    is_exact: bool


def emulate(profile: DeviceProfile, here_fp32_flops_per_s: float, here_cores: int) -> Emulation:
    """Say how to imitate the CPU of a device on this machine.

    A machine is taken to compute in proportion to its threads, so that one with more cores than
    the device is first held to as many threads and slowed down by what remains.

    Args:
        profile: The device.
        here_fp32_flops_per_s: Measured rate of this machine on all ``here_cores``.
        here_cores: Cores this process may use.

    Raises:
        ProfileError: The rate or the number of cores is not positive.
    """
    is_rate = math.isfinite(here_fp32_flops_per_s) and here_fp32_flops_per_s > 0
    _require(is_rate, "here_fp32_flops_per_s", here_fp32_flops_per_s, "positive and finite")
    _require(here_cores >= 1, "here_cores", here_cores, "at least 1")
    threads = min(profile.cpu.cores, here_cores)
    ratio = here_fp32_flops_per_s * threads / here_cores / profile.cpu.fp32_flops_per_s
    return Emulation(
        memory_limit_bytes=profile.memory_usable_bytes,
        threads=threads,
        slowdown=max(1.0, ratio),
        is_exact=ratio >= 1,
    )


def with_power_mode(profile: DeviceProfile, mode: str) -> DeviceProfile:
    """Return the profile with the rates of another power mode.

    Raises:
        ProfileError: The device has no such mode.
    """
    modes = {x.name: x for x in profile.power_modes}
    _require(mode in modes, f"power mode of {profile.name}", mode, _one_of(modes))
    old, new = modes[profile.power_mode], modes[mode]
    return msgspec.structs.replace(
        profile,
        cpu=_scaled(profile.cpu, new.cpu_share / old.cpu_share),
        gpu=profile.gpu and _scaled(profile.gpu, new.gpu_share / old.gpu_share),
        power_mode=mode,
    )


def load_profile(name_or_path: str, folders: Sequence[Path] = ()) -> DeviceProfile:
    """Read a profile.

    Args:
        name_or_path: The name of a profile, or the path of a ``.json`` file.
        folders: Folders of own profiles. They come first, then those of ``EDGE_SDK_PROFILES``,
            then what is shipped.

    Raises:
        ProfileError: No such profile, or its file cannot be used.
    """
    if name_or_path.endswith(".json") or Path(name_or_path).name != name_or_path:
        return _read(Path(name_or_path))
    for folder in _search_path(folders):
        path = folder / f"{name_or_path}.json"
        if name_or_path in _names_in(folder):
            profile = _read(path)
            _require(profile.name == path.stem, f"name in {path}", profile.name, repr(path.stem))
            return profile
    raise ProfileError(_unknown(name_or_path, folders))


def profile_names(folders: Sequence[Path] = ()) -> list[str]:
    """Return the names :func:`load_profile` knows, sorted, each once."""
    return sorted({name for folder in _search_path(folders) for name in _names_in(folder)})


def encode_profile(profile: DeviceProfile) -> bytes:
    """Return the file of a profile: indented JSON."""
    return msgspec.json.format(msgspec.json.encode(profile), indent=2) + b"\n"


def profile_schema() -> bytes:
    """Return the JSON Schema of a profile's file, for editors."""
    schema = msgspec.json.schema(DeviceProfile)
    for part in schema["$defs"].values():
        part["description"] = cleandoc(part["description"])  # as indented as this Python likes
    return msgspec.json.format(msgspec.json.encode(schema), indent=2) + b"\n"


def _read(path: Path) -> DeviceProfile:
    try:
        return decode_json(path.read_bytes(), DeviceProfile)
    except OSError as error:
        raise ProfileError(f"device profile {path} cannot be read: {error.strerror}") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ProfileError(f"{path} is not a device profile: {error}") from error


def _search_path(folders: Sequence[Path]) -> list[Path]:
    stated = [Path(x) for x in os.environ.get(FOLDERS_VARIABLE, "").split(os.pathsep) if x]
    return [*folders, *stated, _SHIPPED]


def _names_in(folder: Path) -> list[str]:
    stems = [path.stem for path in folder.glob("*.json")]
    return [stem for stem in stems if _NAME.fullmatch(stem) and stem != _SCHEMA_NAME]


def _unknown(name: str, folders: Sequence[Path]) -> str:
    names = profile_names(folders)
    close = get_close_matches(name.lower(), names, n=3, cutoff=0.5)
    hint = f"close: {', '.join(close)}" if close else f"known: {', '.join(names)}"
    missing = [str(folder) for folder in _search_path(folders) if not folder.is_dir()]
    return (
        f"no device profile is named {name!r}; {hint}. Put your own as {name}.json in a folder "
        f"and name the folder in {FOLDERS_VARIABLE}, or give the path of the file"
        + (f" (no such folder: {', '.join(missing)})" if missing else "")
    )


def _scaled(part: Part, factor: float) -> Part:
    rates = {name: getattr(part, name) for name in part.__struct_fields__ if name in _RATES}
    scaled = {name: rate * factor for name, rate in rates.items() if rate is not None}
    return msgspec.structs.replace(part, **scaled)


def _check_positive(part: msgspec.Struct, *names: str) -> None:
    for name in names:
        value = getattr(part, name)
        is_right = value is None or (math.isfinite(value) and value > 0)
        _require(is_right, name, value, "positive and finite")


def _require(holds: bool, field: str, value: object, allowed: str) -> None:
    if not holds:
        raise ProfileError(f"{field} is {value!r}, it must be {allowed}")


def _one_of(names: Iterable[str]) -> str:
    return f"one of {', '.join(names)}"
