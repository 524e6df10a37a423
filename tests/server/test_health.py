import asyncio
import threading
import time

import pytest

from edge_sdk.errors import ServerBusy, StorageError
from server.operation.health import Health
from tests.server.tasks import Site


class Place:
    """A store or a place of blobs that answers as a test says."""

    def __init__(self, error=None, gate=None):
        self._error = error
        self._gate = gate

    def check(self):
        if self._gate is not None:
            self._gate.wait(30)
        if self._error is not None:
            raise self._error


def check(health):
    asyncio.run(health.check())


@pytest.fixture
def health(site: Site):
    found = Health(site.store, site.blobs)
    yield found
    found.close()


def test_a_server_whose_database_and_blobs_answer_is_ready(health):
    check(health)


def test_a_stopping_server_is_not_ready(health):
    health.stop()
    with pytest.raises(ServerBusy, match="stopping"):
        check(health)


@pytest.mark.parametrize(
    ("database", "blobs", "named"),
    [
        (StorageError("at 10.0.0.3: no"), None, "not ready: database;"),
        (None, ServerBusy("at 10.0.0.4: no"), "not ready: blobs;"),
        (StorageError("at 10.0.0.3: no"), ServerBusy("no"), "not ready: database and blobs;"),
    ],
)
def test_what_is_not_ready_is_named_and_only_the_log_says_why(database, blobs, named, caplog):
    health = Health(Place(database), Place(blobs))
    with pytest.raises(ServerBusy, match=named) as caught:
        check(health)
    health.close()
    assert "10.0.0" not in str(caught.value)
    assert "10.0.0" in caplog.text


def test_a_place_that_hangs_is_not_ready_and_holds_nobody_up(caplog):
    gate = threading.Event()
    health = Health(Place(gate=gate), Place(), patience_s=0.05)
    asked_at = time.monotonic()
    for _ in range(4):
        with pytest.raises(ServerBusy, match="not ready: database;"):
            check(health)
    assert time.monotonic() - asked_at < 5
    assert "did not answer in 0.05 s" in caplog.text
    gate.set()
    health.close()


def test_a_database_of_another_release_is_not_ready(health, site, caplog):
    with site.store.write() as tx:
        tx._connection.exec_driver_sql("UPDATE alembic_version SET version_num = '9999_later'")
    with pytest.raises(ServerBusy, match="database"):
        check(health)
    assert "9999_later" in caplog.text


def test_a_database_that_is_gone_is_not_ready(health, site):
    path = site.settings.state / "server.sqlite"
    site.store.close()
    for part in path.parent.glob("server.sqlite*"):
        part.unlink()
    path.mkdir()
    with pytest.raises(ServerBusy, match="database"):
        check(health)


def test_a_blob_folder_that_cannot_be_written_is_not_ready(health, site):
    site.settings.blob_folder.write_text("in the way")
    with pytest.raises(ServerBusy, match="blobs"):
        check(health)
