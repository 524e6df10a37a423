"""What a device accepts from a live server as its adapter, and what it refuses."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import sqlalchemy as sa

from edge_sdk.adoption.adapter_source import AdapterSource
from edge_sdk.cli import main
from edge_sdk.errors import (
    BadSignature,
    DigestMismatch,
    ForeignAdapter,
    RolledBack,
    UnknownKey,
)
from edge_sdk.identity.trust import load_trust
from edge_sdk.model.model_folder import weights_digest
from edge_sdk.network.enrolment import join
from edge_sdk.network.transport import Transport
from edge_sdk.wire.manifest import Manifest, Pointer, Signed, canonical, open_signed
from edge_sdk.wire.messages import decode_message
from edge_sdk.wire.task import BaseModel
from server.access.signing import make_key, replace_key
from server.storage import registry_tables, tables
from tests.contract.test_api import wait_for_state
from tests.server.registries import Signer
from tests.server.tasks import tiny_spec


def spoil(service, manifest: Manifest) -> None:
    """Change one bit of the last number of a stored adapter."""
    path = service.site.blobs.path(manifest.digest)
    body = bytearray(path.read_bytes())
    body[-4] ^= 1
    path.write_bytes(bytes(body))


class Phone:
    """A device that joined: its state, and where it gets adapters from."""

    def __init__(self, service, folder: Path) -> None:
        self.folder = folder
        identity = join(folder, service.url, service.token, "phone")
        self.id = identity.device_id
        self.server = identity.server
        self.transport = Transport(identity.server, identity, retries=0)
        self.task = self.transport.task("tiny")

    def fetch(self):
        return AdapterSource(self.transport, self.folder, self.server, self.id).fetch(self.task)


@pytest.fixture
def phone(service, tmp_path) -> Phone:
    return Phone(service, tmp_path / "phone")


@pytest.fixture
def signer(service) -> Signer:
    """The operator's commands on the same state."""
    return Signer(service.site)


@pytest.fixture
def trained(service):
    """Versions 0 and 1."""
    for name in ("a", "b"):
        assert service.device(name).train(service.spec).status_code == 200
    wait_for_state(service.device("c"), "closed")


def change(service, statement) -> None:
    """Change the database behind the server's back."""
    with service.site.store._engine.begin() as connection:
        connection.execute(statement)


def test_the_newest_version_comes_checked_and_whole(service, trained, phone, signer):
    found = phone.fetch()
    assert found.manifest == signer.manifest(1)
    assert found.manifest.base_digest == phone.task.base.digest
    key = load_trust(phone.folder, phone.server).signing_key
    assert open_signed(Manifest, found.signed, key) == found.manifest
    master = service.site.master(service.spec, 1)
    assert found.arrays.keys() == master.keys()
    assert all((found.arrays[name] == master[name]).all() for name in master)


def test_the_key_is_pinned_when_the_device_joins_and_kept_when_it_joins_again(
    service, phone, signer
):
    pinned = load_trust(phone.folder, phone.server).signing_key
    assert pinned == signer.registry.public_key()
    signer.keys.rotate("ada")
    (phone.folder / "device.json").unlink()
    join(phone.folder, service.url, service.token, "phone")
    assert load_trust(phone.folder, phone.server).signing_key == pinned


def test_a_change_of_keys_is_followed_once_and_the_old_key_is_worth_nothing_after(
    service, trained, phone, signer
):
    old = signer.registry.pointer("tiny")
    for _ in range(2):
        signer.keys.rotate("ada")
    assert phone.fetch().manifest.version == 1
    trust = load_trust(phone.folder, phone.server)
    assert trust.signing_key == signer.registry.public_key()
    text = canonical(old).decode()
    change(service, sa.update(registry_tables.pointers).values(signed=text))
    with pytest.raises(UnknownKey):
        phone.fetch()


def test_a_server_with_another_key_is_refused(service, trained, phone, signer):
    phone.fetch()
    replace_key(signer.path, make_key())
    for table in ("manifests", "pointers", "signing_keys"):
        change(service, sa.delete(getattr(registry_tables, table)))
    signer.registry.prepare()
    with pytest.raises(UnknownKey, match="trusted"):
        phone.fetch()


@pytest.mark.parametrize("table", ["manifests", "pointers"])
def test_what_was_changed_in_the_database_is_refused(service, trained, phone, signer, table):
    signer.registry.catch_up("tiny")
    read = signer.registry.manifest if table == "manifests" else signer.registry.pointer
    signed = read("tiny", 1) if table == "manifests" else read("tiny")
    forged = replace(signed, payload=signed.payload.replace('"version":1', '"version":0'))
    assert forged != signed
    column = getattr(registry_tables, table)
    change(service, sa.update(column).values(signed=canonical(forged).decode()))
    with pytest.raises(BadSignature):
        phone.fetch()


def test_an_older_pointer_than_the_last_one_is_refused(service, trained, phone, signer):
    """As after a restore from a backup, or when somebody replays what was true once."""
    signer.registry.hold("tiny", 0, "ada")
    last = signer.registry.hold("tiny", 1, "ada").sequence
    assert phone.fetch().manifest.version == 1
    table = registry_tables.pointers
    change(service, sa.delete(table).where(table.c.sequence == last))
    with pytest.raises(RolledBack, match=f"seen sequence {last}"):
        phone.fetch()


