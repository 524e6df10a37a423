"""``edge-sdk doctor`` on devices with real faults."""

from __future__ import annotations

import http.server
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from email.utils import formatdate
from pathlib import Path

import pytest

from edge_sdk.agent.only_one import OnlyOne
from edge_sdk.cli import main
from edge_sdk.commands import doctor as doctor_command
from edge_sdk.doctor.finding import Finding
from edge_sdk.doctor.folder_checks import check_folder
from edge_sdk.doctor.server_checks import check_server
from edge_sdk.doctor.trial import try_library
from edge_sdk.identity.device_key import make_private_key
from edge_sdk.identity.identity import Identity, save_identity
from edge_sdk.network.enrolment import join
from tests.processes import ServerProcess

BROKEN = "tests.sdk.broken_library"
PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch):
    for name in PROXIES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[ServerProcess]:
    with ServerProcess(tmp_path_factory.mktemp("server")) as running:
        yield running


def found(findings: list[Finding], check: str) -> Finding:
    (one,) = [finding for finding in findings if finding.check == check]
    assert one.outcome in ("ok", "skipped") or one.fix, one
    return one


def joined(server: ServerProcess, folder: Path) -> Identity:
    token = server.command("token", "create")["enrolment_token"]
    return join(folder, server.address, token, "kitchen")


def stranger(address: str, folder: Path) -> Identity:
    identity = Identity(
        server=address,
        device_id="nobody",
        private_key=make_private_key(),
        name="stranger",
    )
    save_identity(folder, identity)
    return identity


@contextmanager
def answering(headers: dict[str, str]) -> Iterator[str]:
    """A server that answers 200 to everything, with these headers."""

    class Answer(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response_only(200)
            for name, value in {"Content-Length": "0", **headers}.items():
                self.send_header(name, value)
            self.end_headers()

        def log_message(self, *words):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Answer) as listener:
        thread = threading.Thread(target=listener.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.server_port}"
        finally:
            listener.shutdown()
            thread.join()


def test_a_device_that_joined_is_let_in_and_its_clock_agrees(server, tmp_path):
    identity = joined(server, tmp_path)
    findings = check_server(tmp_path, None)
    assert [found(findings, x).outcome for x in ("server", "clock", "token")] == ["ok"] * 3
    assert identity.private_key not in str(findings)


def test_a_device_the_server_does_not_know_is_told_to_join(server, tmp_path):
    stranger(server.address, tmp_path)
    token = found(check_server(tmp_path, None), "token")
    assert token.outcome == "fail"
    assert "edge-sdk join" in token.fix


def test_a_revoked_device_is_told_so(server, tmp_path):
    identity = joined(server, tmp_path)
    server.command("device", "revoke", identity.device_id)
    token = found(check_server(tmp_path, None), "token")
    assert (token.outcome, "revoked" in token.found) == ("fail", True)


def test_the_key_is_shown_to_no_other_server_than_its_own(server, tmp_path):
    stranger("http://127.0.0.1:9", tmp_path)
    token = found(check_server(tmp_path, server.address), "token")
    assert token.outcome == "skipped"
    assert "another" in token.found


def test_a_device_that_never_joined_has_nothing_to_check_but_is_told_how_to_join(tmp_path):
    findings = check_server(tmp_path, None)
    assert {x.outcome for x in findings if x.check != "proxy"} == {"skipped"}
    assert "edge-sdk join" in found(findings, "server").fix


def test_no_server_is_a_failure_and_its_password_is_not_shown(tmp_path):
    server = found(check_server(tmp_path, "http://me:secret@127.0.0.1:9"), "server")
    assert server.outcome == "fail"
    assert "secret" not in str(server)


@pytest.mark.parametrize("address", ["nonsense", "http://", "ftp://x", "http://[::1"])
def test_an_address_that_is_none_is_a_failure_and_no_crash(address, tmp_path):
    assert found(check_server(tmp_path, address), "server").outcome == "fail"


def test_a_plain_server_where_tls_is_expected_is_named_a_matter_of_certificates(server, tmp_path):
    answer = found(check_server(tmp_path, server.address.replace("http", "https")), "server")
    assert answer.outcome == "fail"
    assert "TLS" in answer.found


