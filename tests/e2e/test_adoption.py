"""A device that uses what it learned: versions of a live server, judged on examples held out."""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest
import requests

from edge_sdk.adoption.adoption import Adoption
from edge_sdk.adoption.kept_adapters import KeptAdapters
from edge_sdk.cli import main
from edge_sdk.errors import AdapterError, NotFeasible, ServerUnreachable
from edge_sdk.model.model_folder import weights_digest
from edge_sdk.model.peft_folder import read_peft_tensors
from edge_sdk.planning.allowance import Allowance
from edge_sdk.rounds.round_loop import RoundLoop
from edge_sdk.training import local_trainer
from edge_sdk.training.local_steps import train_round
from edge_sdk.training.participation import Participation
from edge_sdk.wire import payload
from edge_sdk.wire.messages import CheckIn, UpdateReport, encode_message
from edge_sdk.wire.task import BaseModel, RoundPolicy, TaskSpec, TrainingSpec
from server.access.auth import make_enrolment_token
from server.settings.settings import Settings
from tests.contract.live import live_server
from tests.sdk.parts import adapter_spec
from tests.server.registries import Signer
from tests.server.tasks import Site, wait_until
from tests.tiny_model import write_jsonl

R = 8
ROUNDS = 3
ANSWERS = {"what": "one", "who": "two", "where": "three", "when": "four", "why": "five"}
WORDS = ["city", "country", "person", "number", "answer", "question", "yes", "no", "red", "green"]
LINKS = ["is the", "was a"]


@dataclass
class World:
    """A server with one task, whose operator publishes what a test wants."""

    site: Site
    url: str
    token: str
    task: TaskSpec
    signer: Signer

    def publish(self, update: payload.Arrays) -> int:
        """Close a round whose only update is this one; return the version it made."""
        check_in = CheckIn(base_digest=self.task.base.digest, affordable_k=R, examples=5)
        number = self.site.coordinator.check_in("other", "words", check_in).round_number
        report = UpdateReport(examples=5, loss=1.0, seconds=0.1, peak_rss_bytes=1)
        body = payload.encode(update, "fp32", encode_message(report))
        self.site.submit("other", "words", number, body)
        self.site.advance()
        wait_until(lambda: self._latest() == number)
        return number

    def evaluations(self):
        with self.site.store.read() as tx:
            return {row.version: row for row in tx.evaluations("words")}

    def _latest(self) -> int:
        with self.site.store.read() as tx:
            return tx.last_adapter("words").version


@pytest.fixture
def world(tmp_path, tiny_llama) -> Iterator[World]:
    base = BaseModel(model=str(tiny_llama), digest=weights_digest(tiny_llama))
    task = TaskSpec(
        name="words",
        base=base,
        adapter=adapter_spec(tiny_llama, base, r=R),
        training=TrainingSpec(local_steps=6, local_lr=0.02, max_length=16),
        policy=RoundPolicy(rounds=ROUNDS, cohort_size=2, quorum=1, sketch_sizes=[2, R]),
    )
    site = Site(tmp_path / "server")
    site.clock.now = time.time()
    site.add_task(task)
    site.add_device("other")
    with live_server(Settings(state=site.settings.state, tick_s=0.05, poll_s=0.1)) as url:
        token = make_enrolment_token(site.store, 0.0)
        yield World(site, url, token, task, Signer(site))
    site.store.close()


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    records = [
        {"prompt": f"{ask} {link} {word} ?", "completion": f" {answer}"}
        for (ask, answer), link, word in itertools.product(ANSWERS.items(), LINKS, WORDS)
    ]
    return write_jsonl(tmp_path_factory.mktemp("data") / "data.jsonl", records)


@dataclass
class Phone:
    """A device of the world, taken apart so that a test decides when it looks."""

    loop: RoundLoop
    part: Participation
    adoption: Adoption
    kept: KeptAdapters

    @property
    def version(self) -> int | None:
        current = self.kept.record.current
        return None if current is None else current.version

    def good_update(self, seed: int = 1, steps: int = 16) -> payload.Arrays:
        """What honest training on this device's examples makes of the adapter in use."""
        start = self.kept.in_use()
        spec = self.part.task.adapter
        before = start[1] if start else self.adoption._source.fetch(self.part.task).arrays
        training = replace(self.part.task.training, local_steps=steps)
        trainer = self.part.trainer
        trainer.prepare(self.part.plan)
        return train_round(trainer._base, spec, R, before, training, trainer.examples, seed).update

    def sabotage(self) -> payload.Arrays:
        """An update after which the adapter does the opposite of what was learned, twice over."""
        start = self.kept.in_use()
        if start is None:
            good = self.good_update()
            return {name: x if name.endswith("lora_A") else -2 * x for name, x in good.items()}
        return {name: 0 * x if name.endswith("lora_A") else -3 * x for name, x in start[1].items()}


