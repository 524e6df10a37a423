"""A device's place in a task: its server, its base model, and the adapter it shall use."""

from __future__ import annotations

import logging
import random
import socket
import time
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import TypeVar

from edge_sdk.adoption.adapter_source import AdapterSource
from edge_sdk.adoption.base_alone import base_alone
from edge_sdk.adoption.kept_adapters import KeptAdapters
from edge_sdk.errors import (
    ConfigError,
    NothingAdopted,
    ServerBusy,
    ServerUnreachable,
    WrongBaseModel,
)
from edge_sdk.identity.identity import Identity, default_state_folder
from edge_sdk.model.model_folder import find_model, weights_digest
from edge_sdk.model.peft_folder import write_peft_folder
from edge_sdk.network.enrolment import join
from edge_sdk.network.transport import Transport
from edge_sdk.planning.allowance import Allowance
from edge_sdk.rounds.journal import Journal, journal_folder
from edge_sdk.wire.task import TaskSpec

log = logging.getLogger("edge_sdk")

FIRST_OUTAGE_WAIT_S = 1.0
LONGEST_OUTAGE_WAIT_S = 30.0

_Answer = TypeVar("_Answer")


class Membership:
    """What belongs to this device in one task of one server, each thing made on first use.

    Args:
        server: Base address; None uses the server this device joined before.
        task: Name of the task; None takes the server's only one.
        model: Folder or hub id of the base model; None uses the name the task gives.
        enrolment_token: From the operator; needed once.
        name: Of this device, for people; None takes the host name.
        state_folder: Where everything about this device is kept; None takes the platform's folder.
        allowance: What the network may carry for it.
        outage_patience_s: How long to wait for an unreachable server before giving up.
        on_outage: Called each time before such a wait, with what is wrong.
    """

    def __init__(
        self,
        *,
        server: str | None = None,
        task: str | None = None,
        model: str | None = None,
        enrolment_token: str | None = None,
        name: str | None = None,
        state_folder: str | Path | None = None,
        allowance: Allowance | None = None,
        outage_patience_s: float = 600.0,
        on_outage: Callable[[str], None] | None = None,
    ) -> None:
        self.state = Path(state_folder) if state_folder else default_state_folder()
        self._server = server
        self._task_name = task
        self._model = model
        self._enrolment_token = enrolment_token
        self._name = name or socket.gethostname()
        self._allowance = allowance or Allowance()
        self._outage_patience_s = outage_patience_s
        self._on_outage = on_outage

    @cached_property
    def identity(self) -> Identity:
        """Who this device is on its server; it joins now if it has not.

        Raises:
            ConfigError: No server or enrolment token to join with.
            SyncError: The server could not be reached or refused.
        """
        return join(self.state, self._server, self._enrolment_token, self._name)

    @cached_property
    def transport(self) -> Transport:
        """The exchanges with the server."""
        return Transport(
            self.identity.server,
            self.identity,
            max_upload_bytes_per_s=self._allowance.max_upload_bytes_per_s,
            max_download_bytes_per_s=self._allowance.max_download_bytes_per_s,
        )

    @cached_property
    def task(self) -> TaskSpec:
        """What is trained.

        Raises:
            ConfigError: The server has several tasks, and none was named.
        """
        transport = self.transport
        name = self._task_name or _only(self.patiently(transport.tasks))
        return self.patiently(lambda: transport.task(name))

    @cached_property
    def base_folder(self) -> Path:
        """The folder of the base model on this device.

        Raises:
            WrongBaseModel: It is not the one the task pins.
        """
        task = self.task
        folder = find_model(self._model or task.base.model, task.base.revision)
        found = weights_digest(folder)
        if found != task.base.digest:
            raise WrongBaseModel(
                f"the weights in {folder} have digest {found[:12]}…, task {task.name} wants "
                f"{task.base.model} with {task.base.digest[:12]}…: get that model, or name its "
                "folder"
            )
        return folder

    @cached_property
    def journal(self) -> Journal:
        """Where the work of a round is kept."""
        place = (self.identity.server, self.identity.device_id, self.task.name)
        return Journal(journal_folder(self.state, *place))

    @property
    def source(self) -> AdapterSource:
        """Where adapter versions come from."""
        identity = self.identity
        return AdapterSource(self.transport, self.state, identity.server, identity.device_id)

    @property
    def kept(self) -> KeptAdapters:
        """Where adapters for this device's own use stay."""
        return KeptAdapters(self.state, self.identity.server, self.task)

    @property
    def moved_bytes(self) -> tuple[int, int]:
        """Bytes sent and received so far."""
        return self.transport.uploaded_bytes, self.transport.downloaded_bytes

    def pull_or_base(self, folder: str | Path) -> int:
        """Write the adapter this device uses, or one that changes nothing where none is adopted.

        Returns:
            Its version; 0 for the base model alone.

        Raises:
            UntrustedAdapter: As :meth:`pull`.
        """
        try:
            return self.pull(folder)
        except NothingAdopted as error:
            log.info("%s", error)
            arrays = base_alone(self.task.adapter)
            write_peft_folder(Path(folder), self.task, arrays, str(self.base_folder))
            return 0

    def pull(self, folder: str | Path) -> int:
        """Write the adapter this device uses as a PEFT folder; return its version.

        That is the one the gate left in use, the personal one where there is one. A device that
        keeps none gets the one the operator gives to it; nothing is written before its signature,
        its origin and every byte were checked.

        Raises:
            NothingAdopted: The gate found every version worse than the base model alone.
            UntrustedAdapter: It is not from this device's server, of another base model, or older
                than one this device was given before.
        """
        task, base, kept = self.task, str(self.base_folder), self.kept
        if not kept.is_there:
            found = self.patiently(lambda: self.source.fetch(task))
            write_peft_folder(Path(folder), task, found.arrays, base, found.signed)
            return found.manifest.version
        in_use = kept.in_use()
        if in_use is None:
            raise NothingAdopted(
                f"no version of {task.name!r} did as well as the base model alone on this "
                "device's held-out examples: use the base model, or take part in more rounds"
            )
        write_peft_folder(Path(folder), task, in_use[1], base, in_use[0].signed)
        return in_use[0].version

    def patiently(self, exchange: Callable[[], _Answer]) -> _Answer:
        """Repeat an exchange until the server answers or patience runs out.

        This is for outages the transport does not bridge: those of more than a few seconds.

        Raises:
            ServerUnreachable: Nobody answered for that long.
            ServerBusy: It asked to come back later than that.
        """
        waited, pause = 0.0, FIRST_OUTAGE_WAIT_S
        while True:
            try:
                return exchange()
            except (ServerUnreachable, ServerBusy) as error:
                wanted = error.retry_after_s if isinstance(error, ServerBusy) else 0.0
                if max(waited, wanted) >= self._outage_patience_s:
                    raise
                rest = wanted + random.uniform(0.0, pause)  # noqa: S311 - jitter
                log.warning("%s; trying again in %.1f s", error, rest)
                if self._on_outage is not None:
                    self._on_outage(str(error))
                time.sleep(rest)
                waited += rest
                pause = min(2 * pause, LONGEST_OUTAGE_WAIT_S)


def _only(names: list[str]) -> str:
    if len(names) != 1:
        raise ConfigError(
            f"the server has {len(names)} tasks ({', '.join(names) or 'none'}): name one of them"
        )
    return names[0]
