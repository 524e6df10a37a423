"""A base model and an adapter in use: text out of prompts, labels for texts, adapters swapped."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edge_sdk.errors import AdapterError, ConfigError, DataError
from edge_sdk.inference.adapter import Adapter, open_adapter
from edge_sdk.inference.adapter_file import SUFFIX, convert_peft_folder, task_type_of
from edge_sdk.inference.choices import score_choices, split_choices
from edge_sdk.inference.decoder import RESULT, TOKENS, context_of
from edge_sdk.inference.encoder import text_limit
from edge_sdk.inference.export import export_once
from edge_sdk.inference.past import Past
from edge_sdk.inference.runtime import Runtime
from edge_sdk.inference.sampling import Sampler, Sampling, log_softmax
from edge_sdk.inference.text import Pieces, TextTokenizer
from edge_sdk.inference.weight_format import WeightFormat
from edge_sdk.memory.heap import release_freed_memory
from edge_sdk.model.model_folder import class_names, read_config
from edge_sdk.model.model_shape import read_shape
from edge_sdk.model.peft_folder import read_labels
from edge_sdk.text.tokenization import prompt_ids
from edge_sdk.wire.task import TaskType

_PLAIN = Sampling()


@dataclass(frozen=True, slots=True)
class _InUse:
    """What a call takes once when it begins: an adapter and the labels that belong to it."""

    adapter: Adapter | None
    labels: tuple[str, ...]


class Session:
    """A model open for inference; every method may be called from several threads at once.

    Args:
        folder: Of the base model.
        runtime: Its export, opened.
    """

    def __init__(self, folder: Path, runtime: Runtime) -> None:
        self.tokenizer = TextTokenizer(folder)
        self._folder = folder
        self._runtime = runtime
        self._config = read_config(folder)
        self._shape = read_shape(self._config, runtime.record.task_type, num_labels=2)
        self._is_decoder = any(x.name != TOKENS for x in runtime.session.get_inputs())
        self._in_use = _InUse(None, ())

    def swap(self, adapter: Path | None, labels: Sequence[str] | None = None) -> None:
        """Use another adapter from the next call on; the base stays open.

        What is being generated keeps the adapter it began with: its keys and values were made by
        that one, and a text half by each is one that neither would write. If the new adapter is
        refused, the present one stays in use.

        Args:
            adapter: PEFT folder, a file of ``edge_sdk.inference.adapter_file.write_adapter``, or
                None for the base alone.
            labels: Class names of a classifier; by default those the folder or the base names.

        Raises:
            AdapterError: It cannot be read or is for another base model.
            StorageError: A folder's converted file cannot be written.
        """
        if adapter is None:
            self._in_use = _InUse(None, ())
            return
        is_file = adapter.suffix == SUFFIX
        found = self._open(adapter) if is_file else self._open_folder(adapter)
        if not self.is_classifier:
            self._in_use = _InUse(found, ())
            return
        named = labels or ([] if is_file else read_labels(adapter))
        named = list(named) or class_names(self._folder, found.label_count)
        if found.label_count == 0:
            raise AdapterError(f"the adapter in {adapter} is for no classifier: it holds no head")
        if len(named) != found.label_count:
            raise AdapterError(
                f"the adapter in {adapter} has a head for {found.label_count} labels, and "
                f"{len(named)} are named"
            )
        self._in_use = _InUse(found, tuple(named))

    def generate(
        self,
        prompt: str,
        *,
        max_new_tokens: int = 128,
        chat: bool = False,
        sampling: Sampling = _PLAIN,
    ) -> Iterator[str]:
        """Continue a prompt, piece by piece as it comes; pieces never split a character.

        Args:
            prompt: What to continue; with ``chat``, what the user says.
            max_new_tokens: Upper limit; an end token or the model's context ends earlier.
            chat: Put the prompt into the model's chat template.
            sampling: How tokens are chosen; by default the most probable one.

        Raises:
            ConfigError: The model is a classifier, or ``max_new_tokens`` is below 1.
            DataError: The prompt has no token, or more than the model takes.
        """
        tokens = self.tokens(
            prompt_ids(self.tokenizer, prompt, chat=chat), max_new_tokens, sampling
        )
        return _text(tokens, Pieces(self.tokenizer))

    def tokens(
        self, ids: Sequence[int], max_new_tokens: int, sampling: Sampling = _PLAIN
    ) -> Iterator[int]:
        """Continue tokens by tokens, up to an end token, which is not among them.

        Raises:
            ConfigError: The model is a classifier, or ``max_new_tokens`` is below 1.
            DataError: There are more tokens than the model takes.
        """
        if max_new_tokens < 1:
            raise ConfigError(f"max_new_tokens={max_new_tokens} must be at least 1")
        room = min(len(ids) + max_new_tokens, context_of(self._config))
        past = self._new_past(len(ids) + 1, room)
        return _continue(past, ids, room, Sampler(sampling), self.tokenizer.end_ids)

    def classify(self, text: str, choices: Sequence[str] = ()) -> dict[str, float]:
        """Return the probability of each label of a text.

        Args:
            text: To a classifier; to a language model the prompt before the choices.
            choices: For a language model: continuations as they follow the text, a leading space
                included; they are the labels.

        Raises:
            ConfigError: A language model without choices, or a classifier without an adapter.
            DataError: A text or choice without a token, or longer than the model takes.
        """
        if not self.is_classifier:
            if not choices:
                raise ConfigError("a language model has no labels of its own: name the choices")
            texts = split_choices(self.tokenizer, text, choices)
            longest = max(len(x.ids) for x in texts)
            chosen = score_choices(self._new_past(longest, longest), texts)
            return dict(zip(choices, np.exp(log_softmax(chosen)).tolist(), strict=True))
        in_use = self._in_use
        if in_use.adapter is None:
            raise ConfigError("a classifier's labels come with its adapter: swap one in")
        limit = context_of(self._config) if self._is_decoder else text_limit(self._config)
        ids = self.tokenizer.beginning(text, limit)
        if not ids:
            raise DataError("the text has no token to classify")
        if self._is_decoder:
            scores = self._new_past(len(ids), len(ids), in_use).extend(ids)
        else:
            feed = {TOKENS: np.array([ids], np.int64)}
            session, options = self._runtime.session, in_use.adapter.run_options
            scores = np.asarray(session.run([RESULT], feed, options)[0])[0]
        probabilities = np.exp(log_softmax(scores)).tolist()
        return dict(zip(in_use.labels, probabilities, strict=True))

    def _open(self, file: Path) -> Adapter:
        return open_adapter(file, self._runtime.slots)

    def _open_folder(self, folder: Path) -> Adapter:
        file = convert_peft_folder(folder, self._shape)
        try:
            return self._open(file)
        except AdapterError:  # what was converted before is damaged
            file.unlink(missing_ok=True)
            return self._open(convert_peft_folder(folder, self._shape))

    @property
    def is_classifier(self) -> bool:
        """Whether it labels texts; otherwise it continues them."""
        return self._runtime.record.task_type == "SEQ_CLS"

    def _new_past(self, needed: int, room: int, in_use: _InUse | None = None) -> Past:
        if in_use is None and (self.is_classifier or not self._is_decoder):
            raise ConfigError("a sequence classifier does not generate text: classify with it")
        limit = context_of(self._config)
        if needed > limit:
            raise DataError(f"the text has {needed} tokens, and this model takes {limit}")
        in_use = in_use or self._in_use
        size = self._runtime.result_size or len(in_use.labels)
        return Past(self._runtime, in_use.adapter, room, size)


def open_session(
    folder: Path,
    adapter: Path | None = None,
    *,
    weight_format: WeightFormat = "nf4",
    task_type: TaskType | None = None,
    labels: Sequence[str] | None = None,
    threads: int | None = None,
    cache: Path | None = None,
) -> Session:
    """Open a base model for inference, after exporting it if this is the first time.

    Args:
        folder: Hugging Face folder of the base model.
        adapter: See :meth:`Session.swap`; None for the base alone.
        weight_format: Of the frozen matrices.
        task_type: What the model is used for; by default what a PEFT folder says, or text.
        labels: Class names of a classifier; by default those the folder or the base names.
        threads: CPU threads; None takes one per physical core.
        cache: Folder of exports; default :func:`edge_sdk.inference.export.exports_folder`.

    Raises:
        ModelError: The base model cannot be exported or opened.
        AdapterError: The adapter cannot be read or is for another base model.
        StorageError: The export cannot be written.
    """
    if task_type is None:
        task_type = "CAUSAL_LM"
        if adapter is not None and adapter.suffix != SUFFIX:
            task_type = task_type_of(adapter)
    export = export_once(folder, weight_format, task_type, cache)
    session = Session(folder, Runtime(export, threads))
    session.swap(adapter, labels)
    release_freed_memory()  # what opening took
    return session


def _continue(
    past: Past, ids: Sequence[int], room: int, sampler: Sampler, ends: frozenset[int]
) -> Iterator[int]:
    token = sampler.choose(past.extend(ids))
    while token not in ends:
        yield token
        if past.length + 1 >= room:
            return
        token = sampler.choose(past.extend([token]))


def _text(tokens: Iterator[int], pieces: Pieces) -> Iterator[str]:
    for token in tokens:
        if piece := pieces.add(token):
            yield piece
    if rest := pieces.rest():
        yield rest
