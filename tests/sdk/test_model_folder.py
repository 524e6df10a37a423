"""Base models as files: found, read, fingerprinted."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from edge_sdk.errors import ModelError
from edge_sdk.model.model_folder import find_model, read_config, weights_digest


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def folder(tmp_path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "llama"}')
    (folder / "b.safetensors").write_bytes(b"second")
    (folder / "a.safetensors").write_bytes(b"first")
    return folder


def sha(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def test_a_folder_is_found_as_it_is(folder, monkeypatch):
    assert find_model(str(folder)) == folder
    monkeypatch.setenv("HOME", str(folder.parent))
    assert find_model("~/model") == folder


def test_a_hub_id_is_found_in_the_cache_without_a_network(monkeypatch, tmp_path):
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "hub" / "models--owner--name"
    snapshot = repository / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    assert find_model("owner/name") == snapshot
    assert find_model("owner/name", revision=commit) == snapshot


@pytest.mark.parametrize("name", ["", "no-such-folder", "/no/such/folder", "./x", "~/x", "a/b/c"])
def test_what_is_neither_a_folder_nor_a_hub_id_is_refused(name):
    with pytest.raises(ModelError, match="neither a model folder"):
        find_model(name)


def test_a_folder_without_configuration_is_refused(tmp_path):
    with pytest.raises(ModelError, match=r"one with a config\.json"):
        find_model(str(tmp_path))


def test_a_hub_id_that_is_not_in_the_cache_is_refused_offline():
    with pytest.raises(ModelError, match="'nobody/nothing' is neither in the local cache nor"):
        find_model("nobody/nothing")


@pytest.mark.parametrize("content", [None, b"", b"{", b"[1]", b"\xff\xfe"])
def test_a_configuration_that_cannot_be_read_is_refused_by_name(folder, content):
    path = folder / "config.json"
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ModelError, match=r"config\.json"):
        read_config(folder)


def test_the_digest_covers_the_content_of_every_weight_file_in_the_order_of_their_names(folder):
    expected = hashlib.sha256(sha(b"first") + sha(b"second")).hexdigest()
    assert weights_digest(folder) == expected
    (folder / "notes.txt").write_text("not weights")
    assert weights_digest(folder) == expected


@pytest.mark.parametrize("name", ["a.safetensors", "b.safetensors", "c.safetensors"])
def test_the_digest_changes_with_any_weight_file(folder, name):
    before = weights_digest(folder)
    (folder / name).write_bytes(b"other")
    assert weights_digest(folder) != before


def test_a_folder_of_pickled_weights_is_refused(folder):
    for path in folder.glob("*.safetensors"):
        path.rename(path.with_suffix(".bin"))
    with pytest.raises(ModelError, match="pickled weights are not loaded"):
        weights_digest(folder)


def test_a_file_is_read_once_and_again_after_it_changed(folder, own_cache):
    path = folder / "a.safetensors"
    before = weights_digest(folder)
    kept = os.stat(path)
    path.write_bytes(b"FIRST")  # the same size, and then the same time: taken from memory
    os.utime(path, ns=(kept.st_atime_ns, kept.st_mtime_ns))
    assert weights_digest(folder) == before
    os.utime(path, ns=(kept.st_atime_ns, kept.st_mtime_ns + 1))
    assert weights_digest(folder) != before
    assert any(own_cache.rglob("*"))


def test_a_damaged_memory_of_digests_is_not_believed(folder, own_cache):
    before = weights_digest(folder)
    for path in own_cache.rglob("*"):
        if path.is_file():
            path.write_text("short")
    assert weights_digest(folder) == before


def test_a_cache_that_cannot_be_written_is_no_error(folder, monkeypatch):
    expected = weights_digest(folder)
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/nowhere")
    assert weights_digest(folder) == expected
