"""What a device keeps of adapters survives restarts, damage and power loss, in bounded space."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edge_sdk.adoption import kept_adapters
from edge_sdk.adoption.kept_adapters import KeptAdapters
from edge_sdk.errors import AdapterError, StorageError
from edge_sdk.wire.manifest import Signed
from tests.server.tasks import random_arrays, tiny_spec

SPEC = tiny_spec()
SERVER = "http://127.0.0.1:8765"
SIGNED = Signed(payload="{}", key_id="0" * 16, signature="1" * 128)


@pytest.fixture
def kept(tmp_path) -> KeptAdapters:
    return KeptAdapters(tmp_path, SERVER, SPEC)


def arrays(seed: int):
    return random_arrays(SPEC.adapter, 8, seed)


def folder(tmp_path: Path) -> Path:
    return tmp_path / "adapters" / "tiny"


def tensor_files(tmp_path: Path) -> list[Path]:
    return sorted(folder(tmp_path).glob("*.safetensors"))


def check_same(found, expected):
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array)


def test_nothing_is_in_use_before_the_first_version(kept):
    assert kept.in_use() is None
    assert not kept.is_there


def test_an_accepted_version_is_in_use_also_after_a_restart(kept, tmp_path):
    kept.accept(3, arrays(3), SIGNED)
    found, tensors = KeptAdapters(tmp_path, f"{SERVER}", SPEC).in_use()
    assert (found.version, found.signed) == (3, SIGNED)
    check_same(tensors, arrays(3))


def test_a_version_that_lost_is_remembered_and_the_one_in_use_stays(kept):
    kept.accept(3, arrays(3), SIGNED)
    kept.reject(4)
    assert (kept.record.judged, kept.in_use()[0].version) == (4, 3)


def test_a_device_that_turned_down_all_versions_uses_none(kept):
    kept.reject(1)
    assert kept.in_use() is None
    assert kept.is_there


def test_the_space_is_bounded_to_the_one_in_use_the_one_before_and_its_own(kept, tmp_path):
    for version in range(1, 6):
        kept.accept(version, arrays(version), SIGNED)
        kept.keep_personal(version, arrays(100 + version), is_used=True)
    assert len(tensor_files(tmp_path)) == 3
    assert (kept.record.current.version, kept.record.previous.version) == (5, 4)
    check_same(kept.in_use()[1], arrays(105))


def test_a_new_global_version_is_used_until_the_personal_one_was_tried_beside_it(kept):
    kept.accept(1, arrays(1), SIGNED)
    kept.keep_personal(1, arrays(101), is_used=True)
    kept.accept(2, arrays(2), SIGNED)
    check_same(kept.in_use()[1], arrays(2))
    check_same(kept.read(kept.record.personal), arrays(101))


def test_a_personal_adapter_keeps_every_bit_where_bf16_travels(tmp_path):
    kept = KeptAdapters(tmp_path, SERVER, tiny_spec(wire_dtype="bf16"))
    kept.keep_personal(1, arrays(1), is_used=False)
    check_same(kept.read(kept.record.personal), arrays(1))


@pytest.mark.parametrize(
    ("server", "changes"),
    [
        ("http://elsewhere", {}),
        (SERVER, {"base": replace(SPEC.base, digest="cd" * 32)}),
        (SERVER, {"adapter": replace(SPEC.adapter, lora_alpha=1.0)}),
    ],
)
def test_adapters_of_another_server_base_or_spec_are_not_used(kept, tmp_path, server, changes):
    kept.accept(1, arrays(1), SIGNED)
    other = KeptAdapters(tmp_path, server, replace(SPEC, **changes))
    assert other.in_use() is None
    assert not other.is_there


@pytest.mark.parametrize("damage", ["cut", "changed", "gone"])
def test_a_damaged_personal_adapter_gives_way_to_the_global_one(kept, tmp_path, damage):
    kept.accept(1, arrays(1), SIGNED)
    kept.keep_personal(1, arrays(101), is_used=True)
    own = kept.record.personal
    path = folder(tmp_path) / f"{own.digest}.safetensors"
    body = path.read_bytes()
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(body[:-9] if damage == "cut" else body[:-1] + bytes([body[-1] ^ 1]))
    with pytest.raises(AdapterError):
        kept.read(own)
    check_same(kept.in_use()[1], arrays(1))
    kept.drop(own)
    assert kept.record.personal is None
    assert (folder(tmp_path) / "damaged.safetensors").exists() is (damage != "gone")


def test_a_damaged_version_in_use_gives_way_to_the_one_before_and_is_asked_for_again(
    kept, tmp_path
):
    kept.accept(1, arrays(1), SIGNED)
    kept.accept(2, arrays(2), SIGNED)
    damaged = kept.record.current
    (folder(tmp_path) / f"{damaged.digest}.safetensors").write_bytes(b"")
    check_same(kept.in_use()[1], arrays(1))
    kept.drop(damaged)
    assert (kept.record.current.version, kept.record.judged) == (1, None)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b'{"server": 3}', b"[]"])
def test_a_damaged_record_is_set_aside_and_a_new_one_begins(kept, tmp_path, content):
    kept.accept(1, arrays(1), SIGNED)
    (folder(tmp_path) / "adapters.json").write_bytes(content)
    assert kept.in_use() is None
    kept.mend()
    assert (folder(tmp_path) / "damaged.json").read_bytes() == content
    kept.accept(2, arrays(2), SIGNED)
    assert kept.in_use()[0].version == 2
    assert len(tensor_files(tmp_path)) == 1, "what the lost record named is removed"


def test_power_loss_between_tensors_and_record_leaves_what_was_there(kept, tmp_path, monkeypatch):
    kept.accept(1, arrays(1), SIGNED)
    whole = kept_adapters.write_whole

    def fail_at_the_record(path, content):
        if path.suffix == ".json":
            raise OSError("power is gone")
        whole(path, content)

    monkeypatch.setattr(kept_adapters, "write_whole", fail_at_the_record)
    with pytest.raises(StorageError):
        kept.accept(2, arrays(2), SIGNED)
    monkeypatch.undo()
    check_same(kept.in_use()[1], arrays(1))
    kept.accept(3, arrays(3), SIGNED)
    assert len(tensor_files(tmp_path)) == 2, "what was half done is removed"


def test_only_the_owner_can_read_what_is_kept(kept, tmp_path):
    kept.keep_personal(1, arrays(1), is_used=True)
    for path in folder(tmp_path).iterdir():
        assert path.stat().st_mode & 0o077 == 0
