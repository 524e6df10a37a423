"""Flags, environment, file, defaults: the first with a value wins, and nothing is overlooked."""

import sys
from dataclasses import fields
from pathlib import Path

import pytest

from edge_sdk.errors import ConfigError
from server import failpoints
from server.settings.settings import Settings
from server.settings.settings_sources import (
    find_settings,
    read_settings,
    setting_kinds,
    variable_of,
)

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

OTHER_TEXTS = {
    "state": "~/somewhere",
    "database_url": "sqlite:////x",
    "host": "::1",
    "signing_key": "/keys/key.pem",
    "blob_url": "s3://bucket/prefix",
    "blob_endpoint": "https://127.0.0.1:9000",
    "log_format": "json",
    "log_level": "warning",
    "metrics_open": "yes",
    "tls_certificate": "cert.pem",
    "tls_key": "key.pem",
    "forwarded_allow_ips": "10.0.0.0/8, ::1",
}


@pytest.fixture
def file(tmp_path):
    return tmp_path / "edge-server.toml"


def other_value(name):
    """A text that says another value than the default."""
    if name in OTHER_TEXTS:
        return OTHER_TEXTS[name]
    default = getattr(Settings(), name)
    if isinstance(default, bool):
        return str(not default).lower()
    return str(default + 1) if isinstance(default, (int, float)) else str(default or "")


def test_flags_win_over_the_environment_that_over_the_file_and_that_over_the_defaults(file):
    file.write_text("port = 1\npoll_s = 1\ntick_s = 1\n")
    environment = {"EDGE_SERVER_PORT": "2", "EDGE_SERVER_POLL_S": "2", "PORT": "9"}
    found = find_settings({"config": file, "port": 3, "host": None}, environment)
    assert (found.settings.port, found.settings.poll_s, found.settings.tick_s) == (3, 2.0, 1.0)
    assert found.settings.host == Settings().host
    assert found.origins["port"] == "flag --port"
    assert found.origins["poll_s"] == "environment EDGE_SERVER_POLL_S"
    assert found.origins["tick_s"] == f"file {file}"
    assert found.origins["host"] == "default"
    assert found.origins.keys() == setting_kinds().keys()


def test_every_setting_can_come_from_the_environment():
    environment = {variable_of(x.name): other_value(x.name) for x in fields(Settings)}
    given = {name for name in setting_kinds() if environment[variable_of(name)]}
    found = find_settings({}, environment)
    changed = {x for x in given if getattr(found.settings, x) != getattr(Settings(), x)}
    assert changed == given >= OTHER_TEXTS.keys()
    assert found.settings.state == Path("~/somewhere").expanduser()
    assert found.settings.forwarded_allow_ips == ("10.0.0.0/8", "::1")


def test_the_environment_names_the_file_and_a_flag_names_another(file, tmp_path):
    file.write_text("port = 1")
    other = tmp_path / "other.toml"
    other.write_text("port = 2")
    environment = {"EDGE_SERVER_CONFIG": str(file)}
    assert read_settings({}, environment).port == 1
    assert read_settings({"config": str(other)}, environment).port == 2


def test_no_file_is_read_that_nobody_named(tmp_path, monkeypatch):
    (tmp_path / "edge-server.toml").write_text("port = 1")
    monkeypatch.chdir(tmp_path)
    assert find_settings({}, {}).file is None
    assert read_settings({}, {}) == Settings()


def test_an_empty_variable_was_not_given():
    assert read_settings({}, {"EDGE_SERVER_PORT": "", "EDGE_SERVER_CONFIG": ""}) == Settings()