def test_a_roll_back_by_the_operator_is_accepted(trained, phone, signer):
    assert phone.fetch().manifest.version == 1
    signer.registry.hold("tiny", 0, "ada")
    assert phone.fetch().manifest.version == 0


def test_the_adapter_of_another_task_is_refused(service, trained, phone, signer):
    service.site.add_task(tiny_spec("other"))
    text = canonical(signer.registry.pointer("other")).decode()
    here = registry_tables.pointers.c.task == "tiny"
    signer.registry.catch_up("tiny")
    change(service, sa.update(registry_tables.pointers).where(here).values(signed=text))
    with pytest.raises(ForeignAdapter, match="'other'"):
        phone.fetch()


def test_the_manifest_of_another_version_is_refused(service, trained, phone, signer):
    text = canonical(signer.registry.manifest("tiny", 0)).decode()
    change(service, sa.update(registry_tables.manifests).values(signed=text))
    with pytest.raises(ForeignAdapter, match="version 0"):
        phone.fetch()


@pytest.mark.parametrize("what", ["base", "rank", "scaling"])
def test_an_adapter_of_another_base_or_rank_is_refused(trained, phone, what):
    """The task a device is shown is not signed; what it is used with must fit the manifest."""
    task = phone.task
    if what == "base":
        phone.task = replace(task, base=BaseModel(model="other", digest="ef" * 32))
    elif what == "rank":
        policy = replace(task.policy, sketch_sizes=[1])
        phone.task = replace(task, adapter=replace(task.adapter, r=4), policy=policy)
    else:
        phone.task = replace(task, adapter=replace(task.adapter, lora_alpha=1.0))
    with pytest.raises(ForeignAdapter):
        phone.fetch()


def test_tensors_that_were_exchanged_on_the_server_are_refused(service, trained, phone, signer):
    old, table = signer.manifest(0), tables.adapters
    swap = sa.update(table).where(table.c.version == 1)
    change(service, swap.values(digest=old.digest, size_bytes=old.size_bytes))
    with pytest.raises(DigestMismatch, match="manifest"):
        phone.fetch()


def test_devices_of_the_canary_get_its_version_and_the_others_do_not(
    service, trained, signer, tmp_path
):
    signer.registry.hold("tiny", 0, "ada")
    signer.registry.start_canary("tiny", 1, 0.5, "ada")
    pointer = signer.pointer()
    phones = [Phone(service, tmp_path / f"phone-{i}") for i in range(8)]
    for phone in phones:
        assert phone.fetch().manifest.version == (1 if pointer.has_in_canary(phone.id) else 0)
    signer.registry.roll_back("tiny", "ada")
    assert {phone.fetch().manifest.version for phone in phones} == {0}


def test_a_device_without_a_pinned_key_pulls_nothing(trained, phone):
    (phone.folder / "trust.json").unlink()
    with pytest.raises(UnknownKey, match="join the server again"):
        phone.fetch()


def test_statements_need_a_device_token_and_an_existing_version(service, device):
    import requests

    paths = (
        "/v1/keys",
        "/v1/tasks/tiny/channels/stable",
        "/v1/tasks/tiny/adapters/0/manifest",
    )
    for path in paths:
        assert requests.get(service.url + path, timeout=10).status_code == 401
        assert device.call("GET", path).status_code == 200
    for path in ("/v1/tasks/none/channels/stable", "/v1/tasks/tiny/adapters/7/manifest"):
        answer = device.call("GET", path)
        assert (answer.status_code, answer.json()["code"]) == (404, "not_found")


def test_the_statements_are_those_of_the_documents(device, signer):
    key = signer.registry.public_key()
    answer = device.call("GET", "/v1/tasks/tiny/channels/stable")
    pointer = open_signed(Pointer, decode_message(Signed, answer.content), key)
    assert (pointer.task, pointer.version, pointer.sequence) == ("tiny", 0, 1)
    assert device.call("GET", "/v1/keys").json() == []


@pytest.fixture
def model(tmp_path, monkeypatch):
    """A model folder with the files that a device checks."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
    safetensors.numpy.save_file({"w": np.ones(3, np.float32)}, folder / "model.safetensors")
    return folder


def test_pull_writes_a_checked_folder_and_nothing_after_a_refusal(
    service, model, tmp_path, capsys, signer
):
    base = BaseModel(model=str(model), digest=weights_digest(model))
    spec = service.site.add_task(replace(tiny_spec("pulled"), base=base))
    join(tmp_path / "phone", service.url, service.token, "phone")
    flags = ["--task", "pulled", "--state", str(tmp_path / "phone"), "--json"]
    assert main(["pull", str(tmp_path / "out"), *flags]) == 0
    assert json.loads(capsys.readouterr().out)["version"] == 0
    signed = decode_message(Signed, (tmp_path / "out" / "edge_sdk_manifest.json").read_bytes())
    key = load_trust(tmp_path / "phone", service.url).signing_key
    assert open_signed(Manifest, signed, key) == signer.manifest(0, spec.name)
    spoil(service, signer.manifest(0, spec.name))
    assert main(["pull", str(tmp_path / "again"), *flags]) == 1
    assert capsys.readouterr().err.startswith("edge-sdk: ")
    assert not (tmp_path / "again").exists()
