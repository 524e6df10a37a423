"""Small simulations as files, and the data of their devices."""

from __future__ import annotations

from pathlib import Path

import msgspec

from simulation.config import RunConfig, merge
from tests.tiny_model import write_jsonl

CLASSES = [
    {"share": 0.5, "k": 1, "step_s": 4.0},
    {"share": 0.25, "k": 2, "step_s": 2.0},
    {"share": 0.25, "k": 4, "step_s": 1.0},
]


def stand_ins(**changes) -> RunConfig:
    """A run of forty stand-ins on rank 4."""
    told = {
        "rounds": 3,
        "cohort_size": 8,
        "adapter": {"r": 4},
        "fleet": {"devices": 40, "classes": CLASSES},
    }
    return msgspec.convert(merge(told, changes), RunConfig)


def students(model: Path, folder: Path, **changes) -> RunConfig:
    """A run of four devices that train a tiny model; their data are written."""
    folder.mkdir(parents=True, exist_ok=True)
    words = ("red", "one", "city", "name")
    for number, word in enumerate(words):
        records = [
            {"prompt": f"what is the {word} ? answer :", "completion": f" {x}"}
            for x in ("yes", "one")
        ]
        write_jsonl(folder / f"device-{number}.jsonl", records)
    write_jsonl(
        folder / "heldout.jsonl",
        [{"prompt": f"what is the {word} ? answer :", "completion": " yes"} for word in words],
    )
    told = {
        "rounds": 2,
        "adapter": {"r": 4},
        "fleet": {"classes": CLASSES},
        "training": {"local_steps": 2, "batch_size": 2, "max_length": 32, "local_lr": 0.01},
        "learner": {"model": str(model), "data": str(folder)},
    }
    return msgspec.convert(merge(told, changes), RunConfig)
