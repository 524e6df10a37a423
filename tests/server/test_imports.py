"""What a fresh interpreter loads when the server is imported."""

import json
import subprocess
import sys

_PROBE = """
import json, logging, sys
before = logging.root.handlers[:]
import server.app, server.cli, server.serving
print(json.dumps({"modules": sorted(sys.modules), "handlers": len(logging.root.handlers)}))
"""


def probe():
    done = subprocess.run(
        [sys.executable, "-c", _PROBE], capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout)


def test_the_server_runs_without_training_code():
    modules = set(probe()["modules"])
    assert not modules & {"torch", "transformers", "peft", "bitsandbytes", "accelerate"}
    of_the_sdk = {name for name in modules if name.startswith("edge_sdk.")}
    assert of_the_sdk == {
        "edge_sdk.errors",
        "edge_sdk.files",
        "edge_sdk.files.whole_file",
        "edge_sdk.model",
        "edge_sdk.model.lean_eligibility",
        "edge_sdk.model.model_folder",
        "edge_sdk.model.model_shape",
        "edge_sdk.model.peft_folder",
        "edge_sdk.quantities",
        "edge_sdk.sketch",
        "edge_sdk.wire",
        "edge_sdk.wire.block_codes",
        "edge_sdk.wire.credentials",
        "edge_sdk.wire.manifest",
        "edge_sdk.wire.messages",
        "edge_sdk.wire.parts",
        "edge_sdk.wire.payload",
        "edge_sdk.wire.proofs",
        "edge_sdk.wire.protocol",
        "edge_sdk.wire.rank_rows",
        "edge_sdk.wire.task",
        "edge_sdk.wire.typed_json",
        "edge_sdk.wire.update_body",
    }


def test_importing_the_server_configures_no_logging_and_opens_no_file(tmp_path):
    assert probe()["handlers"] == 0
    watch = (
        "import sys\n"
        "opened = []\n"
        "sys.addaudithook(lambda e, a: opened.append((e, str(a[0]))) if e in "
        "('sqlite3.connect', 'socket.bind') or (e == 'open' and a[1] and set(a[1]) & set('wax+')) "
        "else None)\n"
        "import server.app, server.cli, server.serving\n"
        "print([x for x in opened if '__pycache__' not in x[1]])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", watch], capture_output=True, text=True, check=True, cwd="."
    )
    assert done.stdout.strip() == "[]"
