"""Flower's side of the server: federated averaging, with the time of every result written down."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
from flwr.app import Array, ArrayRecord, Context
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg


def main(grid: Grid, context: Context) -> None:
    """Run the rounds; evaluation by devices is off, as it would be a second exchange a round."""
    settings = context.run_config
    results = Path(str(settings["results"]))
    devices = int(settings["devices"])
    strategy = FedAvg(fraction_evaluate=0.0, min_train_nodes=devices, min_available_nodes=devices)

    def write_down(finished_rounds: int, arrays: ArrayRecord) -> None:
        with results.open("a", encoding="utf-8") as lines:
            lines.write(json.dumps({"round": finished_rounds, "at": time.time()}) + "\n")

    strategy.start(
        grid=grid,
        initial_arrays=_initial_arrays(Path(str(settings["shapes"]))),
        num_rounds=int(settings["rounds"]),
        evaluate_fn=write_down,
    )


def _initial_arrays(shapes: Path) -> ArrayRecord:
    rng = np.random.default_rng(0)
    named = json.loads(shapes.read_text(encoding="utf-8"))
    return ArrayRecord(
        {name: Array(rng.random(shape, dtype=np.float32)) for name, shape in named.items()}
    )


app = ServerApp()
app.main()(main)
