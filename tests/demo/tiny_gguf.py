"""A tiny random Llama as a GGUF file, written from the Hugging Face model it must give back."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import torch
from tokenizers.pre_tokenizers import ByteLevel
from transformers import LlamaConfig, LlamaForCausalLM

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<file_sep>"]
MERGES = ["h e", "Ġ 1", "1 2"]
TOKENS = [*SPECIAL, *sorted(ByteLevel.alphabet()), "he", "Ġ1", "12"]
CHAT_TEMPLATE = "{% for m in messages %}<|im_start|>{{ m['content'] }}<|im_end|>{% endfor %}"
_HEADS, _KEY_HEADS = 4, 2
_NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def tiny_model(tied: bool = True) -> LlamaForCausalLM:
    """Return a random two-block Llama with grouped key heads, fp32."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(TOKENS),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=_HEADS,
        num_key_value_heads=_KEY_HEADS,
        max_position_embeddings=64,
        rope_theta=5000.0,
        rms_norm_eps=1e-3,
        tie_word_embeddings=tied,
        initializer_range=0.3,
    )
    return LlamaForCausalLM(config).eval()


def write_gguf(
    path: Path,
    model: LlamaForCausalLM,
    qtype: gguf.GGMLQuantizationType = gguf.GGMLQuantizationType.F32,
    arch: str = "llama",
    pre: str = "smollm",
    template: str | None = CHAT_TEMPLATE,
) -> Path:
    """Write a model as GGUF: its matrices as ``qtype``, its vectors as fp32."""
    writer = gguf.GGUFWriter(path, arch)
    config = model.config
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(_HEADS)
    writer.add_head_count_kv(_KEY_HEADS)
    writer.add_rope_freq_base(5000.0)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(TOKENS)
    writer.add_token_types([3 if token in SPECIAL else 1 for token in TOKENS])
    writer.add_token_merges(MERGES)
    writer.add_unk_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(2)
    if template is not None:
        writer.add_chat_template(template)
    for name, tensor in model.state_dict().items():
        if name != "lm_head.weight" or not config.tie_word_embeddings:
            _add(writer, name, tensor.numpy(), qtype)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add(writer: gguf.GGUFWriter, name: str, weights: np.ndarray, qtype) -> None:
    if "q_proj" in name:
        weights = _permuted(weights, _HEADS)
    if "k_proj" in name:
        weights = _permuted(weights, _KEY_HEADS)
    if weights.ndim == 1 or qtype == gguf.GGMLQuantizationType.F32:
        writer.add_tensor(_gguf_name(name), np.ascontiguousarray(weights))
    else:
        writer.add_tensor(_gguf_name(name), gguf.quantize(weights, qtype), raw_dtype=qtype)


def _permuted(weights: np.ndarray, heads: int) -> np.ndarray:
    """Row ``j`` of a head and row ``j + size / 2`` become neighbours."""
    size = len(weights) // heads
    order = [
        head * size + half * size // 2 + j
        for head in range(heads)
        for j in range(size // 2)
        for half in (0, 1)
    ]
    return weights[order]


def _gguf_name(name: str) -> str:
    outside = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
    stem = name.removesuffix(".weight")
    if stem in outside:
        return f"{outside[stem]}.weight"
    _, _, block, inside = stem.split(".", 3)
    return f"blk.{block}.{_NAMES[inside]}.weight"
