"""A GGUF file becomes the Hugging Face folder of the very model it was written from."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import gguf
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

import demo.smollm2
from demo.assets import cache_folder, sha256_of
from demo.smollm2 import FOLDER_NAME, convert, hugging_face_name, smollm2_folder
from edge_sdk.errors import ModelError, StorageError
from edge_sdk.model.model_shape import read_shape
from tests.demo.real_assets import use_real_cache
from tests.demo.tiny_gguf import TOKENS, tiny_model, write_gguf
from tests.demo.tiny_wheel import shelve, use_shelf

_TEXTS = ["he sat", "  12 he\n\n", "naïve 日本 🙂 ½ x²", "<|im_start|>he<|im_end|> 7", ""]


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the tiny model, converted from fp32."""
    folder = tmp_path_factory.mktemp("converted")
    convert(write_gguf(folder / "tiny.gguf", tiny_model()), folder / "model")
    return folder / "model"


def _logits(model: LlamaForCausalLM) -> torch.Tensor:
    with torch.no_grad():
        return model.float()(torch.arange(12).unsqueeze(0) * 7).logits


def _through(weights: torch.Tensor, qtype: gguf.GGMLQuantizationType) -> torch.Tensor:
    """Quantize and dequantize a matrix, then round it as the folder does."""
    if weights.ndim == 2 and qtype != gguf.GGMLQuantizationType.F32:
        packed = gguf.quantize(weights.numpy(), qtype)
        weights = torch.from_numpy(gguf.dequantize(packed, qtype))
    return weights.bfloat16().float()


@pytest.mark.parametrize("qtype", ["F32", "Q8_0", "Q4_1"])
@pytest.mark.parametrize("tied", [True, False])
def test_converted_model_is_the_one_the_file_was_written_from(
    tmp_path: Path, qtype: str, tied: bool
):
    original = tiny_model(tied)
    kind = gguf.GGMLQuantizationType[qtype]
    convert(write_gguf(tmp_path / "tiny.gguf", original, kind), tmp_path / "model")

    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32)

    rounded = {name: _through(x, kind) for name, x in original.state_dict().items()}
    original.load_state_dict(rounded)
    assert model.config.tie_word_embeddings is tied
    torch.testing.assert_close(_logits(model), _logits(original), atol=0.0, rtol=0.0)


def test_folder_is_loaded_as_bf16_by_default(converted: Path):
    assert AutoModelForCausalLM.from_pretrained(converted).dtype == torch.bfloat16


def test_folder_has_the_shape_its_configuration_says(converted: Path):
    config = json.loads((converted / "config.json").read_text(encoding="utf-8"))
    model = AutoModelForCausalLM.from_pretrained(converted)

    linears = {x.name: (x.d_out, x.d_in) for x in read_shape(config).linears}

    assert linears == {
        name: tuple(module.weight.shape)
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and name != "lm_head"
    }


@pytest.mark.parametrize("text", _TEXTS)
def test_tokenizer_gives_every_text_back(converted: Path, text: str):
    tokenizer = AutoTokenizer.from_pretrained(converted)

    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_tokenizer_merges_letters_but_never_digits(converted: Path):
    tokenizer = AutoTokenizer.from_pretrained(converted)

    assert tokenizer.tokenize("he 12") == ["he", "Ġ", "1", "2"]
    assert "12" in TOKENS
    assert "Ġ1" in TOKENS


def test_special_tokens_are_one_token_and_none_is_added(converted: Path):
    tokenizer = AutoTokenizer.from_pretrained(converted)

    letter = TOKENS.index("h")
    assert tokenizer("<|im_start|>h<file_sep>h<|im_end|>")["input_ids"] == [1, letter, 3, letter, 2]
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (1, 2, 2)


def test_chat_template_is_the_file_s(converted: Path):
    tokenizer = AutoTokenizer.from_pretrained(converted)
    chat = [{"role": "user", "content": "he"}]

    assert tokenizer.apply_chat_template(chat, tokenize=False) == "<|im_start|>he<|im_end|>"


