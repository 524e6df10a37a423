"""The inference process answers line by line, swaps and stops meanwhile, and ends with its host."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from edge_sdk.inference import messages, open_session
from tests.sdk.inference_parts import save_adapter, save_model
from tests.sdk.parts import LABELS, classifier_spec

ROOT = Path(__file__).parent.parent.parent


class Host:
    """The host's side of the pipes."""

    def __init__(self, *options: object) -> None:
        command = [sys.executable, "-m", "edge_sdk.inference.process", "--threads", "1"]
        self.process = subprocess.Popen(
            [*command, *map(str, options)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=ROOT,
        )

    def send(self, request: object) -> None:
        content = request if isinstance(request, bytes) else msgspec.json.encode(request)
        self.process.stdin.write(content + b"\n")
        self.process.stdin.flush()

    def next(self) -> Any:
        return msgspec.json.decode(self.process.stdout.readline(), type=messages.Event)

    def until_done(self) -> tuple[str, str]:
        text = ""
        while isinstance(event := self.next(), messages.Text):
            text += event.text
        return text, event.reason

    def close(self) -> int:
        self.process.stdin.close()
        status = self.process.wait(30)
        self.process.stdout.close()
        return status


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def adapter(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_adapter(tmp_path_factory.mktemp("adapter"), base)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("exports")


@pytest.fixture
def host(base: Path, cache: Path) -> Iterator[Host]:
    found = Host("--model", base, "--cache", cache)
    assert found.next() == messages.Ready()
    yield found
    if found.process.poll() is None:
        found.process.kill()
        found.close()


def test_the_process_says_what_the_session_says(host, base, adapter, cache):
    session = open_session(base, threads=1, cache=cache)
    ask = messages.Generate(id="1", prompt="what is the", max_new_tokens=9)
    host.send(ask)
    assert host.until_done() == ("".join(session.generate("what is the", max_new_tokens=9)), "end")
    host.send(messages.Swap(id="2", adapter=str(adapter)))
    swapped = host.next()
    assert (swapped.id, swapped.seconds < 5) == ("2", True)
    session.swap(adapter)
    host.send(messages.Classify(id="3", text="what is", choices=[" red", " blue"]))
    scores = host.next()
    assert scores.scores == pytest.approx(session.classify("what is", [" red", " blue"]), abs=1e-5)
    assert host.close() == 0


def test_a_text_is_stopped_and_an_adapter_swapped_while_it_is_made(host, adapter):
    host.send(messages.Generate(id="long", prompt="red", max_new_tokens=120, temperature=3.0))
    host.send(messages.Generate(id="never", prompt="red", max_new_tokens=120))
    first = host.next()
    assert first.id == "long"
    host.send(messages.Swap(id="swap", adapter=str(adapter)))
    host.send(messages.Stop(id="never"))
    seen = [host.next()]
    while not (isinstance(seen[-1], messages.Done) and seen[-1].id == "never"):
        seen.append(host.next())
    done = {event.id: event.reason for event in seen if isinstance(event, messages.Done)}
    assert done == {"long": "end", "never": "stopped"}
    kinds = [type(event) for event in seen]
    assert kinds.index(messages.Swapped) < [x.id for x in seen].index("never")


def test_a_wrong_request_is_an_event_and_the_process_goes_on(host, tmp_path):
    for wrong, code in [
        (b"{", "malformed_message"),
        (b'{"do":"dance","id":"x"}', "malformed_message"),
        (messages.Swap(id="x", adapter=str(tmp_path)), "invalid_adapter"),
        (messages.Generate(id="x", prompt=""), "invalid_data"),
        (messages.Generate(id="x", prompt="red", top_p=2), "invalid_config"),
        (messages.Classify(id="x", text="red"), "invalid_config"),
    ]:
        host.send(wrong)
        failed = host.next()
        assert (type(failed), failed.code) == (messages.Failed, code)
    host.send(messages.Generate(id="1", prompt="red", max_new_tokens=2))
    assert host.until_done()[1] == "end"


def test_a_classifier_process_answers_with_its_labels(tiny_bert, tmp_path):
    adapter = save_adapter(tmp_path / "a", tiny_bert, 4, classifier_spec(), targets=None)
    host = Host("--model", tiny_bert, "--adapter", adapter, "--cache", tmp_path)
    assert host.next() == messages.Ready()
    host.send(messages.Classify(id="1", text="what is the city"))
    assert list(host.next().scores) == LABELS
    assert host.close() == 0


def test_the_process_ends_with_its_host_in_the_middle_of_a_text(host):
    host.send(messages.Generate(id="1", prompt="red", max_new_tokens=120, temperature=3.0))
    host.next()
    assert host.close() == 0


def test_a_model_that_cannot_be_opened_is_an_event(tmp_path):
    host = Host("--model", tmp_path)
    failed = host.next()
    assert (failed.id, failed.code) == ("", "invalid_model")
    assert host.close() == 1
