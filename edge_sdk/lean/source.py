"""A causal LM of the Llama shape as it came: its tensors, checked and mapped, one at a time."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from edge_sdk.errors import ModelError
from edge_sdk.lean.tensor_file import MappedFile, TensorSpec
from edge_sdk.model.lean_eligibility import why_not_lean
from edge_sdk.model.model_folder import config_digest, read_config
from edge_sdk.model.model_shape import ModelShape, read_shape

EMBEDDING = "model.embed_tokens"
HEAD = "lm_head"

_ONE_FILE = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_ATTENTION = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj")
_MLP = ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")


class SourceModel:
    """The tensors of a model in its own files.

    Args:
        folder: Hugging Face folder with ``config.json`` and ``*.safetensors``.

    Attributes:
        folder: As given.
        config: The content of ``config.json``.
        linears: ``(d_out, d_in)`` of every linear layer inside the blocks, by module name.
        outer: ``(vocab_size, d)`` of the embedding and, unless it is tied, the head.
        vectors: Length of every norm weight and bias, by tensor name.
        digest: Changes when the configuration or a weight file does.

    Raises:
        ModelError: A family of another shape, a model that is already quantized, or files that
            are missing, damaged, incomplete or do not fit ``config.json``.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config = read_config(folder)
        shape = _lean_shape(folder, self.config)
        size = (shape.vocab_size, shape.hidden_size)
        self.linears = {layer.name: (layer.d_out, layer.d_in) for layer in shape.linears}
        self.outer = {EMBEDDING: size} if shape.is_tied else {EMBEDDING: size, HEAD: size}
        self.vectors = _vectors(self.config, shape)
        files = _weight_files(folder)
        self.digest = _digest(folder, files)
        self._file_of: dict[str, MappedFile] = {}
        self._files = [MappedFile(file) for file in files]
        for file in self._files:
            self._file_of |= dict.fromkeys(file.specs, file)
        self._check(f"{HEAD}.weight" if shape.is_tied else None)

    def spec(self, name: str) -> TensorSpec:
        """Return the format and shape of a tensor."""
        return self._file_of[name].specs[name]

    def is_aligned(self, name: str) -> bool:
        """Whether a tensor can be used where it lies."""
        return self._file_of[name].is_aligned(name)

    def tensor(self, name: str) -> Tensor:
        """Return a tensor: a view of its file, not to be written to."""
        return self._file_of[name].tensor(name)

    def forget(self) -> None:
        """Take all pages of the files out of this process."""
        for file in self._files:
            file.forget()

    def _check(self, ignored: str | None) -> None:
        matrices = self.linears | self.outer
        expected: dict[str, tuple[int, ...]] = {f"{x}.weight": s for x, s in matrices.items()}
        expected |= {name: (size,) for name, size in self.vectors.items()}
        missing = [name for name in expected if name not in self._file_of]
        if missing:
            raise ModelError(
                f"the files in {self.folder} lack {len(missing)} of the model's tensors, the first "
                f"is {missing[0]}: use a complete copy, made for causal language modelling"
            )
        for name, shape in expected.items():
            found = self.spec(name)
            if found.shape != shape or not found.dtype.is_floating_point:
                raise ModelError(
                    f"{name} in {self.folder} is {list(found.shape)} in {found.dtype}, and by "
                    f"config.json it should be {list(shape)} in a floating-point format: use the "
                    "unquantized model that the configuration belongs to"
                )
        for name in self._file_of.keys() - expected.keys():
            if name != ignored and not name.endswith("rotary_emb.inv_freq"):
                raise ModelError(
                    f"{self.folder} has a tensor {name} that no {self.config['model_type']} model "
                    "with this configuration has: it would be left out of every computation"
                )


def _lean_shape(folder: Path, config: Mapping[str, Any]) -> ModelShape:
    if "quantization_config" in config:
        raise ModelError(
            f"{folder} is already quantized; name the folder of the unquantized model, it is "
            "quantized on this device"
        )
    reason = why_not_lean(config, "CAUSAL_LM")
    if reason is not None:
        raise ModelError(f"{folder} cannot be prepared: {reason}; only Llama's shape can")
    return read_shape(config)


def _vectors(config: Mapping[str, Any], shape: ModelShape) -> dict[str, int]:
    """Return the lengths of all norm weights and biases, which the family and switches decide."""
    d, sizes = shape.hidden_size, {layer.name: layer.d_out for layer in shape.linears}
    biased = _biased_layers(config)
    vectors: dict[str, int] = {}
    for i in range(shape.num_layers):
        block = f"model.layers.{i}"
        vectors[f"{block}.input_layernorm.weight"] = d
        vectors |= {f"{block}.{x}.bias": sizes[f"{block}.{x}"] for x in biased}
        if shape.model_type == "qwen3":
            head_size = shape.q_size // shape.num_heads
            vectors |= {f"{block}.self_attn.{x}_norm.weight": head_size for x in "qk"}
        vectors[f"{block}.post_attention_layernorm.weight"] = d
    return vectors | {"model.norm.weight": d}


def _biased_layers(config: Mapping[str, Any]) -> tuple[str, ...]:
    family = config["model_type"]
    if family == "qwen2":
        return _ATTENTION[:3]
    attention = family in ("llama", "qwen3") and config.get("attention_bias", False)
    mlp = family == "llama" and config.get("mlp_bias", False)
    return (_ATTENTION if attention else ()) + (_MLP if mlp else ())


def _weight_files(folder: Path) -> list[Path]:
    """Return the files a model consists of: the one, those of the index, or all there are."""
    if (folder / _ONE_FILE).is_file():
        return [folder / _ONE_FILE]
    index = folder / _INDEX
    if not index.is_file():
        files = sorted(folder.glob("*.safetensors"))
        if not files:
            raise ModelError(f"{folder} holds no *.safetensors weights; convert others first")
        return files
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        files = [folder / name for name in names]
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise ModelError(f"{index} is not an index of weight files: {error!r}") from error
    lost = [file.name for file in files if not file.is_file()]
    if lost:
        raise ModelError(f"{folder} lacks {', '.join(lost)}, named in {_INDEX}: download it again")
    return files


def _digest(folder: Path, files: list[Path]) -> str:
    try:
        states = [(x.name, x.stat().st_size, x.stat().st_mtime_ns) for x in files]
    except OSError as error:
        raise ModelError(f"the files in {folder} cannot be read: {error}") from error
    return hashlib.sha256(json.dumps([config_digest(folder), states]).encode()).hexdigest()
