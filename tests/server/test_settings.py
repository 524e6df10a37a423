from pathlib import Path

import pytest

from edge_sdk.errors import ConfigError
from server.settings import Settings, read_settings
from server.sql_store import open_store


def test_a_flag_wins_over_the_environment_and_that_over_the_default():
    environment = {"EDGE_SERVER_PORT": "9001", "EDGE_SERVER_POLL_S": "0.5", "PORT": "1"}
    found = read_settings({"port": 9002, "host": None}, environment)
    assert (found.port, found.poll_s, found.host) == (9002, 0.5, Settings().host)


def test_every_setting_can_come_from_the_environment():
    environment = {
        "EDGE_SERVER_STATE": "~/somewhere",
        "EDGE_SERVER_DATABASE_URL": "sqlite://",
        "EDGE_SERVER_HOST": "::1",
        "EDGE_SERVER_PORT": "0",
        "EDGE_SERVER_POLL_S": "3",
        "EDGE_SERVER_TICK_S": "4",
        "EDGE_SERVER_MAX_JSON_BYTES": "5",
    }
    assert read_settings({}, environment) == Settings(
        state=Path("~/somewhere").expanduser(),
        database_url="sqlite://",
        host="::1",
        port=0,
        poll_s=3.0,
        tick_s=4.0,
        max_json_bytes=5,
    )


@pytest.mark.parametrize(
    ("variable", "value"),
    [("PORT", "http"), ("PORT", "70000"), ("POLL_S", "0"), ("TICK_S", "nan"), ("TICK_S", "soon")],
)
def test_a_value_that_cannot_be_is_a_config_error_that_shows_it(variable, value):
    with pytest.raises(ConfigError, match=value):
        read_settings({}, {f"EDGE_SERVER_{variable}": value})


def test_a_json_limit_below_one_byte_is_refused():
    with pytest.raises(ConfigError, match="max_json_bytes"):
        Settings(max_json_bytes=0)


@pytest.mark.parametrize("name", ["plain", "a b", "100%25", "what?", "a#b"])
def test_a_state_folder_of_any_name_holds_its_own_database(tmp_path, name):
    folder = tmp_path / name
    folder.mkdir()
    open_store(Settings(state=folder).url).close()
    assert (folder / "server.sqlite").is_file()
