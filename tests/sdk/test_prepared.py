"""A prepared base holds the model's values, is written once and whole, and costs no memory."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier, get_ident

import pytest
import safetensors
import torch
from bitsandbytes import functional as bnb
from safetensors.torch import load_file, save_file

from edge_sdk.errors import ConfigError, ModelError, StorageError
from edge_sdk.lean.frozen import Int8Matrix, Nf4Matrix, PlainMatrix
from edge_sdk.lean.prepared import open_prepared, prepare_base
from tests.tiny_model import save_tiny_llama, save_tiny_neox

QUANTIZATIONS = ["nf4", "int8", "bf16", "fp32"]
EMBEDDING, HEAD = "model.embed_tokens", "lm_head"
FIRST = "model.layers.0.self_attn.q_proj"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A tied Llama in fp32, two blocks; not to be changed."""
    return save_tiny_llama(tmp_path_factory.mktemp("model"))


@pytest.fixture
def own_model(tmp_path):
    """One to change."""
    return save_tiny_llama(tmp_path / "model")


def save_family(folder: Path, name: str, dtype=torch.float32, **options) -> Path:
    """Save a random untied model whose configuration and model classes start with ``name``."""
    import transformers

    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(
        vocab_size=40,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        tie_word_embeddings=False,
        **options,
    )
    built = getattr(transformers, f"{name}ForCausalLM")(config)
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.normal_(std=0.1)
    built.to(dtype).save_pretrained(folder)
    return folder


def weights(folder):
    return load_file(folder / "model.safetensors")


def change(folder, **replaced):
    """Save other tensors in place of some; None leaves one out."""
    tensors = weights(folder) | {name.replace("__", "."): x for name, x in replaced.items()}
    kept = {name: x for name, x in tensors.items() if x is not None}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})


def configure(folder, **fields):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def widened(matrix, dtype=torch.float32):
    return matrix.widen(torch.empty(matrix.shape, dtype=dtype))


def files(folder):
    return sorted(x.name for x in folder.iterdir() if not x.name.endswith(".lock"))


