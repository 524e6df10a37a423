"""Device profiles are read strictly, found where people put them, and honest about sources."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_sdk.errors import ProfileError
from edge_sdk.planning import profiles
from edge_sdk.planning.profiles import (
    Bitsandbytes,
    Cpu,
    DeviceProfile,
    Gpu,
    PowerMode,
    Source,
    emulate,
    encode_profile,
    load_profile,
    profile_names,
    profile_schema,
    with_power_mode,
)

SHIPPED = Path(__file__).parents[2] / "device_profiles"
FILES = sorted(
    (path for path in SHIPPED.glob("*.json") if path.stem != "schema"), key=lambda path: path.stem
)
TABLE_ROW = re.compile(r"\| `([a-z0-9-]+)` \| (.+?) \| ([\d.]+) \| (\d+) \| ([a-z ]+) \| (.*?) ?\|")


@pytest.fixture(autouse=True)
def _no_folders_of_this_user(monkeypatch):
    monkeypatch.delenv(profiles.FOLDERS_VARIABLE, raising=False)


def board(**changes: object) -> DeviceProfile:
    """A device that is easy to calculate with: 4 cores, 100 GFLOPS, 6 GB, shared memory."""
    facts: dict[str, object] = {
        "name": "test-board",
        "title": "Test board",
        "memory_total_bytes": 8_000_000_000,
        "memory_usable_bytes": 6_000_000_000,
        "is_memory_shared": True,
        "memory_bandwidth_bytes_per_s": 50e9,
        "cpu": Cpu(
            cores=4, fast_cores=2, isa=("neon",), fp32_flops_per_s=100e9, has_native_bf16=False
        ),
        "gpu": Gpu(name="Test", kind="cuda", fp32_flops_per_s=1e12, fp16_flops_per_s=4e12),
        "bitsandbytes": Bitsandbytes(cpu="fast", gpu="source"),
        "cpu_quantizations": ("nf4", "fp32"),
        "power_modes": (
            PowerMode(name="25W", watts=25),
            PowerMode(name="7W", watts=7, cpu_share=0.5, gpu_share=0.25),
        ),
        "power_mode": "25W",
    }
    return DeviceProfile(**{**facts, **changes})


def changed(path: str, value: object) -> bytes:
    """The test board's file with one field, or one more field, of another value."""
    content = json.loads(encode_profile(board()))
    part = content
    *parents, last = path.split(".")
    for name in parents:
        part = part[int(name) if name.isdigit() else name]
    part[last] = value
    return json.dumps(content).encode()


def refusal(tmp_path: Path, content: bytes) -> str:
    path = tmp_path / "test-board.json"
    path.write_bytes(content)
    with pytest.raises(ProfileError) as caught:
        load_profile(str(path))
    assert str(path) in str(caught.value)
    return str(caught.value)


# --- what is shipped ---


def test_every_promised_class_of_device_is_shipped():
    promised = {
        "jetson-nano-4gb", "jetson-orin-nano-8gb", "jetson-orin-nano-8gb-super",
        "jetson-orin-nx-16gb", "jetson-agx-orin-64gb", "jetson-agx-thor-128gb",
        "raspberry-pi-4-8gb", "raspberry-pi-5-8gb", "laptop-avx2-8gb", "laptop-avx512-vnni-16gb",
        "laptop-avx2-16gb", "laptop-avx512-bf16-32gb", "laptop-rtx-3050-16gb",
        "laptop-rtx-4060-16gb", "laptop-rtx-4070-32gb", "apple-m1-8gb", "apple-m2-16gb",
        "apple-m4-16gb", "apple-m3-pro-36gb", "steam-deck", "snapdragon-x-elite-16gb",
    }  # fmt: skip
    assert promised <= set(profile_names())
    assert profile_names() == [path.stem for path in FILES]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_shipped_file_loads_under_its_name_and_round_trips(path, tmp_path):
    profile = load_profile(path.stem)
    assert profile.name == path.stem
    copy = tmp_path / path.name
    copy.write_bytes(encode_profile(profile))
    assert load_profile(str(copy)) == profile


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_shipped_file_says_once_for_every_fact_where_it_comes_from(path):
    content = json.loads(path.read_bytes())
    explained = {"name", "title", "is_memory_shared", "sources", "notes", "cpu", "gpu"}
    facts = {name for name, value in content.items() if value is not None} - explained
    for part in ("cpu", "gpu"):
        inside = content[part] or {}
        facts |= {f"{part}.{name}" for name, value in inside.items() if value is not None}
    covered = [name for source in content["sources"] for name in source["covers"]]
    assert sorted(covered) == sorted(facts - {"gpu.name", "gpu.kind"})


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_shipped_file_claims_no_measurement_of_ours(path):
    assert "measured" not in {source.basis for source in load_profile(path.stem).sources}


