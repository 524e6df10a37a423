"""The prepared base: every tensor as it is held while training, written once, then mapped."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from edge_sdk.compute.execution import ProductFormat, Quantization
from edge_sdk.errors import ConfigError
from edge_sdk.files.one_writer import one_writer
from edge_sdk.lean.frozen import FrozenMatrix
from edge_sdk.lean.held_formats import FP32, LINEAR_FORMATS, HeldFormat, outer_format
from edge_sdk.lean.source import SourceModel
from edge_sdk.lean.tensor_file import (
    Layout,
    MappedFile,
    Part,
    TensorSpec,
    write_tensors,
)

_FORMAT_VERSION = "1"
_DIGEST_LETTERS = 32

Progress = Callable[[int, int], None]
"""Called while a base is prepared, with the bytes written and the bytes of the whole file."""


@dataclass(frozen=True, slots=True)
class PreparedBase:
    """A frozen causal LM whose tensors are views of a file.

    Attributes:
        config: The content of the model's ``config.json``.
        quantization: Number format of the linear layers inside the blocks.
        matrices: Those layers, ``model.embed_tokens`` and, unless it is tied, ``lm_head``, by
            module name.
        vectors: Norm weights and biases in fp32, by tensor name.
        path: The prepared file, or the model's folder if its own files are used.
    """

    config: dict[str, Any]
    quantization: Quantization
    matrices: dict[str, FrozenMatrix]
    vectors: dict[str, Tensor]
    path: Path

    @property
    def held_bytes(self) -> int:
        """Bytes of all its tensors."""
        parts = [x.held_bytes for x in self.matrices.values()]
        return sum(parts) + sum(x.nbytes for x in self.vectors.values())


def prepare_base(
    folder: Path,
    quantization: Quantization,
    prepared: Path,
    progress: Progress | None = None,
    products: ProductFormat = "wide",
) -> Path:
    """Write a model's prepared file, unless it is there already; return its path.

    It takes the memory of one layer. The file appears whole or not at all; of several processes
    that want it, one writes and the others wait.

    Args:
        folder: Hugging Face folder with ``config.json`` and ``*.safetensors``.
        quantization: Number format of the linear layers inside the blocks.
        prepared: The file to write; one that is damaged or of another model is replaced.
        progress: Told how far it is.
        products: Format of the products; embedding and head are held in it.

    Raises:
        ConfigError: An unknown quantization.
        ModelError: The model cannot be used; nothing is written.
        StorageError: The file cannot be written; nothing is left of the attempt.
    """
    return _prepare(SourceModel(folder), quantization, prepared, progress, products)


def open_prepared(
    folder: Path,
    quantization: Quantization,
    cache: Path,
    progress: Progress | None = None,
    products: ProductFormat = "wide",
) -> PreparedBase:
    """Map a model's prepared file, after preparing it if it is absent, damaged or out of date.

    A model whose own files already hold every matrix in its format needs no prepared file; they
    are mapped instead.

    Args:
        folder: Hugging Face folder with ``config.json`` and ``*.safetensors``.
        quantization: Number format of the linear layers inside the blocks.
        cache: Folder of prepared files, made if need be.
        progress: Told how far preparing is.
        products: Format of the products; embedding and head are held in it.

    Raises:
        ConfigError: An unknown quantization.
        ModelError: The model cannot be used.
        StorageError: The prepared file cannot be written.
    """
    source = SourceModel(folder)
    formats = _formats(source, quantization, products)
    if _is_held_already(source, formats):
        get, path = source.tensor, folder
    else:
        name = f"{source.digest[:_DIGEST_LETTERS]}-{quantization}-{products}.safetensors"
        path = _prepare(source, quantization, cache / name, progress, products)
        get = MappedFile(path).tensor
    shapes = source.linears | source.outer
    return PreparedBase(
        config=source.config,
        quantization=quantization,
        matrices={x: y.matrix(f"{x}.weight", shapes[x], get) for x, y in formats.items()},
        vectors={name: get(name).float() for name in source.vectors},
        path=path,
    )


def _prepare(
    source: SourceModel,
    quantization: Quantization,
    prepared: Path,
    progress: Progress | None,
    products: ProductFormat,
) -> Path:
    formats = _formats(source, quantization, products)
    layout = Layout(
        _specs(source, formats),
        {"version": _FORMAT_VERSION, "quantization": quantization, "source": source.digest},
    )
    if not layout.describes(prepared):
        with one_writer(prepared):
            if not layout.describes(prepared):  # another process may have written it meanwhile
                write_tensors(prepared, layout, _parts(source, formats), progress)
    return prepared


def _formats(
    source: SourceModel, quantization: Quantization, products: ProductFormat
) -> dict[str, HeldFormat]:
    """Return how each matrix is held, by module name."""
    if quantization not in LINEAR_FORMATS:
        raise ConfigError(
            f"quantization {quantization!r} is not one of {', '.join(LINEAR_FORMATS)}"
        )
    outer = outer_format(quantization, products)
    formats: dict[str, HeldFormat] = dict.fromkeys(source.outer, outer)
    return formats | dict.fromkeys(source.linears, LINEAR_FORMATS[quantization])


def _specs(source: SourceModel, formats: dict[str, HeldFormat]) -> dict[str, TensorSpec]:
    shapes = source.linears | source.outer
    specs = {name: TensorSpec(FP32.dtype, (size,)) for name, size in source.vectors.items()}
    for name, held in formats.items():
        specs |= held.specs(f"{name}.weight", shapes[name])
    return specs


def _parts(source: SourceModel, formats: dict[str, HeldFormat]) -> Iterator[Part]:
    """Convert one tensor after the other, and keep none of the model's pages in memory."""
    for name in source.vectors:
        yield from FP32.encode(name, source.tensor(name))
    for name, held in formats.items():
        for part in held.encode(f"{name}.weight", source.tensor(f"{name}.weight")):
            yield part
            source.forget()


def _is_held_already(source: SourceModel, formats: dict[str, HeldFormat]) -> bool:
    shapes = source.linears | source.outer
    return all(
        held.specs(f"{name}.weight", shapes[name])
        == {f"{name}.weight": source.spec(f"{name}.weight")}
        and source.is_aligned(f"{name}.weight")
        for name, held in formats.items()
    )
