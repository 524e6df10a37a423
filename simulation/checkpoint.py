"""Where an interrupted simulation goes on: its rows and its server's state, whole or not at all."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import safetensors.numpy
from numpy.typing import NDArray

from edge_sdk.errors import ConfigError
from edge_sdk.files.whole_file import write_whole
from server.methods.method import GlobalModel
from simulation.method_server import MethodState
from simulation.results import RoundRow
from simulation.work import Evaluation

_ADAPTER, _CHANGE, _STATE, _AGES = "adapter/", "change/", "state/", "ages"


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """An interrupted run.

    Attributes:
        rows: Of the rounds that are closed.
        state: Of the server.
        draws: Cohorts drawn so far.
        ages: Of the ranks, see :class:`simulation.coverage.Coverage`.
        start: How good the model was before the first round.
    """

    rows: list[RoundRow]
    state: MethodState
    draws: int
    ages: NDArray[np.int64]
    start: Evaluation | None


class _Facts(msgspec.Struct, frozen=True, kw_only=True):
    """What is no tensor."""

    config_digest: str
    rows: list[RoundRow]
    change_rank: int
    drawn: int
    taken_part: dict[str, tuple[int, int]]
    has_state: bool
    draws: int
    start: Evaluation | None


def checkpoint_path(out: Path) -> Path:
    """Return the file beside a result that an interrupted run leaves."""
    return out.with_suffix(".partial.safetensors")


def write_checkpoint(out: Path, digest: str, kept: Checkpoint) -> None:
    """Replace the checkpoint of a run in one step."""
    model, state = kept.state.model, kept.state
    tensors: dict[str, NDArray[Any]] = {_AGES: kept.ages}
    tensors |= {_ADAPTER + name: array for name, array in model.adapter.items()}
    tensors |= {_CHANGE + name: array for name, array in model.base_change.items()}
    tensors |= {_STATE + name: array for name, array in (model.state or {}).items()}
    facts = _Facts(
        config_digest=digest,
        rows=kept.rows,
        change_rank=model.change_rank,
        drawn=state.drawn,
        taken_part=state.taken_part,
        has_state=model.state is not None,
        draws=kept.draws,
        start=kept.start,
    )
    metadata = {"facts": msgspec.json.encode(facts).decode()}
    contiguous = {name: np.ascontiguousarray(array) for name, array in tensors.items()}
    write_whole(checkpoint_path(out), safetensors.numpy.save(contiguous, metadata))


def read_checkpoint(out: Path, digest: str) -> Checkpoint | None:
    """Return where a run of this configuration was interrupted, if it was.

    Raises:
        ConfigError: The checkpoint is damaged, or of another configuration.
    """
    path = checkpoint_path(out)
    if not path.exists():
        return None
    try:
        body = path.read_bytes()
        header = body[8 : 8 + int.from_bytes(body[:8], "little")]
        told = msgspec.json.decode(header)["__metadata__"]["facts"]
        facts = msgspec.json.decode(told, type=_Facts)
        tensors = safetensors.numpy.load(body)
    except (KeyError, ValueError, safetensors.SafetensorError) as error:
        raise ConfigError(f"{path} is damaged: remove it, and the run starts over") from error
    if facts.config_digest != digest:
        raise ConfigError(f"{path} is of another configuration: remove it, or use another folder")
    parts = {
        part: {x.removeprefix(part): array for x, array in tensors.items() if x.startswith(part)}
        for part in (_ADAPTER, _CHANGE, _STATE)
    }
    model = GlobalModel(
        adapter=parts[_ADAPTER],
        base_change=parts[_CHANGE],
        change_rank=facts.change_rank,
        state=parts[_STATE] if facts.has_state else None,
    )
    return Checkpoint(
        rows=facts.rows,
        state=MethodState(model, len(facts.rows), facts.drawn, dict(facts.taken_part)),
        draws=facts.draws,
        ages=tensors[_AGES],
        start=facts.start,
    )
