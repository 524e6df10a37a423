"""A live server that counts no requests, with a device at work and an admin of each role."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from server.access.admins import create_admin
from server.access.auth import make_enrolment_token
from server.settings.settings import Settings
from tests.contract.conftest import Device, Service
from tests.contract.live import live_server
from tests.server.tasks import Site, tiny_spec

ROLES = ("read", "operate", "admin")
UNHURRIED = 1_000_000


@dataclass
class Stage:
    """What an attacker may know: addresses, names, and tokens that are good.

    Attributes:
        service: The server.
        device: Has work in round 1 of the task ``tiny``.
        victim: Another device, which the admins may revoke.
        admins: Token of an admin of each role.
    """

    service: Service
    device: Device
    victim: Device
    admins: dict[str, str]

    @property
    def url(self) -> str:
        return self.service.url

    def token_for(self, schemes: set[str]) -> str | None:
        """Return a token that opens what asks for one of these schemes."""
        if "Device" in schemes:
            return self.device.token
        return self.admins["admin"] if "Admin" in schemes else None

    def parts(self) -> dict[str, str | int]:
        """Return a value of every path parameter, of something that exists."""
        return {"task": "tiny", "number": 1, "version": 0, "digest": "ab" * 32, "index": 0} | {
            "device_id": self.victim.id
        }


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    site = Site(tmp_path_factory.mktemp("hostile") / "state")
    spec = site.add_task(tiny_spec(cohort_size=3, quorum=2, rounds=2))
    settings = Settings(
        state=site.settings.state,
        tick_s=0.05,
        device_requests_per_min=UNHURRIED,
        entrance_requests_per_min=UNHURRIED,
    )
    admins = {role: create_admin(site.store, role, role, None, "root", 0.0) for role in ROLES}
    with live_server(settings) as url:
        service = Service(url, site, spec, make_enrolment_token(site.store, 0.0))
        device, victim = service.device(), service.device("victim")
        assert device.check_in().ok
        yield Stage(service, device, victim, admins)
    site.store.close()