def python(code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


def as_bitsandbytes(weight):
    packed, state = bnb.quantize_4bit(
        weight.reshape(1, -1), blocksize=64, compress_statistics=True, quant_type="nf4"
    )
    state.dtype = torch.float32
    return bnb.dequantize_4bit(packed, state).view(weight.shape)


# Values


def test_nf4_values_are_those_of_bitsandbytes(model, tmp_path):
    base, source = open_prepared(model, "nf4", tmp_path), weights(model)
    linears = base.matrices.keys() - {EMBEDDING}
    assert len(linears) == 14
    for name in linears:
        assert isinstance(base.matrices[name], Nf4Matrix)
        expected = as_bitsandbytes(source[f"{name}.weight"])
        assert torch.equal(widened(base.matrices[name]), expected)


def test_int8_values_are_within_half_a_step_and_the_largest_is_exact(own_model, tmp_path):
    down = weights(own_model)["model.layers.0.mlp.down_proj.weight"]
    down[3] = 0
    change(own_model, model__layers__0__mlp__down_proj__weight=down)
    base, source = open_prepared(own_model, "int8", tmp_path), weights(own_model)
    for name in base.matrices.keys() - {EMBEDDING}:
        held, weight = base.matrices[name], source[f"{name}.weight"]
        assert isinstance(held, Int8Matrix)
        assert held.values.dtype == torch.int8
        assert int(held.values.abs().max()) == 127
        error = (widened(held) - weight).abs()
        assert (error <= held.scale[:, None] * 0.501).all()
    zero = base.matrices["model.layers.0.mlp.down_proj"]
    assert zero.scale[3] == 1
    assert not zero.values[3].any()
    rows = torch.arange(32)
    torch.testing.assert_close(zero.scale[rows != 3], down.abs().amax(1)[rows != 3] / 127)


@pytest.mark.parametrize(("quantization", "dtype"), [("bf16", torch.bfloat16), ("fp32", None)])
def test_plain_values_are_the_models_rounded_once(tmp_path, quantization, dtype):
    folder = save_family(tmp_path / "model", "Llama", torch.float16)
    base, source = open_prepared(folder, quantization, tmp_path / "cache"), weights(folder)
    assert base.path.parent == tmp_path / "cache"
    for name, held in base.matrices.items():
        assert isinstance(held, PlainMatrix)
        assert torch.equal(held.values, source[f"{name}.weight"].to(dtype or torch.float32))


@pytest.mark.parametrize("quantization", QUANTIZATIONS)
@pytest.mark.parametrize(
    ("family", "options", "biases"),
    [
        ("Llama", {"attention_bias": True, "mlp_bias": True}, 14),
        ("Mistral", {"sliding_window": None}, 0),
        ("Qwen2", {}, 6),
        ("Qwen3", {}, 0),
    ],
)
def test_every_family_keeps_its_outer_tensors(tmp_path, family, options, biases, quantization):
    folder = save_family(tmp_path / "model", family, torch.bfloat16, **options)
    base, source = open_prepared(folder, quantization, tmp_path / "cache"), weights(folder)
    outer = torch.float32 if quantization == "fp32" else torch.bfloat16
    for name in (EMBEDDING, HEAD):
        assert torch.equal(base.matrices[name].values, source[f"{name}.weight"].to(outer))
    assert sum(name.endswith(".bias") for name in base.vectors) == biases
    assert {f"{x}.weight" for x in base.matrices} | base.vectors.keys() == source.keys()
    for name, vector in base.vectors.items():
        assert vector.dtype == torch.float32
        assert torch.equal(vector, source[name].float())


def test_tied_head_is_held_once(own_model, tmp_path):
    plain = open_prepared(own_model, "nf4", tmp_path)
    change(own_model, lm_head__weight=weights(own_model)[f"{EMBEDDING}.weight"].clone())
    base = open_prepared(own_model, "nf4", tmp_path)
    assert HEAD not in base.matrices
    assert base.path != plain.path
    assert base.path.stat().st_size == plain.path.stat().st_size


def test_shards_give_what_one_file_gives(own_model, tmp_path):
    whole = open_prepared(own_model, "int8", tmp_path / "cache")
    tensors = weights(own_model)
    names = sorted(tensors)
    shards = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    (own_model / "model.safetensors").unlink()
    for shard, its in shards.items():
        save_file({name: tensors[name] for name in its}, own_model / shard)
    save_file({"other": torch.zeros(2)}, own_model / "consolidated.safetensors")
    index = {"weight_map": {name: shard for shard, its in shards.items() for name in its}}
    (own_model / "model.safetensors.index.json").write_text(json.dumps(index))
    sharded = open_prepared(own_model, "int8", tmp_path / "cache")
    assert sharded.path != whole.path
    for name, held in whole.matrices.items():
        assert torch.equal(widened(held), widened(sharded.matrices[name]))


def test_prepared_file_is_safetensors_and_counts_its_bytes(model, tmp_path):
    base = open_prepared(model, "nf4", tmp_path)
    tensors = load_file(base.path)  # another implementation of the format
    assert base.held_bytes == sum(x.nbytes for x in tensors.values())
    assert base.path.stat().st_size - base.held_bytes < 16_000
    held = base.matrices[FIRST]
    assert torch.equal(tensors[f"{FIRST}.weight"], held.packed)
    assert torch.equal(tensors[f"{FIRST}.weight.absmax"], held.absmax)
    with safetensors.safe_open(base.path, framework="np") as file:
        assert file.metadata()["quantization"] == "nf4"


def test_chunks_of_a_large_matrix_leave_no_seam(own_model, tmp_path):
    """More numbers than are converted at once, in rows that do not divide that number."""
    configure(own_model, vocab_size=40_000, intermediate_size=36_000)
    torch.manual_seed(1)
    big = {f"model.layers.{i}.mlp.{x}_proj.weight" for i in range(2) for x in ("gate", "up")}
    new = {name: torch.randn(36_000, 32) for name in big}
    new |= {f"model.layers.{i}.mlp.down_proj.weight": torch.randn(32, 36_000) for i in range(2)}
    new[f"{EMBEDDING}.weight"] = torch.randn(40_000, 32)
    change(own_model, **new)
    base = open_prepared(own_model, "int8", tmp_path / "cache")
    embedding = base.matrices[EMBEDDING].values
    assert torch.equal(embedding, new[f"{EMBEDDING}.weight"].bfloat16())
    for name in ("model.layers.0.mlp.gate_proj", "model.layers.1.mlp.down_proj"):
        held, weight = base.matrices[name], new[f"{name}.weight"]
        assert ((widened(held) - weight).abs() <= held.scale[:, None] * 0.501).all()


# Writing once


def test_second_opening_writes_nothing(model, tmp_path):
    first = open_prepared(model, "nf4", tmp_path)
    before = first.path.stat()
    calls = []
    second = open_prepared(model, "nf4", tmp_path, progress=lambda *x: calls.append(x))
    after = second.path.stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert calls == []
    assert files(tmp_path) == [first.path.name]


def test_progress_ends_at_the_size_of_the_file(model, tmp_path):
    calls = []
    path = prepare_base(model, "nf4", tmp_path / "base", lambda *x: calls.append(x))
    done, sizes = zip(*calls, strict=True)
    assert list(done) == sorted(done)
    assert done[-1] == sizes[0] == path.stat().st_size


@pytest.mark.parametrize("quantization", ["bf16", "fp32"])
def test_model_that_is_held_already_is_mapped_and_not_copied(tmp_path, quantization):
    dtype = {"bf16": torch.bfloat16, "fp32": torch.float32}[quantization]
    folder = save_family(tmp_path / "model", "Qwen2", dtype)
    base, source = open_prepared(folder, quantization, tmp_path / "cache"), weights(folder)
    assert base.path == folder
    assert not (tmp_path / "cache").exists()
    for name, held in base.matrices.items():
        assert torch.equal(held.values, source[f"{name}.weight"])
    assert all(x.dtype == torch.float32 for x in base.vectors.values())


def test_tensors_that_are_not_aligned_are_read_all_the_same(tmp_path):
    folder = save_family(tmp_path / "model", "Llama", torch.bfloat16)
    expected = {name: x.clone() for name, x in weights(folder).items()}
    path = folder / "model.safetensors"
    content = path.read_bytes()
    size = int.from_bytes(content[:8], "little")
    header = content[8 : 8 + size] + b" "  # every tensor now starts at an odd byte
    path.write_bytes((size + 1).to_bytes(8, "little") + header + content[8 + size :])
    base = open_prepared(folder, "bf16", tmp_path / "cache")
    assert base.path.parent == tmp_path / "cache"
    for name, held in base.matrices.items():
        assert torch.equal(held.values, expected[f"{name}.weight"])


def test_changed_model_is_prepared_again(own_model, tmp_path):
    old = open_prepared(own_model, "nf4", tmp_path / "cache")
    kept = widened(old.matrices[FIRST])
    change(own_model, **{f"{FIRST}.weight": 2 * weights(own_model)[f"{FIRST}.weight"]})
    new = open_prepared(own_model, "nf4", tmp_path / "cache")
    assert torch.equal(widened(old.matrices[FIRST]), kept)
    expected = as_bitsandbytes(weights(own_model)[f"{FIRST}.weight"])
    assert torch.equal(widened(new.matrices[FIRST]), expected)


def test_file_of_another_model_is_replaced(own_model, tmp_path):
    path = prepare_base(own_model, "nf4", tmp_path / "base")
    foreign = path.read_bytes()
    os.utime(own_model / "model.safetensors", ns=(1, 1))
    prepare_base(own_model, "nf4", path)
    assert len(path.read_bytes()) == len(foreign)
    assert path.read_bytes() != foreign


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[:-1],
        lambda content: content + b"\0",
        lambda content: content[:200],
        lambda content: b"",
        lambda content: content.replace(b'"U8"', b'"I8"', 1),
        lambda content: b"\xff" * len(content),
    ],
    ids=["short", "long", "stump", "empty", "other header", "noise"],
)
def test_damaged_file_is_written_again(model, tmp_path, damage):
    path = open_prepared(model, "nf4", tmp_path).path
    content = path.read_bytes()
    path.write_bytes(damage(content))
    base = open_prepared(model, "nf4", tmp_path)
    assert base.path == path
    assert path.read_bytes() == content