def test_readme_table_is_what_the_files_say():
    readme = (SHIPPED / "README.md").read_text(encoding="utf-8")
    rows = {row[0]: row[1:] for row in TABLE_ROW.findall(readme)}
    assert rows == {path.stem: _table_row(load_profile(path.stem)) for path in FILES}


def _table_row(profile: DeviceProfile) -> tuple[str, ...]:
    (basis,) = (x.basis for x in profile.sources if "cpu.fp32_flops_per_s" in x.covers)
    memory, rate = profile.memory_usable_bytes / 1e9, profile.cpu.fp32_flops_per_s / 1e9
    gpu = profile.gpu.name if profile.gpu else ""
    return profile.title, f"{memory:.1f}", f"{rate:.0f}", basis, gpu


@pytest.mark.parametrize(
    ("kind", "prefix"),
    [
        (DeviceProfile, ""),
        (Cpu, "cpu."),
        (Gpu, "gpu."),
        (Bitsandbytes, "bitsandbytes."),
        (PowerMode, ""),
        (Source, ""),
    ],
)
def test_readme_explains_every_field(kind, prefix):
    readme = (SHIPPED / "README.md").read_text(encoding="utf-8")
    names = set(re.findall(r"`([a-z0-9_.]+)`", readme.split("## Fields")[1]))
    assert {prefix + name for name in kind.__struct_fields__} - {"cpu", "bitsandbytes"} <= names


def test_committed_schema_is_the_generated_one():
    committed = (SHIPPED / "schema.json").read_bytes()
    assert json.loads(committed, object_hook=_in_any_order) == (
        json.loads(profile_schema(), object_hook=_in_any_order)
    )


def _in_any_order(part: dict) -> dict:
    """Versions of msgspec differ in the order of alternatives."""
    part.get("anyOf", []).sort(key=str)
    return part


def test_schema_refuses_unknown_fields_as_the_reader_does():
    parts = json.loads(profile_schema())["$defs"]
    assert set(parts) == {"DeviceProfile", "Cpu", "Gpu", "Bitsandbytes", "PowerMode", "Source"}
    assert {part["additionalProperties"] for part in parts.values()} == {False}


# --- reading ---

WORDS = st.from_regex(r"[a-z0-9]{1,6}(-[a-z0-9]{1,6}){0,2}", fullmatch=True).filter(
    lambda name: name != "schema"
)
RATES = st.floats(min_value=1e6, max_value=1e16)
SHARES = st.floats(min_value=0.01, max_value=1)


