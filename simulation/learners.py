"""Who learns in a simulation: devices with a real model and real data, or stand-ins."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edge_sdk.compute.execution import Execution
from edge_sdk.errors import ConfigError
from edge_sdk.memory.heap import allocate_fast
from edge_sdk.model.model_folder import read_model_shape, weights_digest
from edge_sdk.model.model_shape import ModelShape
from edge_sdk.text.example import Example
from edge_sdk.wire.payload import Arrays, adapter_shapes
from edge_sdk.wire.task import BaseModel, DenseSpec, LayerSpec, TaskSpec
from server.methods.method import BaseChange, GlobalModel, global_scaling
from simulation.config import ModelConfig, StandInConfig
from simulation.held_out import Question, answered, predicted, read_questions
from simulation.work import Evaluation, Lesson, Work

if TYPE_CHECKING:
    from edge_sdk.training.local_steps import TrainableBase, Trainee

_STAND_IN_DIGEST = "0" * 64
_UPDATE_STD = 1e-3
HELD_OUT, CHOICES = "heldout", "choices"


class StandIns:
    """Devices that send random numbers of the right form; their loss falls with the rounds.

    Args:
        config: The form.
    """

    devices: int | None = None

    def __init__(self, config: StandInConfig) -> None:
        self.layers = [
            LayerSpec(name=f"layers.{number}", d_in=d_in, d_out=d_out)
            for number, (d_in, d_out) in enumerate(config.layers)
        ]
        self.dense: list[DenseSpec] = []
        self.base = BaseModel(model="stand-in", digest=_STAND_IN_DIGEST)
        self._numbers: dict[int, Arrays] = {}

    def train(self, work: Work, spec: TaskSpec) -> Lesson:
        """Return the same random update for every device of a sketch size: only its form counts."""
        if work.k not in self._numbers:
            rng = np.random.default_rng(work.k)
            shapes = adapter_shapes(spec.adapter, work.k)
            self._numbers[work.k] = {
                name: rng.normal(scale=_UPDATE_STD, size=shape).astype(np.float32)
                for name, shape in shapes.items()
            }
        return Lesson(update=self._numbers[work.k], loss=1.0 / work.round_number, examples=1)

    def evaluate(self, model: GlobalModel, spec: TaskSpec) -> Evaluation | None:
        """Return nothing: nothing was learned."""
        return None


class Students:
    """Devices with private examples and one base model between them.

    Args:
        config: Where both are.
        targets: Module name endings to adapt; None takes the usual ones.
        max_length: Tokens per example.
        batch_size: Examples per step.

    Raises:
        ConfigError: There are no data, or targets that match no layer.
        ModelError: The model cannot be used.
    """

    def __init__(
        self,
        config: ModelConfig,
        targets: Sequence[str] | None,
        max_length: int,
        batch_size: int,
    ) -> None:
        self._config = config
        self._folder, self._data = Path(config.model).expanduser(), Path(config.data).expanduser()
        self._max_length = max_length
        self._batch_size = batch_size
        files = sorted(self._data.glob("*.jsonl"))
        self._files = [x for x in files if x.stem not in (HELD_OUT, CHOICES)]
        if not self._files:
            raise ConfigError(f"{self._data} holds no <device>.jsonl: write one for each device")
        self.base = BaseModel(
            model=self._folder.name,
            digest=weights_digest(self._folder),
            task_type=config.task_type,
            labels=list(config.labels),
        )
        self.shape: ModelShape = read_model_shape(
            self._folder, config.task_type, len(config.labels)
        )
        self.layers = self.shape.target_layers(targets or self.shape.default_targets)
        self.dense = list(self.shape.dense)
        self._examples: dict[Path, list[Example]] = {}

    @property
    def devices(self) -> int | None:
        """How many devices have data."""
        return len(self._files)

    def train(self, work: Work, spec: TaskSpec) -> Lesson:
        """Do the local steps of a device, as a device does them."""
        from edge_sdk.training.local_steps import train_round

        examples = self._read(self._files[work.device])
        with self._changed(work.base_change):
            result = train_round(
                self._model,
                spec.adapter,
                work.k,
                work.slices,
                spec.training,
                examples,
                work.seed,
                factors=work.factors,
                scale=work.scale,
                micro_batch=spec.training.batch_size,
            )
        return Lesson(update=result.update, loss=result.loss, examples=len(examples))

    def evaluate(self, model: GlobalModel, spec: TaskSpec) -> Evaluation | None:
        """Try a global model on the questions with choices, else on the held-out examples."""
        examples, questions = self._held_out
        if not examples:
            return None
        with self._changed(model.base_change):
            trainee = self._trainee(model, spec, examples)
            try:
                scores = list(trainee.scores(examples))
            finally:
                trainee.detach()
        return answered(scores, questions) if questions else predicted(scores)

    def _trainee(self, model: GlobalModel, spec: TaskSpec, examples: Sequence[Example]) -> Trainee:
        scale = global_scaling(spec.adapter)
        return self._model.trainee(
            spec.adapter, model.adapter, scale, (), examples, self._batch_size, 0
        )

    @cached_property
    def _held_out(self) -> tuple[list[Example], list[Question]]:
        """Return what a model is tried on; of questions an example for every choice."""
        choices, plain = (self._data / f"{name}.jsonl" for name in (CHOICES, HELD_OUT))
        if choices.exists():
            texts, questions = read_questions(choices)
            return self._tokenized(texts), questions
        return (self._read(plain) if plain.exists() else []), []

    def _tokenized(self, records: Sequence[dict[str, str]]) -> list[Example]:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "choices.jsonl"
            path.write_text("".join(json.dumps(x) + "\n" for x in records), encoding="utf-8")
            return self._read(path)

    def _read(self, path: Path) -> list[Example]:
        from edge_sdk.text.data import load_examples

        if path not in self._examples:
            self._examples[path] = load_examples(path, self._tokenizer, self.base, self._max_length)
        return self._examples[path]

    @cached_property
    def _tokenizer(self) -> Any:
        from edge_sdk.text.tokenizer import load_tokenizer

        return load_tokenizer(self._folder)

    @cached_property
    def _model(self) -> TrainableBase:
        from edge_sdk.training.trainable_base import load_trainable, warm_up_for

        config = self._config
        execution = Execution(
            quantization=config.quantization,
            products="wide",
            micro_batch=self._batch_size,
            recomputed_blocks=0,
            length=self._max_length,
            trained_targets=tuple(sorted({x.ending for x in self.layers})),
            k=1,
        )
        warm_up_for(self._folder, self.base, execution, config.threads)
        base = load_trainable(self._folder, self.base, execution, config.threads)
        allocate_fast()  # no device's memory is counted here
        return base

    def _changed(self, change: BaseChange) -> AbstractContextManager[None]:
        if not change:
            return nullcontext()
        from edge_sdk.general.base_model import LoadedBase
        from simulation.changed_base import changed

        if not isinstance(self._model, LoadedBase) or self._config.quantization != "fp32":
            raise ConfigError(
                "a method that changes the base needs one whose weights are plain numbers: take "
                'quantization = "fp32" and a model outside the hand-written passes'
            )
        return changed(self._model.model, change)
