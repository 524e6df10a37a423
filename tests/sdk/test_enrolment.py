"""Joining once, also when the answer is lost, and changing the key, on a live server."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from edge_sdk.cli import main
from edge_sdk.errors import BadProof, ConfigError, NotAuthorized, ServerUnreachable
from edge_sdk.identity.identity import load_identity, load_joining, save_identity
from edge_sdk.network.enrolment import change_key, join
from edge_sdk.network.http_link import HttpLink
from edge_sdk.network.transport import Transport
from server.access.auth import make_enrolment_token
from server.settings.settings import Settings
from tests.contract.live import live_server
from tests.server.tasks import Site


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    found = Site(tmp_path_factory.mktemp("server"))
    yield found
    found.store.close()


@pytest.fixture(scope="module")
def server(site):
    with live_server(Settings(state=site.settings.state)) as url:
        yield url


@pytest.fixture
def token(site):
    return make_enrolment_token(site.store, 0.0, uses=1)


def lose_the_answer(monkeypatch, name):
    """The server does what it is asked, and the device never hears of it."""
    real = getattr(Transport, name)

    def call(*arguments):
        real(*arguments)
        raise ServerUnreachable("the answer was lost")

    monkeypatch.setattr(Transport, name, call)


def names(site):
    with site.store.read() as tx:
        return [row.name for row in tx.devices()]


def test_a_device_joins_once_and_keeps_its_identity(server, token, tmp_path):
    identity = join(tmp_path, server, token, "once")
    assert join(tmp_path, server, None, "once") == identity
    assert join(tmp_path, None, None, "once") == identity
    assert Transport(server, identity).tasks() == []


def test_the_private_key_never_leaves_the_device(server, token, tmp_path, monkeypatch):
    sent = []
    send = HttpLink.exchange
    monkeypatch.setattr(
        HttpLink, "exchange", lambda self, *what: (sent.append(what), send(self, *what))[1]
    )
    identity = join(tmp_path, server, token, "private")
    Transport(server, identity).tasks()
    change_key(tmp_path)
    changed = load_identity(tmp_path)
    assert len(sent) == 6, "enrolment; challenge, token, tasks; challenge, key"
    for private_key in (identity.private_key, changed.private_key):
        assert private_key not in repr(sent)


def test_a_device_whose_answer_was_lost_joins_again_as_the_same_device(
    site, server, token, tmp_path, monkeypatch
):
    with monkeypatch.context() as lost:
        lose_the_answer(lost, "enrol")
        with pytest.raises(ServerUnreachable):
            join(tmp_path, server, token, "lost")
    assert load_identity(tmp_path) is None
    identity = join(tmp_path, server, token, "lost")
    assert names(site).count("lost") == 1
    assert load_joining(tmp_path) is None
    assert Transport(server, identity).tasks() == []


def test_a_device_that_is_refused_can_join_with_another_token(server, token, tmp_path):
    with pytest.raises(NotAuthorized):
        join(tmp_path, server, "guess", "late")
    assert join(tmp_path, server, token, "late").device_id


@pytest.mark.parametrize("is_answered", [True, False])
def test_another_server_gets_another_key(server, token, tmp_path, monkeypatch, is_answered):
    if is_answered:
        first = join(tmp_path, server, token, "two servers")
    else:
        with monkeypatch.context() as lost:
            lose_the_answer(lost, "enrol")
            with pytest.raises(ServerUnreachable):
                join(tmp_path, server, token, "two servers")
        first = load_joining(tmp_path)
    other = Site(tmp_path / "other")
    with live_server(Settings(state=other.settings.state)) as url:
        second = join(tmp_path, url, make_enrolment_token(other.store, 0.0), "two servers")
    other.store.close()
    assert first.private_key != second.private_key


def test_a_device_without_a_server_or_token_says_what_it_needs(tmp_path):
    for server, token in ((None, None), ("http://127.0.0.1:1", None), (None, "t")):
        with pytest.raises(ConfigError, match="enrolment token"):
            join(tmp_path, server, token, "a")
    with pytest.raises(ConfigError, match="not joined"):
        change_key(tmp_path)


def test_a_new_key_replaces_the_old_one(server, token, tmp_path):
    before = join(tmp_path, server, token, "new key")
    after = change_key(tmp_path)
    assert load_identity(tmp_path) == after
    assert (after.device_id, after.next_private_key) == (before.device_id, "")
    assert Transport(server, after).tasks() == []
    with pytest.raises(BadProof):
        Transport(server, before).tasks()


def test_a_key_change_whose_answer_was_lost_locks_nobody_out(server, token, tmp_path, monkeypatch):
    join(tmp_path, server, token, "locked out")
    with monkeypatch.context() as lost:
        lose_the_answer(lost, "change_key")
        with pytest.raises(ServerUnreachable):
            change_key(tmp_path)
    between = load_identity(tmp_path)
    assert between.next_private_key
    assert Transport(server, between).tasks() == [], "it goes on with the key that took over"
    after = change_key(tmp_path)
    assert after.private_key == between.next_private_key
    assert Transport(server, after).tasks() == []


def test_a_key_change_that_never_reached_the_server_is_done_the_next_time(server, token, tmp_path):
    identity = join(tmp_path, server, token, "unreached")
    save_identity(tmp_path, replace(identity, server="http://127.0.0.1:1"))
    with pytest.raises(ServerUnreachable):
        change_key(tmp_path)
    waiting = load_identity(tmp_path)
    save_identity(tmp_path, replace(waiting, server=server))
    assert Transport(server, load_identity(tmp_path)).tasks() == [], "the old key goes on"
    assert change_key(tmp_path).private_key == waiting.next_private_key


def test_the_command_changes_the_key(server, token, tmp_path, capsys):
    before = join(tmp_path, server, token, "by command")
    assert main(["change-key", "--state", str(tmp_path), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts == {"server": server, "device_id": before.device_id}
    assert load_identity(tmp_path).private_key != before.private_key