@pytest.mark.parametrize(
    ("behind_s", "outcome", "side"),
    [
        (0, "ok", "agrees"),
        (100, "warn", "ahead"),
        (86400, "fail", "ahead"),
        (-900, "fail", "behind"),
    ],
)
def test_a_clock_is_compared_with_the_servers(behind_s, outcome, side, tmp_path):
    date = formatdate(time.time() - behind_s, usegmt=True)
    with answering({"Date": date}) as address:
        clock = found(check_server(tmp_path, address), "clock")
    assert clock.outcome == outcome
    assert side in clock.found


@pytest.mark.parametrize("date", [None, "yesterday"])
def test_a_server_without_a_time_says_nothing_about_the_clock(date, tmp_path):
    with answering({"Date": date} if date else {}) as address:
        assert found(check_server(tmp_path, address), "clock").outcome == "skipped"


def test_a_proxy_is_named_without_its_password(monkeypatch, tmp_path):
    monkeypatch.setenv("HTTP_PROXY", "http://me:secret@127.0.0.1:9")
    findings = check_server(tmp_path, "http://192.0.2.1:80")
    assert "HTTP_PROXY=127.0.0.1:9" in found(findings, "proxy").found
    assert "secret" not in str(findings)
    assert "proxy" in found(findings, "server").found


def test_a_folder_that_cannot_be_written_is_a_failure(tmp_path):
    (tmp_path / "file").write_text("")
    assert found(check_folder(tmp_path / "file" / "state"), "state folder").outcome == "fail"
    if sys.platform == "linux":
        assert found(check_folder(Path("/proc/edge")), "state folder").outcome == "fail"


def test_a_check_of_a_folder_leaves_nothing_behind(tmp_path):
    check_folder(tmp_path / "state")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.name != "posix", reason="modes of POSIX")
def test_a_key_that_others_may_read_is_a_failure(tmp_path):
    stranger("http://127.0.0.1:9", tmp_path)
    assert found(check_folder(tmp_path), "private key").outcome == "ok"
    (tmp_path / "device.json").chmod(0o644)
    key = found(check_folder(tmp_path), "private key")
    assert key.outcome == "fail"
    assert "chmod 600" in key.fix


def test_an_agent_at_work_is_seen(tmp_path):
    assert "no agent" in found(check_folder(tmp_path), "agent").found
    lock = OnlyOne(tmp_path)
    assert "one agent" in found(check_folder(tmp_path), "agent").found
    lock.release()
    assert "no agent" in found(check_folder(tmp_path), "agent").found


@pytest.mark.parametrize(
    ("how", "says"),
    [("crash", "signal 11"), ("hang", "no answer within 2 s"), ("noise", "status 3")],
)
def test_a_library_that_breaks_its_process_is_a_failure_here(how, says):
    trial = try_library(how, module=BROKEN, patience_s=2.0 if how == "hang" else 60.0)
    assert trial.outcome == "fail"
    assert says in trial.found
    assert trial.fix


@pytest.mark.parametrize(
    ("check", "outcome", "fix"),
    [
        ("torch", "fail", "edge-sdk[train]"),
        ("kernels", "skipped", ""),
        ("nf4", "skipped", ""),
        ("onnx", "warn", "edge-sdk[infer]"),
    ],
)
def test_a_library_that_is_not_installed_is_named_with_its_extra(check, outcome, fix):
    trial = try_library(check, module=BROKEN)
    assert trial.outcome == outcome
    assert fix in trial.fix


@pytest.mark.parametrize("check", ["torch", "kernels", "onnx"])
def test_libraries_that_work_here_are_found_to_work(check):
    trial = try_library(check)
    assert trial.outcome in ("ok", "warn"), trial


def test_the_command_prints_json_and_exits_with_1_if_a_check_fails(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(doctor_command, "LIBRARIES", ())
    words = ["doctor", "--json", "--state", str(tmp_path / "state")]
    assert main(words) == 0
    assert json.loads(capsys.readouterr().out)["is_healthy"] is True
    with socket.socket() as taken:  # bound, not listening: nobody answers there
        taken.bind(("127.0.0.1", 0))
        assert main([*words, "--server", f"http://127.0.0.1:{taken.getsockname()[1]}"]) == 1
    told = json.loads(capsys.readouterr().out)
    assert told["is_healthy"] is False
    assert {"check": "server", "outcome": "fail"}.items() <= told["checks"][5].items()


def test_the_table_names_every_failure_and_its_fix(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(doctor_command, "LIBRARIES", ())
    assert main(["doctor", "--state", str(tmp_path), "--server", "http://127.0.0.1:9"]) == 1
    printed = capsys.readouterr().out
    assert "server: check the address" in printed