@pytest.fixture
def make_phone(world, data, tmp_path):
    def make(name: str = "phone", **more) -> Phone:
        options = {"gate": True, "held_out_share": 0.15} | more
        loop = RoundLoop(
            data=data,
            server=world.url,
            enrolment_token=world.token,
            state_folder=tmp_path / name,
            allowance=Allowance(quantization="fp32", threads=1),
            **options,
        )
        task = loop.membership.task
        part = loop._take_part(task, data)
        return Phone(loop, part, loop._adoption(part), loop.membership.kept)

    return make


@pytest.fixture
def phone(make_phone) -> Phone:
    return make_phone()


def check_same(found, expected):
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array)


def test_a_better_version_is_used_and_a_sabotaged_one_is_not(world, phone, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    world.publish(phone.good_update())
    phone.adoption.look()
    assert phone.version == 1
    assert "version 1 is in use: loss" in caplog.text
    good = phone.kept.in_use()[1]

    world.publish(phone.sabotage())
    phone.adoption.look()
    assert (phone.version, phone.kept.record.judged) == (1, 2)
    assert "version 2 is not used, it loses" in caplog.text
    check_same(phone.kept.in_use()[1], good)

    found = world.evaluations()
    assert (found[1].accepted, found[2].accepted) == (1, 0)
    assert found[1].loss_after < found[1].loss_before < found[2].loss_after
    assert found[1].examples == len(phone.part.trainer.held_out)

    assert phone.loop.membership.pull(tmp_path / "out") == 1
    check_same(read_peft_tensors(tmp_path / "out"), good)


def test_a_sabotaged_first_version_leaves_the_base_alone(world, phone, tmp_path):
    world.publish(phone.sabotage())
    phone.adoption.look()
    assert phone.version is None
    assert phone.kept.in_use() is None
    with pytest.raises(AdapterError, match="base model alone"):
        phone.loop.membership.pull(tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert phone.loop.membership.pull_or_base(tmp_path / "out") == 0
    assert not any(array.any() for array in read_peft_tensors(tmp_path / "out").values())


def test_an_equal_version_is_used(world, phone):
    world.publish(phone.good_update())
    phone.adoption.look()
    world.publish({name: 0 * array for name, array in phone.good_update(steps=1).items()})
    phone.adoption.look()
    assert phone.version == 2
    assert world.evaluations()[2].accepted == 1


def test_a_version_is_fetched_judged_and_told_of_once(world, phone):
    world.publish(phone.good_update())
    transport = phone.loop.membership.transport
    phone.adoption.look()
    sent, received = transport.uploaded_bytes, transport.downloaded_bytes
    phone.adoption.look()
    assert transport.uploaded_bytes == sent
    assert transport.downloaded_bytes - received < 1000, "the pointer alone"


def test_a_device_follows_the_operator_back_without_a_trial(world, phone):
    """The operator may know what no loss shows."""
    for seed in (1, 2):
        world.publish(phone.good_update(seed))
        phone.adoption.look()
    assert phone.version == 2
    world.signer.registry.hold("words", 1, "ada")
    phone.adoption.look()
    assert phone.version == 1
    world.signer.registry.hold("words", 0, "ada")
    phone.adoption.look()
    assert phone.version == 0


def test_without_held_out_examples_versions_are_used_untried_and_nothing_is_told(
    world, make_phone, caplog
):
    phone = make_phone(held_out_share=0.01)
    assert "too few examples to hold some out" in caplog.text
    world.publish(phone.good_update())
    phone.adoption.look()
    assert phone.version == 1
    assert world.evaluations() == {}


def test_a_server_that_does_not_take_the_report_or_is_gone_stops_nothing(
    world, phone, caplog, monkeypatch
):
    world.publish(phone.good_update())

    def refuse(*_):
        raise ServerUnreachable("no answer")

    monkeypatch.setattr(phone.adoption, "_report", refuse)
    phone.adoption.look()
    assert phone.version == 1
    assert "the server was not told" in caplog.text
    monkeypatch.setattr(phone.adoption._source, "version", refuse)
    phone.adoption.look()
    assert "the adapter in use stays: no answer" in caplog.text


def test_a_version_that_was_tampered_with_is_not_used(world, phone, caplog):
    world.publish(phone.good_update())
    phone.adoption.look()
    world.publish(phone.good_update(seed=2))
    with world.site.store.read() as tx:
        path = world.site.blobs.path(tx.adapter("words", 2).digest)
    body = bytearray(path.read_bytes())
    body[-4] ^= 1
    path.write_bytes(bytes(body))
    phone.adoption.look()
    assert phone.version == 1
    assert "the adapter in use stays" in caplog.text


def test_held_out_examples_never_reach_training(world, make_phone, monkeypatch):
    trained = []

    def noting(*args, **more):
        trained.extend(args[5])
        return train_round(*args, **more)

    monkeypatch.setattr(local_trainer, "train_round", noting)
    phone = make_phone(personal=True)
    held_out = phone.part.trainer.held_out
    assert len(held_out) >= 8
    next(phone.loop.rounds())
    world.publish(phone.good_update())
    phone.adoption.look()
    assert phone.kept.record.personal is not None
    assert len(trained) >= 2 * len(phone.part.trainer.examples), "in a round, and for itself"
    assert not [example for example in trained if example in held_out]


def test_the_personal_adapter_is_trained_once_for_each_accepted_version(world, make_phone):
    phone = make_phone(personal=True)
    world.publish(phone.good_update())
    phone.adoption.look()
    first = phone.kept.record.personal
    assert (first.version, phone.kept.record.uses_personal) == (1, True)
    phone.adoption.look()
    assert phone.kept.record.personal == first
    world.publish(phone.sabotage())
    phone.adoption.look()
    assert phone.kept.record.personal == first, "nothing is pulled towards a version that lost"
    world.signer.registry.roll_back("words", "ada")
    assert phone.kept.in_use()[0] == first


def test_the_personal_adapter_fits_the_device_better_than_the_global_one(world, make_phone):
    phone = make_phone(personal=True)
    world.publish(phone.good_update(steps=5))
    phone.adoption.look()
    trainer, plan, kept = phone.part.trainer, phone.part.plan, phone.kept
    losses = [
        np.mean([score.loss for score in trainer.scores(plan, kept.read(x), trainer.held_out)])
        for x in (kept.record.current, kept.record.personal)
    ]
    assert losses[1] < losses[0]


def test_nothing_personal_is_in_any_request(world, make_phone, monkeypatch):
    """All that leaves the device is recorded where it leaves."""
    sent = []
    ask = requests.Session.request

    def recording(session, method, url, **more):
        body = more["data"].getvalue() if more.get("data") is not None else b""
        sent.append((method, urlsplit(url).path, body))
        return ask(session, method, url, **more)

    monkeypatch.setattr(requests.Session, "request", recording)
    phone = make_phone(personal=True)
    world.publish(phone.good_update())
    phone.adoption.look()
    next(phone.loop.rounds())
    world.publish(phone.good_update(seed=2))
    phone.adoption.look()
    personal = phone.kept.read(phone.kept.record.personal)
    assert phone.kept.record.uses_personal
    bodies = b"".join(body for _, _, body in sent)
    for name, array in personal.items():
        for row in array:
            assert row.tobytes() not in bodies, name
            assert row.astype("float16").tobytes() not in bodies, name
    with_body = {path.rpartition("/")[2] for _, path, body in sent if body}
    assert with_body == {"enrol", "token", "check-in", "update", "evaluations"}


def test_a_damaged_personal_adapter_is_set_aside_and_made_anew(world, make_phone, tmp_path, caplog):
    phone = make_phone(personal=True)
    world.publish(phone.good_update())
    phone.adoption.look()
    own = phone.kept.record.personal
    path = tmp_path / "phone" / "adapters" / "words" / f"{own.digest}.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    again = make_phone(personal=True)
    again.adoption.look()
    assert "set aside" in caplog.text
    assert path.with_name("damaged.safetensors").exists()
    assert again.kept.record.personal.version == 1
    assert again.kept.record.uses_personal
    again.kept.read(again.kept.record.personal)


def test_a_device_that_cannot_afford_all_ranks_uses_the_global_adapter(
    world, make_phone, monkeypatch, caplog
):
    def refuse(*_):
        raise NotFeasible("not even k = 8 fits")

    phone = make_phone(personal=True)
    monkeypatch.setattr("edge_sdk.training.participation.make_plan", refuse)
    world.publish(phone.good_update())
    phone.adoption.look()
    assert phone.version == 1
    assert phone.kept.record.personal is None
    assert "the global one alone is used: not even k = 8 fits" in caplog.text


def test_taking_part_ends_with_the_last_version_in_use(world, data, tmp_path, capsys):
    """The whole way by the command line: rounds, gate, personal adapter, pull."""
    words = ["run", "--now", "--data", str(data), "--json"]
    words += ["--server", world.url, "--token", world.token]
    state = ["--state", str(tmp_path / "state")]
    short = [*words, *state, "--quantization", "fp32", "--threads", "1", "--personal"]
    assert main(short) == 0
    assert len(capsys.readouterr().out.splitlines()) == ROUNDS
    assert main(["pull", str(tmp_path / "out"), *state]) == 0
    kept = KeptAdapters(tmp_path / "state", world.url, world.task)
    assert kept.record.judged == ROUNDS
    assert sum(row.devices for row in world.evaluations().values()) >= 2
    assert kept.record.personal is not None
    check_same(read_peft_tensors(tmp_path / "out"), kept.in_use()[1])
