"""Who may import whom, seen from fresh interpreters and from the source."""

from __future__ import annotations

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
HEAVY = {"torch", "transformers", "peft", "bitsandbytes", "onnxruntime"}
LIGHT_MODULES = [
    "edge_sdk",
    "edge_sdk.cli",
    "edge_sdk.rounds.round_loop",
    "edge_sdk.planning.plan",
    "edge_sdk.device",
    "edge_sdk.planning.local_plan",
    "edge_sdk.commands.plan",
    "edge_sdk.commands.probe",
    "edge_sdk.planning.microbenchmark",
    "edge_sdk.planning.calibration",
    "edge_sdk.planning.profiles",
    "edge_sdk.network.enrolment",
    "edge_sdk.memory.memory_guard",
    "edge_sdk.text.token_file",
    "edge_sdk.text.example",
    "edge_sdk.model.lean_eligibility",
    "edge_sdk.lean.memory_need",
    "edge_sdk.rounds.journal",
    "edge_sdk.client",
    "edge_sdk.commands.doctor",
    "edge_sdk.inference",
    "edge_sdk.inference.messages",
    "edge_sdk.commands.run",
    "server",
    "server.cli",
    "server.app",
    "simulation.run",
    "simulation.command",
]
TRAINING_MODULES = [
    "edge_sdk.training.local_trainer",
    "edge_sdk.training.trainable_base",
    "edge_sdk.lean.base",
]
SERVER_MAY_IMPORT = {
    "edge_sdk.network.enrolment",  # a relay is a device of its upstream server
    "edge_sdk.errors",
    "edge_sdk.identity.identity",
    "edge_sdk.model.model_folder",
    "edge_sdk.model.model_shape",
    "edge_sdk.model.peft_folder",
    "edge_sdk.quantities",
    "edge_sdk.sketch",
    "edge_sdk.network.transport",
    "edge_sdk.wire.credentials",
    "edge_sdk.wire.manifest",
    "edge_sdk.wire.messages",
    "edge_sdk.wire.parts",
    "edge_sdk.wire.payload",
    "edge_sdk.wire.proofs",
    "edge_sdk.wire.protocol",
    "edge_sdk.wire.rank_rows",
    "edge_sdk.wire.task",
    "edge_sdk.wire.update_body",
}
PURE = [
    "edge_sdk/sketch.py",
    "edge_sdk/compute/execution.py",
    "edge_sdk/compute/rates.py",
    "edge_sdk/general/step_time.py",
    "edge_sdk/general/memory_need.py",
    "edge_sdk/planning/cost.py",
    "edge_sdk/planning/plan.py",
    "edge_sdk/text/example.py",
    "edge_sdk/model/lean_eligibility.py",
    "edge_sdk/lean/memory_need.py",
    "edge_sdk/model/model_shape.py",
    "edge_sdk/wire/credentials.py",
    "edge_sdk/wire/manifest.py",
    "edge_sdk/wire/messages.py",
    "edge_sdk/wire/payload.py",
    "edge_sdk/wire/protocol.py",
    "edge_sdk/wire/task.py",
    "edge_sdk/wire/typed_json.py",
    "server/rules/rounds.py",
    "server/rules/cohort.py",
    "server/aggregation/weighted_mean.py",
    "server/methods/method.py",
    "server/methods/sketched.py",
    "server/methods/hetlora.py",
    "server/methods/flexlora.py",
    "server/methods/flora.py",
    "server/methods/fedex_lora.py",
    "server/methods/base_change.py",
    "server/methods/error.py",
    "server/methods/cost.py",
    "simulation/fleet.py",
    "simulation/rounds.py",
    "simulation/coverage.py",
]
IMPURE_MODULES = {"os", "pathlib", "time", "random", "socket", "requests", "sqlalchemy", "logging"}


@pytest.mark.parametrize("module", LIGHT_MODULES)
def test_light_module_imports_nothing_heavy(module):
    assert _heavy_of(module) == set()