def test_killed_preparation_leaves_nothing_that_is_trusted(model, tmp_path):
    code = """
import os, signal, sys
from pathlib import Path
from edge_sdk.lean.prepared import open_prepared

def progress(done, size):
    if done > size / 2:
        os.kill(os.getpid(), signal.SIGKILL)

open_prepared(Path(sys.argv[1]), "nf4", Path(sys.argv[2]), progress)
"""
    assert python(code, model, tmp_path).returncode == -9
    left = files(tmp_path)
    assert len(left) == 1
    assert left[0].endswith(".partial")
    base = open_prepared(model, "nf4", tmp_path)
    assert files(tmp_path) == [base.path.name]
    expected = as_bitsandbytes(weights(model)[f"{FIRST}.weight"])
    assert torch.equal(widened(base.matrices[FIRST]), expected)


def test_of_several_writers_one_writes_and_all_can_read(model, tmp_path):
    """Threads stand for processes: each opens the lock by itself, and that is what counts."""
    start, writers = Barrier(4), set()

    def slowly(done: int, size: int) -> None:
        writers.add(get_ident())
        time.sleep(0.002)

    def open_it(_: int) -> bool:
        start.wait(timeout=20)
        base = open_prepared(model, "nf4", tmp_path, slowly)
        return torch.equal(widened(base.matrices[FIRST]), expected)

    expected = as_bitsandbytes(weights(model)[f"{FIRST}.weight"])
    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(open_it, range(4)))
    assert len(writers) == 1
    assert len(files(tmp_path)) == 1


