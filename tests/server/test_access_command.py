"""The commands that say who may talk to the server, in this process."""

import json
import re
import time

import pytest

from edge_sdk.errors import Revoked, TokenExpired, TokenUsedUp
from server.access.admins import authenticate_admin
from server.access.credentials import Credentials
from server.cli import main
from tests.server.tasks import TTL_S, Site, TurnedClock
from tests.server.test_auth import access, enrol, new_key


@pytest.fixture
def run(tmp_path, capsys):
    """Run one command on a state folder; returns exit code, output and errors."""

    def run_one(*words):
        code = main([*map(str, words), "--state", str(tmp_path / "state")])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run_one


@pytest.fixture
def ask(run):
    """Run one command that must work, and return its JSON."""

    def ask_one(*words):
        code, out, err = run(*words, "--json")
        assert code == 0, err
        return json.loads(out)

    return ask_one


@pytest.fixture
def site(tmp_path):
    found = Site(tmp_path / "state", TurnedClock(time.time()))
    yield found
    found.store.close()


def test_each_token_is_new_and_lets_a_device_in(run, ask, site):
    plain = run("token", "create")[1].strip()
    machine = ask("token", "create")["enrolment_token"]
    assert plain != machine
    for token in (plain, machine):
        enrol(site, token)


def test_a_token_is_limited_as_asked_for_and_listed_without_its_secret(run, ask, site):
    made = ask("token", "create", "--uses", 1, "--expires", "7d", "--name", "lab")
    token = made["enrolment_token"]
    (listed,) = ask("token", "list")
    assert listed == {name: value for name, value in made.items() if name != "enrolment_token"}
    assert listed["expires_at"] - listed["created_at"] == 7 * 86_400
    enrol(site, token)
    with pytest.raises(TokenUsedUp):
        enrol(site, token)
    other = ask("token", "create", "--expires", "1h")["enrolment_token"]
    site.clock.now += 3610
    with pytest.raises(TokenExpired):
        enrol(site, other)
    table = run("token", "list")[1]
    assert re.search(rf"{made['id']} +lab .* 0 +used up", table)
    assert token not in table


def test_a_token_for_relays_says_so_wherever_it_is_seen(run, ask, site):
    made = ask("token", "create", "--relay-for", "16", "--name", "hospital")
    assert made["relay_for"] == 16
    device_id = enrol(site, made["enrolment_token"], new_key())
    assert [row["relay_for"] for row in ask("device", "list")] == [16]
    for words in (("token", "list"), ("device", "list")):
        assert re.search(r"relay\s*for", run(*words)[1])
    assert "a relay for 16 devices" in ask("audit")[-1]["subject"]
    assert device_id
    code, _, err = run("token", "create", "--relay-for", "0")
    assert (code, "relay_for=0" in err) == (1, True)


def test_a_token_is_revoked_by_its_id(run, ask, site):
    made = ask("token", "create")
    assert run("token", "revoke", made["id"])[0] == 0
    with pytest.raises(Revoked):
        enrol(site, made["enrolment_token"])
    assert "revoked" in run("token", "list")[1]
    code, _, err = run("token", "revoke", made["enrolment_token"])
    assert (code, err.startswith("edge-server: there is no enrolment token")) == (1, True)


@pytest.mark.parametrize("words", [("--uses", "0"), ("--expires", "soon"), ("--expires", "0s")])
def test_limits_that_cannot_be_are_one_line(run, words):
    code, out, err = run("token", "create", *words)
    assert (code, out, len(err.splitlines())) == (1, "", 1)


def test_devices_are_listed_and_revoked(run, ask, site):
    made = ask("token", "create")
    key = new_key()
    device_id = enrol(site, made["enrolment_token"], key).device_id
    (listed,) = ask("device", "list")
    assert (listed["id"], listed["enrolled_with"]) == (device_id, made["id"])
    assert device_id in run("device", "list")[1]
    token = access(site, device_id, key)
    assert ask("device", "revoke", device_id)["revoked_at"] is not None
    with pytest.raises(Revoked):
        site.gate.authenticate(token)
    assert run("device", "revoke", "nobody")[0] == 1


def test_an_admin_is_made_listed_and_revoked(run, ask, site):
    made = ask("admin", "create", "ann", "--role", "operate", "--expires", "1d")
    token = made["admin_token"]
    assert authenticate_admin(site.store, token, "operate", site.clock()).name == "ann"
    (listed,) = ask("admin", "list")
    assert (listed["name"], listed["role"], "token_hash" in listed) == ("ann", "operate", False)
    assert re.search(r"ann +operate .* good", run("admin", "list")[1])
    assert run("admin", "revoke", "ann")[0] == 0
    with pytest.raises(Revoked):
        authenticate_admin(site.store, token, "read", site.clock())
    assert run("admin", "create", "ann", "--role", "read")[0] == 1
    assert token not in run("admin", "list")[1]


def test_an_admin_without_a_role_is_wrong_usage(run):
    with pytest.raises(SystemExit) as ended:
        run("admin", "create", "ann")
    assert ended.value.code == 2


def test_rotation_lets_older_tokens_live_to_their_end_or_ends_them_now(ask, site):
    made = ask("token", "create")
    key = new_key()
    device_id = enrol(site, made["enrolment_token"], key).device_id
    token = access(site, device_id, key)
    assert ask("credentials", "rotate")["overlap_s"] > TTL_S
    fresh = Credentials(site.store, site.clock, TTL_S)
    assert fresh.read_access_token(token) == (device_id, 1)
    assert ask("credentials", "rotate", "--now") == {"number": 3, "overlap_s": 0.0}
    with site.store.read() as tx:
        ends = [row.valid_until for row in tx.access_keys()]
    assert ends[2] is None
    assert max(ends[:2]) <= site.clock() + 60


def test_the_log_says_who_changed_what_newest_first_and_no_secret(run, ask, site):
    made = ask("token", "create", "--name", "lab")
    admin = ask("admin", "create", "ann", "--role", "read")
    ask("token", "revoke", made["id"])
    ask("credentials", "rotate")
    rows = ask("audit")
    assert [row["action"] for row in rows] == [
        "credentials.rotate",
        "token.revoke",
        "admin.create",
        "token.create",
    ]
    assert all(row["who"].endswith("on this machine") for row in rows)
    assert [row["action"] for row in ask("audit", "--last", 1)] == ["credentials.rotate"]
    table = run("audit")[1]
    assert f"{made['id']} lab" in table
    for secret in (made["enrolment_token"], admin["admin_token"]):
        assert secret not in table
    assert run("audit", "--last", 0)[0] == 1
