import json

import pytest

from server.cli import main
from server.settings.settings_sources import setting_kinds


@pytest.fixture
def show(capsys, tmp_path):
    """Run ``edge-server config show``; returns what it prints, by setting."""

    def run(*words):
        assert main(["config", "show", "--json", *map(str, words)]) == 0
        answer = json.loads(capsys.readouterr().out)
        return answer["file"], {row["name"]: row for row in answer["settings"]}

    return run


def test_every_setting_is_shown_with_its_value_and_where_it_comes_from(show, tmp_path, monkeypatch):
    file = tmp_path / "edge-server.toml"
    file.write_text("poll_s = 7")
    monkeypatch.setenv("EDGE_SERVER_TICK_S", "3")
    named, rows = show("--config", file, "--port", 0, "--metrics-open", "--state", tmp_path)
    assert named == str(file)
    assert rows.keys() == setting_kinds().keys()
    assert rows["poll_s"] == {"name": "poll_s", "value": 7.0, "origin": f"file {file}"}
    assert rows["tick_s"]["origin"] == "environment EDGE_SERVER_TICK_S"
    assert (rows["port"]["value"], rows["port"]["origin"]) == (0, "flag --port")
    assert rows["metrics_open"]["value"] is True
    assert rows["state"]["value"] == str(tmp_path)
    assert rows["host"]["origin"] == "default"


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("postgresql://edge:s3cret@db/edge", "postgresql://edge:***@db/edge"),
        ("postgresql://edge:s3c/ret:x@db/edge", "postgresql://edge:***@db/edge"),
        ("postgresql://edge@db/edge", "postgresql://edge@db/edge"),
        ("postgresql://db/edge?user=e&password=s3cret", "postgresql://db/edge?user=e&password=***"),
        ("postgresql://db/e?sslpassword=s3cret&x=1", "postgresql://db/e?sslpassword=***&x=1"),
        ("sqlite:////srv/x.sqlite", "sqlite:////srv/x.sqlite"),
    ],
)
def test_a_password_in_an_address_is_never_shown(show, address, shown, capsys):
    assert show("--database-url", address)[1]["database_url"]["value"] == shown
    assert main(["config", "show", "--database-url", address]) == 0
    assert "s3c" not in capsys.readouterr().out


def test_the_token_for_the_upstream_server_is_never_shown(show, capsys, monkeypatch):
    monkeypatch.setenv("EDGE_SERVER_UPSTREAM_TOKEN", "s3cret")
    _, rows = show("--upstream", "https://hub.example")
    assert rows["upstream"]["value"] == "https://hub.example"
    assert rows["upstream_token"]["value"] == "***"
    assert main(["config", "show", "--upstream", "https://hub.example"]) == 0
    assert "s3cret" not in capsys.readouterr().out


def test_the_settings_are_a_table_for_people(capsys):
    assert main(["config", "show", "--port", "9"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split() for line in lines if line.startswith("port")] == [
        ["port", "9", "flag", "--port"]
    ]
    assert len(lines) == 1 + len(setting_kinds())


def test_what_serve_would_refuse_is_refused_here_in_one_line(capsys, tmp_path):
    (tmp_path / "x.toml").write_text("prot = 1")
    assert main(["config", "show", "--config", str(tmp_path / "x.toml")]) == 1
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert "did you mean port?" in err


def test_showing_settings_makes_no_state_folder(show, tmp_path):
    show("--state", tmp_path / "state")
    assert not (tmp_path / "state").exists()


@pytest.mark.parametrize("words", [["serve"], ["config", "show"]])
def test_every_setting_has_a_flag_with_its_meaning(words, capsys):
    with pytest.raises(SystemExit):
        main([*words, "--help"])
    text = capsys.readouterr().out
    for name in setting_kinds():
        assert f"--{name.replace('_', '-')} " in text
    assert "Seconds a waiting device is told to stay away; less while" in " ".join(text.split())
    assert "(default: 8765)" in " ".join(text.split())