@st.composite
def any_profile(draw) -> DeviceProfile:
    cores, total = draw(st.integers(1, 128)), draw(st.integers(1, 2**40))
    is_native, is_shared = draw(st.booleans()), draw(st.booleans())
    has_gpu = is_shared or draw(st.booleans())
    modes = draw(st.lists(st.text(min_size=1, max_size=8), min_size=1, max_size=4, unique=True))
    gpu = Gpu(
        name=draw(st.text(max_size=8)),
        kind=draw(st.sampled_from(["cuda", "metal", "rocm", "vulkan"])),
        memory_bytes=None if is_shared else draw(st.integers(1, 2**40)),
        fp32_flops_per_s=draw(RATES),
        int8_ops_per_s=draw(st.none() | RATES),
    )
    formats = st.lists(st.sampled_from(["nf4", "bf16", "fp32"]), min_size=1, unique=True)
    return board(
        name=draw(WORDS),
        title=draw(st.text()),
        memory_total_bytes=total,
        memory_usable_bytes=draw(st.integers(1, total)),
        memory_bandwidth_bytes_per_s=draw(RATES),
        is_memory_shared=is_shared,
        cpu=Cpu(
            cores=cores,
            fast_cores=draw(st.integers(1, cores)),
            isa=tuple(draw(st.lists(st.sampled_from(["avx2", "neon", "i8mm"]), unique=True))),
            fp32_flops_per_s=draw(RATES),
            has_native_bf16=is_native,
            bf16_flops_per_s=draw(st.none() | RATES) if is_native else None,
        ),
        gpu=gpu if has_gpu else None,
        cpu_quantizations=tuple(draw(formats)),
        power_modes=tuple(
            PowerMode(name=name, cpu_share=draw(SHARES), gpu_share=draw(SHARES)) for name in modes
        ),
        power_mode=draw(st.sampled_from(modes)),
        notes=tuple(draw(st.lists(st.text(), max_size=2))),
    )


@given(any_profile())
def test_every_profile_survives_its_file(tmp_path_factory, profile):
    path = tmp_path_factory.mktemp("own") / "any-name.json"
    path.write_bytes(encode_profile(profile))
    assert load_profile(str(path)) == profile


@pytest.mark.parametrize(
    ("path", "value", "says"),
    [
        ("memory_usable_bytes", 9_000_000_000, "memory_usable_bytes is 9000000000"),
        ("memory_usable_bytes", 0, "memory_usable_bytes is 0"),
        ("memory_total_bytes", "8 GB", "$.memory_total_bytes"),
        ("memory_bandwidth_bytes_per_s", -1.0, "memory_bandwidth_bytes_per_s is -1.0"),
        ("name", "Test Board", "name is 'Test Board'"),
        ("name", "schema", "name is 'schema'"),
        ("name", "../board", "name is '../board'"),
        ("colour", "green", "unknown field `colour`"),
        ("cpu.threads", 8, "unknown field `threads` - at `$.cpu`"),
        ("gpu.tensor_cores", 8, "unknown field `tensor_cores`"),
        ("power_modes.0.volts", 5, "unknown field `volts` - at `$.power_modes[0]`"),
        ("sources", [{"basis": "hearsay", "text": "", "covers": []}], "hearsay"),
        ("sources", [{"basis": "derived", "text": "", "covers": ["cpu.speed"]}], "cpu.speed"),
        ("cpu.cores", 0, "cores is 0"),
        ("cpu.fast_cores", 5, "at most 4"),
        ("cpu.isa", ["AVX 2"], "isa is 'AVX 2'"),
        ("cpu.fp32_flops_per_s", 0, "fp32_flops_per_s is 0"),
        ("cpu.bf16_flops_per_s", 1e12, "null without has_native_bf16"),
        ("cpu.has_native_bf16", None, "$.cpu.has_native_bf16"),
        ("gpu.kind", "npu", "npu"),
        ("gpu.fp16_flops_per_s", -4e12, "fp16_flops_per_s is"),
        ("gpu.int8_ops_per_s", 0, "int8_ops_per_s is"),
        ("gpu.compute_capability", "sm_87", "like 8.7"),
        ("gpu.memory_bytes", 4_000_000_000, "gpu.memory_bytes is 4000000000"),
        ("gpu", None, "is_memory_shared is True"),
        ("is_memory_shared", False, "gpu.memory_bytes is None"),
        ("cpu_quantizations", [], "cpu_quantizations"),
        ("cpu_quantizations", ["nf4", "nf4"], "cpu_quantizations"),
        ("cpu_quantizations", ["int8"], "int8"),
        ("power_mode", "MAXN", "one of 25W, 7W"),
        ("power_modes", [], "power_mode is '25W'"),
        ("power_modes.1.name", "25W", "of different names"),
        ("power_modes.1.cpu_share", 0, "cpu_share is 0"),
        ("power_modes.1.gpu_share", 1.5, "gpu_share is 1.5"),
        ("power_modes.1.watts", -7, "watts is -7"),
    ],
)
def test_impossible_field_is_refused_with_file_and_field(tmp_path, path, value, says):
    assert says in refusal(tmp_path, changed(path, value))


