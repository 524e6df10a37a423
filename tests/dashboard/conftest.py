"""A live server with a task that has seen everything, and a browser to look at it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest

from edge_sdk.wire.messages import EvaluationReport
from server.registry.evaluating import Evaluations
from server.settings.settings import Settings
from server.storage import access_tables
from tests.contract.live import live_server
from tests.dashboard.access import admin_token
from tests.dashboard.chromium import Chromium, Page, chromium_path
from tests.server.tasks import Site, ready, tiny_spec

HOSTILE = "<script>window.hacked=1</script><img src=x onerror=window.hacked=1>"


@dataclass
class Board:
    """A server, and the address of its dashboard with a token that may read."""

    site: Site
    url: str
    token: str

    @property
    def address(self) -> str:
        return f"{self.url}/dashboard#token={self.token}"


@pytest.fixture(scope="session")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chromium]:
    path = chromium_path()
    if path is None:
        reason = "no Chromium: apt-get install chromium"
        if os.environ.get("EDGE_TEST_SERVICES") == "required":
            pytest.fail(reason)
        pytest.skip(reason)
    with Chromium(path, tmp_path_factory.mktemp("chromium")) as browser:
        yield browser


@pytest.fixture
def look(chromium: Chromium) -> Callable[..., Page]:
    """Open a page in a tab of its own."""
    return lambda url, **more: Page(chromium, url, **more)


@pytest.fixture(scope="module")
def board(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Board]:
    """Three closed rounds, one running, one update in quarantine; tests only look."""
    site = Site(tmp_path_factory.mktemp("board") / "state")
    site.clock.now = time.time() - 900
    spec = site.add_task(tiny_spec("words", rounds=5, cohort_size=4, quorum=4))
    site.add_task(tiny_spec("sums"))
    for i in range(5):
        site.add_device(f"d{i}")
    rename(site, "d1", HOSTILE)
    for number in (1, 2, 3):
        for i, k in enumerate((1, 2, 4, 8)):
            site.clock.now += 10
            site.train(f"d{i}", spec, 10 * number + i, k, loss=4.0 / number, examples=5 + i)
            if i == 0:
                site.coordinator.slice_for("d0", "words", number)
        if number == 2:
            quarantine(site, "words", number, "d1", f"too far from the others {HOSTILE}")
        site.advance()
    evaluate(site, 2, "d0 d1 d2 d3", refusing="d3")
    evaluate(site, 3, "d0 d1", refusing="")
    site.clock.now = time.time()
    site.coordinator.check_in("d1", "words", ready(2))
    with live_server(Settings(state=site.settings.state, tick_s=3600.0)) as url:
        yield Board(site, url, admin_token(site, "read"))
    site.store.close()


def rename(site: Site, device_id: str, name: str) -> None:
    table = access_tables.devices
    with site.store.write() as tx:
        tx._connection.execute(table.update().where(table.c.id == device_id).values(name=name))


def evaluate(site: Site, version: int, devices: str, refusing: str) -> None:
    """Let devices tell how a version did; nothing is shown before three have."""
    for name in devices.split():
        report = EvaluationReport(
            version=version,
            examples=10,
            loss_before=2.5,
            loss_after=2.25,
            accepted=name != refusing,
        )
        Evaluations(site.store).record(name, "words", report)


def quarantine(site: Site, task: str, number: int, device_id: str, reason: str) -> None:
    with site.store.write() as tx:
        tx.quarantine(tx.accepted(task, number, device_id), reason)
