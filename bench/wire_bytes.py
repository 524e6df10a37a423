"""Bytes a device receives and sends in a round, against k and r, over real HTTP on loopback.

The adapter is that of SmolLM2-135M (seven linear layers in each of 30 blocks); a device checks
in, fetches its slice and submits an update of the same form. Baseline: the same device at full
rank (k = r), which is what plain federated LoRA sends.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
from rich.console import Console
from rich.table import Table

from bench.report import Claim, json_path, publish
from edge_sdk.identity.device_key import DeviceKey, make_private_key
from edge_sdk.identity.identity import Identity
from edge_sdk.network.transport import Transport
from edge_sdk.quantities import format_bytes
from edge_sdk.wire.messages import CheckIn, UpdateReport, encode_message
from edge_sdk.wire.payload import adapter_shapes, decode, encode

SMOLLM2_135M = {
    "model_type": "llama",
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "vocab_size": 49152,
    "tie_word_embeddings": True,
}
RANKS = (8, 16, 64)
SKETCH_SIZES = (1, 2, 4, 8, 16)
MOST_CONSTANT_RANKS = 0.06  # the part of a body that does not grow with k, in ranks
MOST_DEVIATION = 0.005


def main() -> int:
    """Measure, print the table and the claims."""
    path = json_path(__doc__)
    console = Console()
    with tempfile.TemporaryDirectory() as scratch:
        rows = [row for r in RANKS for row in _measure(Path(scratch), r)]
    for direction in ("download", "upload"):
        console.print(_table(rows, f"{direction}_bytes"))
    return publish(console, _claims(rows), rows, path)


def _measure(scratch: Path, r: int) -> list[dict[str, Any]]:
    """Run one round in which every sketch size takes part once."""
    state = scratch / f"server-{r}"
    sizes = sorted({k for k in (*SKETCH_SIZES, r) if k <= r})
    model = _model_folder(scratch / "model")
    ladder = ",".join(map(str, sizes))
    create = ["task", "create", "bytes", "--model", str(model), "--rank", str(r)]
    create += ["--sketch-sizes", ladder, "--rounds", "1", "--cohort-size", str(len(sizes))]
    create += ["--update-encoding", "wire"]
    _server_command(*create, state=state)
    token = _server_command("token", "create", state=state)["enrolment_token"]
    command = [sys.executable, "-m", "server", "serve", "--state", str(state)]
    with subprocess.Popen(
        [*command, "--port", "0", "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as server:
        try:
            address = json.loads(server.stdout.readline() if server.stdout else "")["url"]
            return [_one_device(address, token, k, r) for k in sizes]
        finally:
            server.terminate()


def _one_device(address: str, token: str, k: int, r: int) -> dict[str, Any]:
    private_key = make_private_key()
    enrolment = Transport(address).enrol(token, f"k{k}", DeviceKey(private_key))
    identity = Identity(
        server=address, device_id=enrolment.device_id, private_key=private_key, name=f"k{k}"
    )
    transport = Transport(address, identity)
    task = transport.task("bytes")
    # The task is fetched once and access asked for once an hour, not once a round.
    received, sent = transport.downloaded_bytes, transport.uploaded_bytes
    check_in = CheckIn(base_digest=task.base.digest, affordable_k=k, examples=1)
    work = transport.check_in("bytes", check_in).assignment
    if work is None or work.k != k:
        raise SystemExit(f"asked for k={k}, was assigned {work}")
    arrays, _ = decode(
        transport.slice_body(task, work.round_number, k), adapter_shapes(task.adapter, k)
    )
    report = UpdateReport(examples=1, loss=0.0, seconds=0.0, peak_rss_bytes=0)
    transport.submit("bytes", work.round_number, encode(arrays, "fp32", encode_message(report)))
    return {
        "r": r,
        "k": k,
        "download_bytes": transport.downloaded_bytes - received,
        "upload_bytes": transport.uploaded_bytes - sent,
    }


def _server_command(*words: str, state: Path) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-m", "server", *words, "--state", str(state), "--json"],
        capture_output=True,
        text=True,
        check=True,
    )
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def _model_folder(folder: Path) -> Path:
    """Write a model folder with the real shape; no weight of it is ever sent."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(SMOLLM2_135M), encoding="utf-8")
    weights = {"none": np.zeros(1, dtype=np.float32)}
    (folder / "model.safetensors").write_bytes(safetensors.numpy.save(weights))
    return folder


def _table(rows: list[dict[str, Any]], column: str) -> Table:
    table = Table("r", title=f"{column.removesuffix('_bytes')} of one device in one round")
    for k in SKETCH_SIZES:
        table.add_column(f"k = {k}", justify="right")
    table.add_column("k = r (plain LoRA)", justify="right")
    for r in RANKS:
        found = {row["k"]: row[column] for row in rows if row["r"] == r}
        cells = [format_bytes(found[k]) if k in found else "" for k in (*SKETCH_SIZES, r)]
        table.add_row(str(r), *cells)
    return table


def _claims(rows: list[dict[str, Any]]) -> list[Claim]:
    claims = []
    for column in ("download_bytes", "upload_bytes"):
        sizes = np.array([row["k"] for row in rows], dtype=float)
        amounts = np.array([row[column] for row in rows], dtype=float)
        per_rank, constant = np.polyfit(sizes, amounts, 1)
        deviation = float(np.max(np.abs(amounts / (constant + per_rank * sizes) - 1)))
        spread = max(
            float(np.ptp(amounts[sizes == k]) / amounts[sizes == k].min()) for k in set(sizes)
        )
        in_ranks = float(constant / per_rank)
        name = column.removesuffix("_bytes")
        claims += [
            Claim(
                claim=f"{name} is linear in k: largest deviation from a line, relative",
                target=f"<= {MOST_DEVIATION}",
                measured=deviation,
                holds=deviation <= MOST_DEVIATION,
            ),
            Claim(
                claim=f"{name} has a small constant, in units of one rank",
                target=f"<= {MOST_CONSTANT_RANKS}",
                measured=in_ranks,
                holds=abs(in_ranks) <= MOST_CONSTANT_RANKS,
            ),
            Claim(
                claim=f"{name} at fixed k does not depend on r: largest spread, relative",
                target=f"<= {MOST_DEVIATION}",
                measured=spread,
                holds=spread <= MOST_DEVIATION,
            ),
        ]
    return claims


if __name__ == "__main__":
    sys.exit(main())
