import math

import pytest

from edge_sdk.errors import ConfigError
from server.commands.settings import describe_settings
from server.settings.settings import Settings
from server.settings.settings_sources import setting_kinds
from server.storage.sql_store import open_store


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("port", -1),
        ("port", 65536),
        ("poll_s", 0.0),
        ("poll_s", 86_401.0),
        ("tick_s", math.nan),
        ("drain_s", -1.0),
        ("drain_s", math.inf),
        ("max_json_bytes", 0),
    ],
)
def test_a_value_that_cannot_be_is_a_config_error_that_names_and_shows_it(name, value):
    with pytest.raises(ConfigError, match=f"{name}={value}"):
        Settings(**{name: value})


def test_presigned_uploads_need_a_store_that_signs():
    with pytest.raises(ConfigError, match="presigned_uploads needs an object store") as caught:
        Settings(presigned_uploads=True)
    assert "blob_url" in str(caught.value)


def test_a_server_with_tls_does_not_send_devices_to_a_store_without():
    bucket = {"blob_url": "s3://bucket", "presigned_uploads": True}
    tls = {"tls_certificate": "c.pem", "tls_key": "k.pem"}
    with pytest.raises(ConfigError, match="https://"):
        Settings(**bucket, **tls, blob_endpoint="http://127.0.0.1:9000")
    Settings(**bucket, **tls, blob_endpoint="https://s3.example")
    Settings(**bucket, blob_endpoint="http://127.0.0.1:9000")


def test_a_relay_is_one_process_with_the_address_of_a_server():
    with pytest.raises(ConfigError, match="upstream='ftp://hub'"):
        Settings(upstream="ftp://hub")
    with pytest.raises(ConfigError, match="upstream_token needs upstream"):
        Settings(upstream_token="secret")
    with pytest.raises(ConfigError, match="a relay is one process"):
        Settings(upstream="https://hub", database_url="postgresql://db/edge")
    assert "secret" not in repr(Settings(upstream="https://hub", upstream_token="secret"))


def test_every_setting_says_what_it_means():
    assert describe_settings().keys() == setting_kinds().keys()
    assert all(len(text) > 15 for text in describe_settings().values())


@pytest.mark.parametrize("name", ["plain", "a b", "100%25", "what?", "a#b"])
def test_a_state_folder_of_any_name_holds_its_own_database(tmp_path, name):
    folder = tmp_path / name
    folder.mkdir()
    open_store(Settings(state=folder).url).close()
    assert (folder / "server.sqlite").is_file()