# Refusals


def refuses(folder, tmp_path, match, quantization="nf4"):
    with pytest.raises(ModelError, match=match):
        open_prepared(folder, quantization, tmp_path / "cache")
    assert not (tmp_path / "cache").exists() or not any(
        name.endswith(".safetensors") for name in files(tmp_path / "cache")
    )


@pytest.mark.parametrize("quantization", QUANTIZATIONS)
def test_tensor_of_a_wrong_shape_is_one_model_error(own_model, tmp_path, quantization):
    change(own_model, **{f"{FIRST}.weight": torch.zeros(32, 31)})
    refuses(own_model, tmp_path, r"q_proj.weight .* \[32, 31\] .* \[32, 32\]", quantization)


@pytest.mark.parametrize(
    ("name", "tensor", "match"),
    [
        (f"{FIRST}.weight", None, "lack 1 .*q_proj.weight"),
        ("model.norm.weight", None, "lack 1 .* model.norm.weight"),
        ("model.norm.weight", torch.ones(31), r"\[31\]"),
        (f"{EMBEDDING}.weight", torch.zeros(3, 32), r"\[3, 32\]"),
        (f"{FIRST}.weight", torch.zeros(32, 32, dtype=torch.int8), "torch.int8"),
        (f"{FIRST}.weight", torch.zeros(32, 32, dtype=torch.float8_e4m3fn), "F8_E4M3"),
        (f"{FIRST}.bias", torch.zeros(32), "q_proj.bias"),
    ],
)
def test_tensors_that_do_not_fit_the_configuration_are_refused(
    own_model, tmp_path, name, tensor, match
):
    change(own_model, **{name: tensor})
    refuses(own_model, tmp_path, match)


@pytest.mark.parametrize("quantization", ["nf4", "int8"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_not_finite_are_refused(own_model, tmp_path, bad, quantization):
    weight = weights(own_model)[f"{FIRST}.weight"]
    weight[4, 7] = bad
    change(own_model, **{f"{FIRST}.weight": weight})
    refuses(own_model, tmp_path, "q_proj.weight holds NaN", quantization)
    assert files(tmp_path / "cache") == []


def test_head_that_should_be_there_is_missed(own_model, tmp_path):
    configure(own_model, tie_word_embeddings=False)
    refuses(own_model, tmp_path, "lm_head.weight")


def test_model_of_another_family_or_kind_is_refused(own_model, tmp_path):
    configure(own_model, hidden_act="gelu")
    refuses(own_model, tmp_path, "gelu")
    refuses(save_tiny_neox(tmp_path / "neox"), tmp_path, "gpt_neox")


def test_quantized_model_is_refused(own_model, tmp_path):
    configure(own_model, quantization_config={"quant_method": "bitsandbytes"})
    refuses(own_model, tmp_path, "already quantized")


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 pickled", b"\xff" * 100])
def test_file_that_is_not_safetensors_is_refused(own_model, tmp_path, content):
    (own_model / "model.safetensors").write_bytes(content)
    refuses(own_model, tmp_path, "model.safetensors cannot be read")


def test_truncated_model_is_refused(own_model, tmp_path):
    path = own_model / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-4])
    refuses(own_model, tmp_path, "model.safetensors cannot be read")