@pytest.mark.parametrize("name", ["cpu", "memory_usable_bytes", "power_modes", "bitsandbytes"])
def test_missing_field_is_refused_by_name(tmp_path, name):
    content = json.loads(encode_profile(board()))
    del content[name]
    assert f"`{name}`" in refusal(tmp_path, json.dumps(content).encode())


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b'{"name": "a\xff"}', b"NaN"])
def test_file_that_is_no_profile_is_refused(tmp_path, content):
    assert "not a device profile" in refusal(tmp_path, content)


def test_number_beyond_floating_point_is_refused(tmp_path):
    huge = encode_profile(board()).replace(b"50000000000.0", b"1e999")
    assert "memory_bandwidth_bytes_per_s" in refusal(tmp_path, huge)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_rate_that_is_no_number_is_refused_in_code_too(value):
    with pytest.raises(ProfileError, match="memory_bandwidth_bytes_per_s"):
        board(memory_bandwidth_bytes_per_s=value)


def test_rates_may_be_written_with_an_exponent(tmp_path):
    path = tmp_path / "test-board.json"
    path.write_bytes(encode_profile(board()).replace(b"50000000000.0", b"50e9"))
    assert load_profile(str(path)) == board()


# --- finding ---


def own(folder: Path, **changes: object) -> Path:
    """Put a profile into a folder, under its name."""
    folder.mkdir(exist_ok=True)
    profile = board(**changes)
    (folder / f"{profile.name}.json").write_bytes(encode_profile(profile))
    return folder


def test_own_folder_beats_the_environment_which_beats_what_is_shipped(tmp_path, monkeypatch):
    name = "steam-deck"
    argument = own(tmp_path / "argument", name=name, title="from the argument")
    first = own(tmp_path / "first", name=name, title="from the environment")
    second = own(tmp_path / "second", name=name, title="from later in the environment")
    monkeypatch.setenv(profiles.FOLDERS_VARIABLE, os.pathsep.join([str(first), str(second)]))
    assert load_profile(name, [argument]).title == "from the argument"
    assert load_profile(name).title == "from the environment"
    monkeypatch.delenv(profiles.FOLDERS_VARIABLE)
    assert load_profile(name).title == "Steam Deck, 16 GB"


def test_names_are_those_of_every_folder_each_once(tmp_path, monkeypatch):
    folder = own(own(tmp_path / "own"), name="steam-deck")
    (folder / "schema.json").write_text("{}")
    (folder / "Not A Profile.json").write_text("{}")
    (folder / "notes.txt").write_text("")
    assert profile_names([folder]) == sorted([*(path.stem for path in FILES), "test-board"])
    monkeypatch.setenv(profiles.FOLDERS_VARIABLE, str(folder))
    assert "test-board" in profile_names()


def test_folder_of_the_same_name_in_the_current_one_changes_nothing(tmp_path, monkeypatch):
    own(tmp_path / "device_profiles", name="steam-deck", title="an impostor")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert load_profile("steam-deck").title == "Steam Deck, 16 GB"
    assert "test-board" not in profile_names()


@pytest.mark.parametrize("asked", ["jetson-orin-nano", "Jetson-Orin-Nano-8GB"])
def test_unknown_name_is_answered_with_close_ones_and_where_own_ones_go(asked):
    with pytest.raises(ProfileError) as caught:
        load_profile(asked)
    text = str(caught.value)
    assert repr(asked) in text
    assert "close: " in text
    assert "jetson-orin-nano-8gb" in text
    assert "EDGE_SDK_PROFILES" in text


def test_unknown_name_like_no_other_lists_all_and_the_folders_that_do_not_exist(tmp_path):
    with pytest.raises(ProfileError) as caught:
        load_profile("xyz", [tmp_path / "nowhere"])
    assert all(path.stem in str(caught.value) for path in FILES)
    assert str(tmp_path / "nowhere") in str(caught.value)


