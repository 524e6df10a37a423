"""ONNX Runtime says what torch says: every family, every rank, while adapters come and go."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import safetensors.numpy
import torch
import transformers

from edge_sdk.errors import AdapterError, ConfigError, DataError, ModelError
from edge_sdk.general.evaluation import choice_scores
from edge_sdk.general.generation import classify, load_with_adapter
from edge_sdk.inference import Sampling, Session, open_session
from edge_sdk.inference.adapter_file import (
    adapters_folder,
    convert_peft_folder,
    write_adapter,
)
from edge_sdk.inference.ahead import convert_ahead
from edge_sdk.inference.blocks import round_to_blocks, widen
from edge_sdk.inference.export import WEIGHT_FILE, check_export, export_once
from edge_sdk.inference.mapped_adapter import map_adapter
from edge_sdk.inference.nf4 import round_to_nf4
from edge_sdk.inference.providers import choose_providers
from edge_sdk.inference.rotation import rotation_tables
from edge_sdk.lean.architecture import read_architecture
from edge_sdk.lean.nf4 import decode_nf4, quantize_nf4
from edge_sdk.model.model_folder import read_config
from edge_sdk.model.model_shape import ModelShape, read_shape
from tests.sdk.inference_parts import (
    PROMPTS,
    load_torch,
    save_adapter,
    save_model,
    some_ids,
    torch_tokens,
)
from tests.sdk.lean_parts import FAMILIES
from tests.sdk.parts import LABELS, classifier_spec
from tests.tiny_model import save_tokenizer

ROOT = Path(__file__).parent.parent.parent
ENDLESS = 12


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("exports")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def adapters(base: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    root = tmp_path_factory.mktemp("adapters")
    return {r: save_adapter(root / str(r), base, r, seed=r) for r in (8, 64)}


@pytest.fixture
def session(base: Path, cache: Path) -> Session:
    found = open_session(base, weight_format="fp32", threads=1, cache=cache)
    found.tokenizer.end_ids = frozenset()
    return found


def plain_model(folder: Path) -> torch.nn.Module:
    return transformers.AutoModelForCausalLM.from_pretrained(folder).eval()


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_tokens_of_every_family_equal_those_of_torch(family, tmp_path):
    base = save_model(tmp_path / "base", family)
    adapter = save_adapter(tmp_path / "adapter", base, targets=None, use_rslora=True)
    session = open_session(base, adapter, weight_format="fp32", threads=1, cache=tmp_path)
    session.tokenizer.end_ids = frozenset()
    model = load_torch(base, adapter).model
    for length in (1, 7, 40):
        ids = some_ids(length, seed=length)
        assert list(session.tokens(ids, ENDLESS)) == torch_tokens(model, ids, ENDLESS)


def test_one_base_runs_without_an_adapter_and_with_ranks_8_and_64(session, base, adapters):
    ids = some_ids(9)
    found = {0: list(session.tokens(ids, ENDLESS))}
    wanted = {0: torch_tokens(plain_model(base), ids, ENDLESS)}
    for r, folder in adapters.items():
        session.swap(folder)
        found[r] = list(session.tokens(ids, ENDLESS))
        wanted[r] = torch_tokens(load_torch(base, folder).model, ids, ENDLESS)
    session.swap(None)
    assert list(session.tokens(ids, ENDLESS)) == found[0]
    assert found == wanted
    assert len({tuple(tokens) for tokens in found.values()}) == 3


def test_a_running_generation_keeps_the_adapter_it_began_with(session, adapters):
    ids = some_ids(9)
    session.swap(adapters[8])
    undisturbed = list(session.tokens(ids, ENDLESS))
    running = session.tokens(ids, ENDLESS)
    seen = [next(running) for _ in range(4)]
    session.swap(adapters[64])
    new = list(session.tokens(ids, ENDLESS))
    session.swap(None)
    assert seen + list(running) == undisturbed
    assert new != undisturbed


def test_a_generation_that_was_asked_for_before_a_swap_uses_the_adapter_of_then(session, adapters):
    ids = some_ids(9)
    without = list(session.tokens(ids, ENDLESS))
    asked = session.tokens(ids, ENDLESS)
    session.swap(adapters[8])
    assert list(asked) == without


@pytest.mark.parametrize(
    ("weight_format", "theirs", "computes_in_bf16", "tolerance"),
    [
        ("int8", "fp32", False, 0.05),
        ("nf4", "nf4", False, 0.05),
        ("int4", "nf4", False, 0.02),
        ("int4", "nf4", True, 0.1),
    ],
)
def test_rounded_weights_give_nearly_the_probabilities_of_torch(
    base, adapters, cache, monkeypatch, weight_format, theirs, computes_in_bf16, tolerance
):
    """Those of 4 bits are those of the base an adapter is trained on, with bf16 units or not."""
    monkeypatch.setattr("edge_sdk.general.base_model.has_native_bf16", lambda: computes_in_bf16)
    session = open_session(base, adapters[8], weight_format=weight_format, threads=1, cache=cache)
    choices = [" red", " green", " blue"]
    found = np.log([session.classify(PROMPTS[0], choices)[choice] for choice in choices])
    loaded = load_with_adapter(base, adapters[8], theirs, threads=1)
    scores = choice_scores(loaded, [PROMPTS[0]], choices)[0]
    wanted = torch.tensor(scores).log_softmax(0).numpy()
    np.testing.assert_allclose(found, wanted, atol=tolerance)


def test_choices_are_scored_as_torch_scores_them(session, base, adapters):
    session.swap(adapters[8])
    choices = [" red", " green city", " one two three", " red city"]
    loaded = load_torch(base, adapters[8])
    for prompt in PROMPTS:
        scores = torch.tensor(choice_scores(loaded, [prompt], choices)[0])
        found = session.classify(prompt, choices)
        assert list(found) == choices
        np.testing.assert_allclose(list(found.values()), scores.softmax(0), atol=1e-6)


@pytest.mark.parametrize("kind", ["bert", "roberta", "llama"])
def test_a_classifier_gives_the_probabilities_of_torch(kind, tmp_path, tiny_bert):
    base = {"bert": lambda: tiny_bert, "llama": lambda: save_model(tmp_path / "base", "llama")}.get(
        kind, lambda: save_roberta(tmp_path / "base")
    )()
    adapter = save_adapter(tmp_path / "a", base, 4, classifier_spec(), targets=None)
    loaded = load_with_adapter(base, adapter, "fp32", threads=1)
    session = open_session(base, adapter, weight_format="fp32", threads=1, cache=tmp_path)
    for text in PROMPTS:
        found, wanted = session.classify(text), classify(loaded, text)
        assert list(found) == LABELS
        np.testing.assert_allclose(list(found.values()), list(wanted.values()), atol=1e-6)


def save_roberta(folder: Path) -> Path:
    torch.manual_seed(0)
    config = transformers.RobertaConfig(
        vocab_size=96,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=64,
        pad_token_id=0,
        type_vocab_size=1,
    )
    transformers.RobertaModel(config).save_pretrained(folder)
    return save_tokenizer(folder)


def test_a_sampled_text_is_the_same_for_the_same_seed(session):
    def draw(seed: int) -> list[int]:
        sampling = Sampling(temperature=1.5, top_p=0.9, seed=seed)
        return list(session.tokens(some_ids(5), ENDLESS, sampling))

    assert draw(1) == draw(1)
    assert draw(1) != draw(2)


def test_an_end_token_ends_the_text_and_is_not_in_it(session):
    tokens = list(session.tokens(some_ids(5), ENDLESS))
    session.tokenizer.end_ids = frozenset({tokens[3]})
    assert list(session.tokens(some_ids(5), ENDLESS)) == tokens[: tokens.index(tokens[3])]


def test_a_text_ends_where_the_context_does(session):
    assert len(list(session.tokens(some_ids(120), 50))) == 8
    with pytest.raises(DataError, match=r"129 tokens.*takes 128"):
        session.tokens(some_ids(128), 50)


def test_an_adapter_of_another_base_is_refused_and_the_present_one_stays(
    session, cache, adapters, tmp_path
):
    other = save_model(tmp_path / "other", "llama with everything")
    wrong = save_adapter(tmp_path / "wrong", other, targets=None)
    session.swap(adapters[8])
    before = list(session.tokens(some_ids(5), ENDLESS))
    with pytest.raises(AdapterError, match=r"maps 64 to 64: use the base model it was trained on"):
        session.swap(wrong)
    converted = convert_peft_folder(wrong, shape_of(other), tmp_path)
    with pytest.raises(AdapterError, match="use the base model it was converted for"):
        session.swap(converted)
    assert list(session.tokens(some_ids(5), ENDLESS)) == before


def shape_of(folder: Path) -> ModelShape:
    return read_shape(read_config(folder))


def zeros(*shape: int) -> np.ndarray:
    return np.zeros(shape, np.float32)


@pytest.mark.parametrize(
    ("arrays", "reason"),
    [
        ({"A": zeros(4, 64)}, "only one of lora_A and lora_B"),
        ({"A": zeros(4, 64), "B": zeros(64, 2)}, "two ranks"),
        ({"A": zeros(4, 63), "B": zeros(64, 4)}, "maps 64 to 64"),
        ({"A": zeros(4, 64), "B": zeros(64, 4), "C": zeros(1)}, "which this base model does not"),
    ],
)
def test_an_adapter_that_does_not_fit_is_refused_before_it_is_written(
    arrays, reason, base, tmp_path
):
    named = {f"model.layers.0.self_attn.q_proj.lora_{part}": x for part, x in arrays.items()}
    with pytest.raises(AdapterError, match=reason):
        write_adapter(tmp_path / "x.onnx_adapter", named, 1.0, shape_of(base))
    assert not list(tmp_path.iterdir())


def test_an_adapter_of_some_layers_that_are_computed_as_one_leaves_the_others(
    session, base, tmp_path
):
    adapter = save_adapter(tmp_path, base, targets=("v_proj", "up_proj"))
    session.swap(adapter)
    ids = some_ids(9)
    wanted = torch_tokens(load_torch(base, adapter).model, ids, ENDLESS)
    assert list(session.tokens(ids, ENDLESS)) == wanted


def test_a_damaged_adapter_file_is_refused_and_made_again(session, base, adapters):
    found = convert_peft_folder(adapters[8], shape_of(base))
    good = found.read_bytes()
    found.write_bytes(good[: len(good) // 2])
    with pytest.raises(AdapterError, match="cannot be read"):
        session.swap(found)
    session.swap(adapters[8])
    assert found.read_bytes() == good


def test_a_mapped_adapter_is_the_one_onnx_runtime_reads(base, adapters):
    path = convert_peft_folder(adapters[64], shape_of(base))
    found = dict(map_adapter(path))
    content = onnxruntime.AdapterFormat.read_adapter(str(path))
    wanted = content.get_parameters()
    assert found.keys() == wanted.keys()
    for name, array in found.items():
        np.testing.assert_array_equal(array, wanted[name].numpy())


def test_an_adapter_file_is_refused_wherever_it_was_cut(base, adapters, tmp_path):
    good = convert_peft_folder(adapters[8], shape_of(base)).read_bytes()
    path = tmp_path / "cut.onnx_adapter"
    for kept in (*range(0, 400, 7), *range(400, len(good) - 64, 997)):
        path.write_bytes(good[:kept])
        with pytest.raises(AdapterError, match="cannot be read"):
            dict(map_adapter(path))


def test_a_fetched_adapter_is_converted_before_it_is_used(base, tmp_path, session):
    folder = save_adapter(tmp_path / "new", base, seed=99)
    known = set(adapters_folder().iterdir())
    convert_ahead(folder, base)
    (converted,) = set(adapters_folder().iterdir()) - known
    written = converted.stat().st_mtime_ns
    session.swap(folder)
    assert converted.stat().st_mtime_ns == written


def test_what_cannot_be_converted_ahead_says_so_when_it_is_used(base, tmp_path, session, caplog):
    convert_ahead(tmp_path, base)
    assert "is converted when it is used" in caplog.text
    with pytest.raises(AdapterError, match="is no PEFT folder"):
        session.swap(tmp_path)


def test_only_the_last_few_converted_adapters_are_kept(base, tmp_path):
    for seed in range(6):
        folder = save_adapter(tmp_path / str(seed), base, 2, seed=seed)
        last = convert_peft_folder(folder, shape_of(base), tmp_path / "cache")
    assert len(list((tmp_path / "cache").iterdir())) == 4
    assert last.is_file()


def test_a_damaged_export_is_refused_and_made_again(base, tmp_path):
    export = export_once(base, "fp32", "CAUSAL_LM", tmp_path)
    weights = (export / WEIGHT_FILE).read_bytes()
    for damaged in (weights[:-1], weights[:-1] + bytes([weights[-1] ^ 1])):
        (export / WEIGHT_FILE).write_bytes(damaged)
        with pytest.raises(ModelError, match="export it again"):
            check_export(export)
        assert export_once(base, "fp32", "CAUSAL_LM", tmp_path) == export
        assert (export / WEIGHT_FILE).read_bytes() == weights
    (export / WEIGHT_FILE).unlink()
    with pytest.raises(ModelError, match="no complete export"):
        check_export(export)


def test_an_export_is_made_once_and_of_another_model_anew(base, tmp_path):
    copy = shutil.copytree(base, tmp_path / "copy")
    first = export_once(copy, "fp32", "CAUSAL_LM", tmp_path / "cache")
    written = (first / WEIGHT_FILE).stat().st_mtime_ns
    assert export_once(copy, "fp32", "CAUSAL_LM", tmp_path / "cache") == first
    assert (first / WEIGHT_FILE).stat().st_mtime_ns == written
    tensors = safetensors.numpy.load_file(copy / "model.safetensors")
    safetensors.numpy.save_file({**tensors}, copy / "model.safetensors", {"format": "pt", "x": "y"})
    assert export_once(copy, "fp32", "CAUSAL_LM", tmp_path / "cache") != first


def test_an_export_that_fails_leaves_nothing(base, tmp_path):
    copy = shutil.copytree(base, tmp_path / "copy")
    tensors = safetensors.numpy.load_file(copy / "model.safetensors")
    del tensors["model.norm.weight"]
    safetensors.numpy.save_file(tensors, copy / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match=r"lack the tensor model\.norm\.weight"):
        export_once(copy, "fp32", "CAUSAL_LM", tmp_path / "cache")
    assert [x.suffix for x in (tmp_path / "cache").iterdir()] == [".lock"]


def test_what_cannot_be_exported_says_why(tiny_llama, tiny_bert, base, tmp_path):
    with pytest.raises(ModelError, match="8 wide"):
        export_once(tiny_llama, "fp32", "CAUSAL_LM", tmp_path)
    with pytest.raises(ModelError, match="generates no text"):
        export_once(tiny_bert, "fp32", "CAUSAL_LM", tmp_path)
    with pytest.raises(ConfigError, match="nf4, int4, int8, fp32"):
        export_once(base, "int3", "CAUSAL_LM", tmp_path)  # type: ignore[arg-type]


def test_a_model_refuses_what_it_is_not_made_for(session, tiny_bert, tmp_path):
    with pytest.raises(ConfigError, match="name the choices"):
        session.classify("red")
    with pytest.raises(ConfigError, match="at least 1"):
        session.generate("red", max_new_tokens=0)
    with pytest.raises(DataError, match="no token"):
        session.generate("")
    adapter = save_adapter(tmp_path / "a", tiny_bert, 4, classifier_spec(), targets=None)
    classifier = open_session(tiny_bert, adapter, threads=1, cache=tmp_path)
    with pytest.raises(ConfigError, match="classify with it"):
        classifier.generate("red")
    classifier.swap(None)
    with pytest.raises(ConfigError, match="swap one in"):
        classifier.classify("red")


def test_rounding_errs_little_and_never_over_the_edge_of_a_block():
    rng = np.random.default_rng(0)
    matrix = rng.normal(size=(7, 100)).astype(np.float32)
    matrix[3] = 0
    found = widen(round_to_blocks(matrix), 100)
    assert np.linalg.norm(found - matrix) / np.linalg.norm(matrix) < 0.006
    assert (found[3] == 0).all()


def test_nf4_is_that_of_the_trainer(tmp_path):
    """But for the scales, which the trainer rounds to 8 bits."""
    matrix = np.random.default_rng(0).normal(size=(70, 48)).astype(np.float32)
    packed, absmax = quantize_nf4(torch.tensor(matrix))
    wanted = torch.empty(matrix.size)
    decode_nf4(packed, absmax, wanted)
    found = round_to_nf4(matrix)
    np.testing.assert_allclose(found.reshape(-1), wanted.numpy(), rtol=0.02, atol=1e-6)


def test_a_layer_that_fills_no_whole_blocks_of_nf4_keeps_its_values_in_8_bits(tmp_path):
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=96,
        hidden_size=36,
        intermediate_size=45,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        max_position_embeddings=64,
    )
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path / "base")
    base, found = save_tokenizer(tmp_path / "base"), {}
    for weight_format in ("nf4", "int4"):
        session = open_session(base, weight_format=weight_format, threads=1, cache=tmp_path)
        found[weight_format] = list(session.classify(PROMPTS[0], [" red", " green"]).values())
    np.testing.assert_allclose(found["int4"], found["nf4"], atol=1e-3)


@pytest.mark.parametrize("family", ["llama", "llama 3"])
def test_the_rotation_is_that_of_the_trainer(family, tmp_path):
    config = read_config(save_model(tmp_path, family))
    architecture = read_architecture(config)
    found = rotation_tables(config, architecture.head_size, 128)
    for ours, theirs in zip(found, architecture.rotation(128, torch.float32), strict=True):
        np.testing.assert_allclose(ours, theirs.numpy(), atol=2e-5)


def test_the_fastest_provider_comes_first_and_the_cpu_last():
    assert choose_providers(["CPUExecutionProvider"]) == ["CPUExecutionProvider"]
    available = ["CPUExecutionProvider", "XExecutionProvider", "CUDAExecutionProvider"]
    assert choose_providers(available) == ["CUDAExecutionProvider", "CPUExecutionProvider"]


def test_inference_never_imports_torch(base, adapters, cache):
    script = (
        "import sys\nfrom pathlib import Path\nfrom edge_sdk.inference import open_session\n"
        "base, adapter, cache = map(Path, sys.argv[1:])\n"
        "session = open_session(base, adapter, threads=1, cache=cache)\n"
        "session.swap(None); session.swap(adapter)\n"
        "''.join(session.generate('what is', chat=True, max_new_tokens=3))\n"
        "print(sorted({'torch', 'transformers', 'peft'} & set(sys.modules)))"
    )
    command = [sys.executable, "-c", script, str(base), str(adapters[8]), str(cache)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"