@pytest.mark.parametrize("module", TRAINING_MODULES)
def test_training_a_lean_base_imports_torch_and_nothing_else_heavy(module):
    assert _heavy_of(module) == {"torch"}


def test_public_names_import_without_torch():
    script = "import sys, edge_sdk; edge_sdk.EdgeClient; print('torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize("top", ["edge_sdk", "server"])
def test_packages_import_each_other_in_one_direction(top):
    """A stranger can read them from the ground up, one after the other."""
    below: dict[str, set[str]] = {}
    for file in (ROOT / top).rglob("*.py"):
        part = file.relative_to(ROOT / top).parts[0].removesuffix(".py")
        named = {name.split(".")[1] for name in _imports(file) if name.startswith(f"{top}.")}
        below.setdefault(part, set()).update(named - {part})
    del below["__init__"]  # hands public names on, each on its first use
    assert len(list(TopologicalSorter(below).static_order())) >= len(below)


def test_server_source_names_nothing_heavy_even_inside_functions():
    """The server must run on a machine where torch cannot be installed."""
    named = {name for file in (ROOT / "server").rglob("*.py") for name in _imports(file)}
    assert {name.split(".")[0] for name in named} & HEAVY == set()


def test_server_takes_from_the_sdk_only_what_both_sides_share():
    named = {name for file in (ROOT / "server").rglob("*.py") for name in _imports(file)}
    from_sdk = {name for name in named if name.split(".")[0] == "edge_sdk"}
    assert from_sdk, "the server uses what both sides share"
    strangers = [
        name
        for name in from_sdk
        if not any(name == module or name.startswith(f"{module}.") for module in SERVER_MAY_IMPORT)
    ]
    assert strangers == []


def test_sdk_never_imports_the_server():
    named = {name for file in (ROOT / "edge_sdk").rglob("*.py") for name in _imports(file)}
    assert not [name for name in named if name.split(".")[0] in ("server", "demo", "bench")]


def test_the_sdk_knows_simulations_by_one_command_alone():
    knowing = [
        str(file.relative_to(ROOT))
        for file in (ROOT / "edge_sdk").rglob("*.py")
        if any(name.split(".")[0] == "simulation" for name in _imports(file))
    ]
    assert knowing == ["edge_sdk/cli.py"]


def test_the_server_knows_no_simulation():
    named = {name for file in (ROOT / "server").rglob("*.py") for name in _imports(file)}
    assert not [name for name in named if name.split(".")[0] in ("simulation", "demo", "bench")]


@pytest.mark.parametrize("path", PURE)
def test_pure_module_reads_no_clock_file_or_network(path):
    assert {name.split(".")[0] for name in _imports(ROOT / path)} & IMPURE_MODULES == set()


def test_nothing_reads_or_writes_pickle():
    files = [
        f
        for folder in ("edge_sdk", "server", "simulation", "demo", "bench")
        for f in (ROOT / folder).rglob("*.py")
    ]
    assert files
    named = {name.split(".")[0] for file in files for name in _imports(file)}
    assert named & {"pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"} == set()


def test_typed_json_is_decoded_in_one_place_that_threads_may_share():
    typed = [
        str(file.relative_to(ROOT))
        for folder in ("edge_sdk", "server")
        for file in (ROOT / folder).rglob("*.py")
        for call in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(call, ast.Call) and _is_typed_decoding(call)
    ]
    assert typed == ["edge_sdk/wire/typed_json.py"]


def _is_typed_decoding(call: ast.Call) -> bool:
    name = ast.unparse(call.func)
    has_type = any(keyword.arg == "type" for keyword in call.keywords)
    return name == "msgspec.json.Decoder" or (name == "msgspec.json.decode" and has_type)


def _heavy_of(module: str) -> set[str]:
    """Return what a fresh interpreter has loaded after importing a module."""
    script = f"import sys, {module}; print(*sorted({HEAVY!r} & sys.modules.keys()))"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, check=True
    )
    return set(done.stdout.split())


def _imports(file: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found