def test_model_without_weights_or_with_a_lost_shard_is_refused(own_model, tmp_path):
    (own_model / "model.safetensors").unlink()
    refuses(own_model, tmp_path, "no \\*.safetensors")
    index = own_model / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"x": "lost.safetensors"}}))
    refuses(own_model, tmp_path, "lacks lost.safetensors")
    index.write_text("[]")
    refuses(own_model, tmp_path, "not an index")


def test_unknown_quantization_is_refused(model, tmp_path):
    with pytest.raises(ConfigError, match="int3"):
        open_prepared(model, "int3", tmp_path)


def test_cache_that_cannot_be_a_folder_is_one_storage_error(model, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="file"):
        open_prepared(model, "nf4", tmp_path / "file")


def test_disk_that_refuses_is_one_storage_error_and_nothing_is_left(model, tmp_path):
    """A limit on the size of a file stands for a disk that fills up on the way."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    limit = 10_000
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        with pytest.raises(StorageError, match="free some space"):
            open_prepared(model, "nf4", tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert files(tmp_path) == []
    assert open_prepared(model, "nf4", tmp_path).path.stat().st_size > limit


# Memory


MEASURE = """
import sys
from pathlib import Path
import torch
from edge_sdk.lean.prepared import open_prepared

def status(field):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(x.split()[1]) for x in lines if x.startswith(field)) * 1024

def rise(action):
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again
    before = status("VmRSS")
    result = action()
    return result, status("VmHWM") - before

small, large, cache = map(Path, sys.argv[1:])
for _ in range(2):  # whatever is loaded at first use
    warm = open_prepared(small, "nf4", cache)
base, preparing = rise(lambda: open_prepared(large, "nf4", cache))
del base
base, opening = rise(lambda: open_prepared(large, "nf4", cache))
tensors = [x for y in base.matrices.values() for x in
           ([y.values] if hasattr(y, "values") else [y.packed, y.absmax])]
_, touching = rise(lambda: [x.view(torch.uint8).max() for x in tensors])
print(preparing, opening, touching, base.path.stat().st_size)
"""


def save_large_llama(folder: Path) -> Path:
    """Save 8 blocks of 14 MB each in bf16, without building the model."""
    d, inner, vocabulary, layers = 768, 2048, 4096, 8
    folder.mkdir()
    fields = {
        "model_type": "llama",
        "hidden_size": d,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": 12,
        "vocab_size": vocabulary,
        "tie_word_embeddings": True,
    }
    (folder / "config.json").write_text(json.dumps(fields))
    shapes = {f"{EMBEDDING}.weight": (vocabulary, d), "model.norm.weight": (d,)}
    for i in range(layers):
        block = f"model.layers.{i}"
        shapes |= {f"{block}.self_attn.{x}_proj.weight": (d, d) for x in "qkvo"}
        shapes |= {f"{block}.mlp.{x}_proj.weight": (inner, d) for x in ("gate", "up")}
        shapes[f"{block}.mlp.down_proj.weight"] = (d, inner)
        norms = ("input_layernorm", "post_attention_layernorm")
        shapes |= {f"{block}.{x}.weight": (d,) for x in norms}
    save_file(
        {name: torch.randn(shape, dtype=torch.bfloat16) for name, shape in shapes.items()},
        folder / "model.safetensors",
    )
    return folder


def test_preparing_takes_one_layer_of_memory_and_opening_none(model, tmp_path):
    large = save_large_llama(tmp_path / "large")
    layer_bytes = 14_200_000
    assert (large / "model.safetensors").stat().st_size > 8 * layer_bytes
    said = python(MEASURE, model, large, tmp_path / "cache")
    assert said.returncode == 0, said.stderr
    preparing, opening, touching, size = map(int, said.stdout.split())
    assert preparing < layer_bytes
    assert opening < 2_000_000
    assert touching < 1.15 * size
