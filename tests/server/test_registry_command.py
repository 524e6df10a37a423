"""The commands of versions, channels and keys, in this process."""

from __future__ import annotations

import json
import stat

import numpy as np
import pytest

from edge_sdk.wire.manifest import Manifest, Signed, open_signed
from edge_sdk.wire.messages import decode_message
from server.cli import main
from tests.server.registries import Signer
from tests.server.tasks import Site, TurnedClock, tiny_spec

SPEC = tiny_spec(quorum=1, cohort_size=1, rounds=9)


@pytest.fixture
def run(tmp_path, capsys):
    """Run one command on a state folder; returns exit code, output and errors."""

    def run_one(*words):
        code = main([*map(str, words), "--state", str(tmp_path / "state")])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run_one


@pytest.fixture
def trained(tmp_path):
    """Versions 0 to 3."""
    site = Site(tmp_path / "state", TurnedClock())
    signer = Signer(site)
    site.add_task(SPEC)
    signer.registry.prepare()
    for seed in (1, 2, 3):
        signer.close_round(SPEC, seed, loss=0.5 * seed)
    yield signer
    site.store.close()


def said(run, *words):
    code, out, err = run(*words, "--json")
    assert (code, err) == (0, "")
    return json.loads(out)


def test_the_list_shows_where_a_version_came_from_and_who_uses_it(run, trained):
    said(run, "adapter", "promote", "tiny", 1)
    said(run, "adapter", "promote", "tiny", 2, "--canary", "10%")
    reports = said(run, "adapter", "list", "tiny")
    assert [report["channels"] for report in reports] == [[], ["stable"], ["canary"], ["latest"]]
    assert (reports[3]["parent_version"], reports[3]["mean_loss"]) == (2, 1.5)
    assert (reports[2]["canary_share"], reports[3]["updates"]) == (0.1, 1)
    text = run("adapter", "list", "tiny")[1]
    assert "canary of 0.1" in text
    assert "1.5000" in text
    assert reports[2]["digest"][:12] in text


@pytest.mark.parametrize("share", ["25%", "0.25"])
def test_a_share_is_a_percentage_or_a_fraction(run, trained, share):
    said(run, "adapter", "promote", "tiny", 1, "--canary", share)
    pointer = trained.pointer()
    assert (pointer.version, pointer.canary_version, pointer.canary_share) == (3, 1, 0.25)


def test_promote_roll_back_and_follow_again(run, trained):
    code, out, _ = run("adapter", "promote", "tiny", 1)
    assert (code, out) == (0, "devices of tiny use version 1\n")
    assert said(run, "adapter", "rollback", "tiny")["version"] == 0
    code, out, _ = run("adapter", "promote", "tiny", "latest")
    assert (code, out) == (0, "devices of tiny use version 3, following the latest\n")
    assert trained.pointer().sequence == 4 + 3


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["promote", "tiny", 9], "no adapter version 9"),
        (["promote", "tiny", 3, "--canary", "5%"], "version 3 already"),
        (["promote", "tiny", 1, "--canary", "100%"], "canary"),
        (["promote", "tiny", "latest", "--canary", "5%"], "number of one version"),
        (["rollback", "none"], "no task 'none'"),
    ],
)
def test_what_cannot_be_done_is_one_line(run, trained, words, says):
    code, out, err = run("adapter", *words)
    assert (code, out) == (1, "")
    assert says in err
    assert err.count("\n") == 1
    assert trained.pointer().sequence == 4


@pytest.mark.parametrize(
    "words", [["promote", "tiny", "x"], ["promote", "tiny", 1, "--canary", "x"]]
)
def test_a_version_or_share_that_is_no_number_is_wrong_usage(run, words):
    with pytest.raises(SystemExit) as caught:
        run("adapter", *words)
    assert caught.value.code == 2


def test_the_key_is_shown_without_its_private_half_and_can_be_changed(run, trained):
    shown = said(run, "key", "show")
    assert shown["public_key"] == trained.registry.public_key()
    changed = said(run, "key", "rotate")
    assert changed["key_id"] != shown["key_id"]
    assert said(run, "key", "show") == changed
    code, out, _ = run("key", "rotate")
    assert code == 0
    assert str(trained.path) in out
    assert stat.S_IMODE(trained.path.stat().st_mode) == 0o600
    assert trained.pointer().version == 3


def test_an_exported_folder_holds_the_signed_word_of_where_it_came_from(run, trained, tmp_path):
    facts = said(run, "adapter", "export", "tiny", tmp_path / "out", "--version", 2)
    assert (facts["version"], facts["format"]) == (2, "peft")
    text = (tmp_path / "out" / "edge_sdk_manifest.json").read_bytes()
    manifest = open_signed(Manifest, decode_message(Signed, text), trained.registry.public_key())
    assert manifest == trained.manifest(2)


def test_a_version_is_exported_for_llama_cpp(run, tmp_path):
    gguf = pytest.importorskip("gguf")
    model = tmp_path / "model"
    _save_model(model)
    words = ["--rank", 4, "--rounds", 1, "--cohort-size", 1, "--target", "q_proj", "v_proj"]
    said(run, "task", "create", "demo", "--model", model, *words)
    facts = said(run, "adapter", "export", "demo", tmp_path / "demo.gguf", "--format", "gguf")
    assert (facts["file"], facts["version"]) == (str(tmp_path / "demo.gguf"), 0)
    reader = gguf.GGUFReader(tmp_path / "demo.gguf")
    assert len(reader.tensors) == 2 * 2 * 2
    assert reader.get_field("edge_sdk.task").contents() == "demo"


def test_a_classifier_is_not_exported_for_llama_cpp(run, trained, tmp_path):
    model = tmp_path / "model"
    _save_model(model)
    words = ["--format", "gguf", "--base", model]
    code, out, err = run("adapter", "export", "tiny", tmp_path / "out.gguf", *words)
    assert (code, out) == (1, "")
    assert "classifier head" in err
    assert not (tmp_path / "out.gguf").exists()


def _save_model(folder):
    """The files that a task is made from."""
    import safetensors.numpy

    config = {
        "model_type": "llama",
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 40,
    }
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    safetensors.numpy.save_file({"w": np.ones(3, np.float32)}, folder / "model.safetensors")