def test_a_flag_that_is_no_setting_is_none_of_its_business():
    assert read_settings({"json": True, "task": "news"}, {}) == Settings()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("prot = 1", "there is no setting 'prot'; did you mean port?"),
        ("poll-s = 1", "did you mean poll_s?"),
        ("[server]\nport = 1", "there is no setting 'server'"),
        ("zzzzzzz = 1", "config show"),
        ("port = '1'", "port='1' must be a whole number"),
        ("port = true", "port=True must be a whole number"),
        ("port = 1.5", "port=1.5 must be a whole number"),
        ("poll_s = true", "poll_s=True must be a number"),
        ("host = 1", "host=1 must be a text"),
        ("metrics_open = 'yes'", "metrics_open='yes' must be true or false"),
        ("forwarded_allow_ips = '::1'", "must be a list of texts"),
        ("forwarded_allow_ips = [1]", "must be a list of texts"),
        ("log_format = 'xml'", "log_format='xml' must be one of text, json"),
        ("port = 70000", "port=70000"),
        ("port =", "is not TOML"),
        ("port = 1\nport = 2", "is not TOML"),
    ],
)
def test_a_file_that_cannot_be_is_a_config_error_that_says_why(file, text, says):
    file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        read_settings({"config": file}, {})
    assert says in str(caught.value)


def test_a_list_comes_from_words_and_from_an_array(file):
    file.write_text("forwarded_allow_ips = ['::1', '10.0.0.1']")
    assert read_settings({"config": file}, {}).forwarded_allow_ips == ("::1", "10.0.0.1")
    assert read_settings({"forwarded_allow_ips": ["::1"]}, {}).forwarded_allow_ips == ("::1",)


def test_a_file_may_say_a_whole_number_of_seconds(file):
    file.write_text("poll_s = 3")
    found = read_settings({"config": file}, {}).poll_s
    assert (found, type(found)) == (3.0, float)


@pytest.mark.parametrize("content", [None, b"host = '\xff'"])
def test_a_file_that_is_missing_or_no_text_is_a_config_error(file, content):
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ConfigError, match=r"edge-server\.toml"):
        read_settings({"config": file}, {})


@pytest.mark.parametrize(
    ("variable", "value", "says"),
    [
        ("EDGE_SERVER_PORT", "http", "EDGE_SERVER_PORT='http' must be a whole number"),
        ("EDGE_SERVER_PORT", "70000", "70000"),
        ("EDGE_SERVER_POLL_S", "0", "poll_s=0"),
        ("EDGE_SERVER_TICK_S", "nan", "tick_s=nan"),
        ("EDGE_SERVER_TICK_S", "soon", "soon"),
        ("EDGE_SERVER_DRAIN_S", "-1", "drain_s=-1"),
        ("EDGE_SERVER_METRICS_OPEN", "perhaps", "perhaps"),
        ("EDGE_SERVER_LOG_LEVEL", "loud", "one of debug, info, warning, error"),
        ("EDGE_SERVER_PROT", "1", "did you mean EDGE_SERVER_PORT?"),
        ("EDGE_SERVER_ZZZZZZZZZ", "1", "config show"),
    ],
)
def test_a_variable_that_cannot_be_is_a_config_error_that_says_why(variable, value, says):
    with pytest.raises(ConfigError) as caught:
        read_settings({}, {variable: value})
    assert says in str(caught.value)


def test_the_variable_of_the_tests_is_no_setting_and_not_refused():
    assert read_settings({}, {failpoints.VARIABLE: "after-update-commit"}) == Settings()


@pytest.mark.parametrize(
    ("text", "is_open"), [("true", True), ("ON", True), ("1", True), ("no", False), ("0", False)]
)
def test_a_switch_is_said_in_words_or_digits(text, is_open):
    assert read_settings({}, {"EDGE_SERVER_METRICS_OPEN": text}).metrics_open is is_open


@pytest.mark.parametrize("name", ["container.toml", "edge-server.toml"])
def test_the_files_that_are_delivered_can_be_read(name):
    file = Path(__file__).parents[2] / "deploy" / name
    found = find_settings({"config": file}, {})
    named = {name for name, origin in found.origins.items() if origin != "default"}
    assert named == tomllib.loads(file.read_text()).keys()
