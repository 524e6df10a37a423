"""``edge-sdk infer``: use a base model with an adapter, with ONNX Runtime where it can be."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, cast, get_args

from rich.console import Console

from edge_sdk.compute.execution import Quantization
from edge_sdk.errors import ConfigError

Engine = Literal["onnx", "torch"]

_FORMATS = {"onnx": ("nf4", "int4", "int8", "fp32"), "torch": get_args(Quantization)}


@dataclass(frozen=True, slots=True)
class _Answer:
    """Labels with their probabilities, or a text as it comes."""

    scores: dict[str, float] | None
    pieces: Iterator[str]


def add_infer_options(parser: argparse.ArgumentParser) -> None:
    """Add what ``infer`` understands but the base model."""
    parser.add_argument("prompt")
    parser.add_argument("--adapter", type=Path, required=True, help="PEFT folder")
    parser.add_argument("--max-new-tokens", type=int, default=64, help="tokens at most")
    parser.add_argument("--chat", action="store_true", help="put the prompt in the chat template")
    parser.add_argument(
        "--engine",
        choices=get_args(Engine),
        help="default: onnx if it is installed and computes this model, else torch",
    )
    parser.add_argument(
        "--quantization",
        choices=sorted({x for formats in _FORMATS.values() for x in formats}),
        default="nf4",
        help="number format of the frozen base",
    )
    parser.add_argument("--threads", type=int, help="default: the cores this process may use")


def run_infer(options: argparse.Namespace, out: Console) -> object:
    """Answer the prompt; print the answer, or with ``--json`` return what is to be printed.

    Raises:
        AdapterError: The adapter cannot be read or does not fit the base model.
        ConfigError: A number format that the engine does not have.
        ModelError: The base model cannot be used.
    """
    answer = _answer(options)
    if answer.scores is not None:
        if options.json:
            return answer.scores
        for label, probability in sorted(answer.scores.items(), key=lambda item: -item[1]):
            out.print(f"{probability:6.1%}  {label}")
        return None
    if options.json:
        return {"prompt": options.prompt, "completion": "".join(answer.pieces)}
    for piece in answer.pieces:
        out.print(piece, end="", markup=False, highlight=False)
    out.print()
    return None


def _answer(options: argparse.Namespace) -> _Answer:
    from edge_sdk.model.model_folder import find_model
    from edge_sdk.model.peft_folder import read_peft_config

    config = read_peft_config(options.adapter)
    folder = find_model(options.model or str(config.get("base_model_name_or_path")))
    is_classifier = config.get("task_type") == "SEQ_CLS"
    engine = options.engine or choose_engine(
        folder, options.quantization, is_classifier=is_classifier
    )
    number_format = options.quantization
    if number_format not in _FORMATS[engine]:
        raise ConfigError(
            f"--quantization {number_format} is not one of {', '.join(_FORMATS[engine])}, which "
            f"the engine {engine} has"
        )
    answer = _with_onnx if engine == "onnx" else _with_torch
    return answer(folder, options, number_format)


def choose_engine(folder: Path, number_format: str, *, is_classifier: bool) -> Engine:
    """Return the engine for a base model and number format, where the caller names none."""
    if number_format not in _FORMATS["onnx"]:
        return "torch"
    if find_spec("onnxruntime") is None or find_spec("onnx") is None:
        return "torch"
    from edge_sdk.inference.export import why_not_exported
    from edge_sdk.model.model_folder import read_config

    reason = why_not_exported(read_config(folder), "SEQ_CLS" if is_classifier else "CAUSAL_LM")
    return "onnx" if reason is None else "torch"


def _with_onnx(folder: Path, options: argparse.Namespace, number_format: str) -> _Answer:
    from edge_sdk.inference import open_session

    session = open_session(
        folder,
        options.adapter,
        weight_format=cast(Any, number_format),
        threads=options.threads,
    )
    if session.is_classifier:
        return _Answer(session.classify(options.prompt), iter(()))
    pieces = session.generate(
        options.prompt, max_new_tokens=options.max_new_tokens, chat=options.chat
    )
    return _Answer(None, pieces)


def _with_torch(folder: Path, options: argparse.Namespace, number_format: str) -> _Answer:
    from edge_sdk.general.generation import classify, generate, load_with_adapter

    quantization = cast(Quantization, number_format)
    base = load_with_adapter(folder, options.adapter, quantization, options.threads)
    if base.spec.task_type == "SEQ_CLS":
        return _Answer(classify(base, options.prompt), iter(()))
    pieces = generate(base, options.prompt, options.max_new_tokens, chat=options.chat)
    return _Answer(None, pieces)