@pytest.mark.parametrize("name", ["", "schema", "README", ".."])
def test_name_that_no_profile_can_have_is_unknown(name):
    with pytest.raises(ProfileError, match=r"no device profile is named|cannot be read"):
        load_profile(name)


def test_name_in_the_file_must_be_the_name_of_the_file(tmp_path):
    (tmp_path / "other.json").write_bytes(encode_profile(board()))
    with pytest.raises(ProfileError, match=r"other\.json is 'test-board', it must be 'other'"):
        load_profile("other", [tmp_path])


@pytest.mark.parametrize("name", ["missing.json", "."])
def test_path_that_cannot_be_read_is_refused(tmp_path, name):
    with pytest.raises(ProfileError, match="cannot be read"):
        load_profile(os.path.join(tmp_path, name))


# --- power modes ---


def test_power_mode_scales_the_rates_and_nothing_else():
    low = with_power_mode(board(), "7W")
    assert (low.cpu.fp32_flops_per_s, low.cpu.cores) == (50e9, 4)
    assert (low.gpu.fp32_flops_per_s, low.gpu.fp16_flops_per_s) == (0.25e12, 1e12)
    assert low.gpu.bf16_flops_per_s is None
    assert msgspec.structs.replace(low, cpu=board().cpu, gpu=board().gpu, power_mode="25W") == (
        board()
    )


def test_power_mode_without_a_gpu_scales_the_cpu():
    assert with_power_mode(board(gpu=None, is_memory_shared=False), "7W").gpu is None


@given(any_profile(), st.data())
def test_power_mode_can_be_taken_back_and_taken_twice(profile, data):
    mode = data.draw(st.sampled_from([x.name for x in profile.power_modes]))
    there = with_power_mode(profile, mode)
    assert with_power_mode(there, mode) == there
    back = with_power_mode(there, profile.power_mode)
    assert back.power_mode == profile.power_mode
    assert back.cpu.fp32_flops_per_s == pytest.approx(profile.cpu.fp32_flops_per_s)


def test_unknown_power_mode_is_refused_with_those_there_are():
    with pytest.raises(ProfileError, match=r"test-board is 'MAXN', it must be one of 25W, 7W"):
        with_power_mode(board(), "MAXN")


# --- emulation ---


@pytest.mark.parametrize(
    ("rate", "cores", "threads", "slowdown", "is_exact"),
    [
        (300e9, 4, 4, 3.0, True),  # as many cores, each three times as fast
        (800e9, 8, 4, 4.0, True),  # four of the eight compute 400 GFLOPS
        (100e9, 4, 4, 1.0, True),  # the same machine
        (50e9, 2, 2, 1.0, False),  # half as fast: cannot be sped up
        (300e9, 2, 2, 3.0, True),  # fewer cores, still faster
        (160e9, 8, 4, 1.0, False),  # faster altogether, slower on four cores
    ],
)
def test_emulation_as_calculated_by_hand(rate, cores, threads, slowdown, is_exact):
    plan = emulate(board(), rate, cores)
    assert plan.memory_limit_bytes == 6_000_000_000
    assert plan.threads == threads
    assert plan.slowdown == pytest.approx(slowdown)
    assert plan.is_exact is is_exact


@given(any_profile(), RATES, st.integers(1, 256))
def test_emulated_rate_is_the_device_s_exactly_if_it_says_so(profile, rate, cores):
    plan = emulate(profile, rate, cores)
    emulated = rate * plan.threads / cores / plan.slowdown
    assert 1 <= plan.threads <= min(cores, profile.cpu.cores)
    assert plan.slowdown >= 1
    if plan.is_exact:
        assert emulated == pytest.approx(profile.cpu.fp32_flops_per_s)
    else:
        assert emulated < profile.cpu.fp32_flops_per_s


@pytest.mark.parametrize(("rate", "cores"), [(0, 4), (-1e9, 4), (float("nan"), 4), (1e9, 0)])
def test_machine_that_computes_nothing_is_refused(rate, cores):
    with pytest.raises(ProfileError, match="here_"):
        emulate(board(), rate, cores)