def test_conversion_imports_neither_torch_nor_transformers(tmp_path: Path):
    path = write_gguf(tmp_path / "tiny.gguf", tiny_model())
    script = (
        "import sys; from pathlib import Path; from demo.smollm2 import convert\n"
        f"convert(Path({str(path)!r}), Path({str(tmp_path / 'model')!r}))\n"
        "sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    )

    root = Path(__file__).parents[2]
    assert subprocess.run([sys.executable, "-c", script], cwd=root, check=False).returncode == 0


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"arch": "gemma"}, "gemma model; only llama"),
        ({"pre": "llama-bpe"}, "llama-bpe tokenizer; only smollm"),
        ({"template": None}, r"no field tokenizer\.chat_template"),
    ],
)
def test_file_of_another_kind_is_refused(tmp_path: Path, changes: dict[str, str], said: str):
    path = write_gguf(tmp_path / "tiny.gguf", tiny_model(), **changes)

    with pytest.raises(ModelError, match=said):
        convert(path, tmp_path / "model")


@pytest.mark.parametrize("kept", [0, 3, 100, 9000, -2000])
def test_damaged_file_is_refused(tmp_path: Path, kept: int):
    path = write_gguf(tmp_path / "tiny.gguf", tiny_model())
    path.write_bytes(path.read_bytes()[:kept])

    with pytest.raises(ModelError, match=r"tiny\.gguf cannot be converted"):
        convert(path, tmp_path / "model")


@pytest.mark.parametrize("name", ["blk.0.attn_q.bias", "blk.x.attn_q.weight", "rope_freqs.weight"])
def test_tensor_of_another_layout_is_refused(name: str):
    with pytest.raises(ModelError, match="none of a Llama"):
        hugging_face_name(name)


def test_folder_is_made_once_and_says_what_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    shelf = use_shelf(tmp_path, monkeypatch)
    member = shelve(shelf, write_gguf(tmp_path / "tiny.gguf", tiny_model()))
    monkeypatch.setattr(demo.smollm2, "GGUF", member)

    folder = smollm2_folder()
    next(shelf.glob("*.whl")).unlink()

    assert smollm2_folder() == folder
    assert [path.name for path in cache_folder().iterdir()] == [FOLDER_NAME]
    readme = (folder / "README.md").read_text(encoding="utf-8")
    for fact in ("dequantized 4-bit copy", "Apache-2.0", "tiny-asset", member.sha256):
        assert fact in readme


def test_failed_conversion_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "tiny.gguf").write_bytes(b"GGUF is not this")
    member = shelve(use_shelf(tmp_path, monkeypatch), tmp_path / "tiny.gguf")
    monkeypatch.setattr(demo.smollm2, "GGUF", member)

    with pytest.raises(ModelError):
        smollm2_folder()

    assert list(cache_folder().iterdir()) == []


def test_place_taken_by_something_else_is_a_storage_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    shelf = use_shelf(tmp_path, monkeypatch)
    member = shelve(shelf, write_gguf(tmp_path / "tiny.gguf", tiny_model()))
    monkeypatch.setattr(demo.smollm2, "GGUF", member)
    (cache_folder() / FOLDER_NAME / "notes").mkdir(parents=True)

    with pytest.raises(StorageError, match=FOLDER_NAME):
        smollm2_folder()


def test_real_model_is_bit_for_bit_the_known_one_and_knows_paris(monkeypatch: pytest.MonkeyPatch):
    folder = use_real_cache(monkeypatch) / FOLDER_NAME
    if not folder.is_dir():
        pytest.skip("the model is not in the demo's cache: run the demo once")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)

    tokens = tokenizer("The capital of France is", return_tensors="pt")
    with torch.no_grad():
        best = model(**tokens).logits[0, -1].argmax()

    assert sha256_of(folder / "model.safetensors") == (
        "a0efc45b71d0592322e7ca97b04b681e59ac6b9d96cd7f1b4f60623ea7dd2b5b"
    )
    assert tokenizer.decode(best) == " Paris"
