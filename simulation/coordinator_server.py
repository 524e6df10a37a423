"""The server's own coordinator, database and files in this process, on a virtual clock.

Left out are HTTP and the proofs of identity. It serves what the real server does: FSLoRA, and FedIT
where every device affords all ranks.
"""

from __future__ import annotations

import time
from pathlib import Path

from edge_sdk.errors import EdgeError
from edge_sdk.sketch import sketched_scaling
from edge_sdk.wire import payload
from edge_sdk.wire.messages import CheckIn, UpdateReport, encode_message
from edge_sdk.wire.task import TaskSpec
from edge_sdk.wire.update_body import encode_update
from server.blobs.blobs import BlobFolder
from server.methods.method import GlobalModel
from server.rounds.adapters import AdapterShelf, indices_of
from server.rounds.coordinator import Coordinator
from server.rounds.tasks import create_task
from server.settings.settings import Settings
from server.storage.access_store import DeviceRow
from server.storage.lookup import find_assignment
from server.storage.sql_store import open_store
from simulation.names import device_name
from simulation.work import Closed, Lesson, Work


class CoordinatorServer:
    """One task on a server that knows no network.

    Args:
        spec: Of the task.
        seed: Of the task.
        folder: New; of the server's state.
    """

    def __init__(self, spec: TaskSpec, seed: int, folder: Path) -> None:
        self._spec = spec
        self._seed = seed
        self._now = 0.0
        settings = Settings(state=folder)
        folder.mkdir(parents=True, exist_ok=True)
        self._store = open_store(settings.url)
        blobs = BlobFolder(settings.blob_folder)
        self._server = Coordinator(self._store, blobs, clock=lambda: self._now)
        create_task(self._store, AdapterShelf(blobs), spec, seed, self._now)
        self._known = set[int]()
        self._closed = 0

    @property
    def spec(self) -> TaskSpec:
        """The task."""
        return self._spec

    def close_store(self) -> None:
        """Let go of the database."""
        self._store.close()

    def give_work(self, device: int, affordable_k: int, now: float) -> Work:
        """Let a device check in and fetch its slice."""
        self._now = now
        name, spec = device_name(device), self._spec
        self._enrol(device)
        ready = CheckIn(base_digest=spec.base.digest, affordable_k=affordable_k, examples=1)
        given = self._server.check_in(name, spec.name, ready).assignment
        if given is None:
            raise EdgeError(f"{name} got no work in round {self._closed + 1}")
        body = self._server.slice_for(name, spec.name, given.round_number)
        shapes = payload.adapter_shapes(spec.adapter, given.k)
        slices, _ = payload.decode(body, shapes, spec.adapter.wire_dtype)
        with self._store.read() as tx:
            row = find_assignment(tx, spec.name, given.round_number, name)
        adapter = spec.adapter
        return Work(
            device=device,
            round_number=given.round_number,
            k=given.k,
            indices=indices_of(self._seed, spec, row),
            slices=slices,
            factors="AB",
            scale=sketched_scaling(adapter.lora_alpha, adapter.r, given.k, adapter.use_rslora),
            seed=given.seed,
            downlink_bytes=len(body),
        )

    def take_update(self, work: Work, lesson: Lesson, now: float) -> int:
        """Let a device upload its update."""
        self._now = now
        report = UpdateReport(
            examples=lesson.examples, loss=lesson.loss, seconds=1.0, peak_rss_bytes=0
        )
        body = encode_update(lesson.update, self._spec, work.seed, encode_message(report))
        name = device_name(work.device)
        with self._server.open_upload() as upload:
            upload.write(body)
            digest = payload.content_digest(body)
            self._server.accept_update(name, self._spec.name, work.round_number, upload, digest)
        return len(body)

    def close(self, number: int, now: float) -> Closed:
        """Let the closer look at the round; it is due by its quorum or its deadline."""
        self._now = now
        began = time.process_time()
        self._server.advance(self._spec.name, number)
        if self._server.round_status(self._spec.name, number).state != "closed":
            raise EdgeError(f"round {number} was not due at {now:.0f} s")
        self._closed = number
        return Closed(aggregation_error=None, server_s=time.process_time() - began)

    def model(self) -> GlobalModel:
        """Return the newest version of the adapter."""
        adapter = self._spec.adapter
        info, stream = self._server.adapter_body(self._spec.name, self._closed)
        body = b"".join(stream(0, info.size_bytes))
        shapes = payload.adapter_shapes(adapter, adapter.r)
        return GlobalModel(adapter=payload.decode(body, shapes, adapter.wire_dtype)[0])

    def _enrol(self, device: int) -> None:
        if device in self._known:
            return
        name = device_name(device)
        with self._store.write() as tx:
            tx.add_device(DeviceRow(id=name, name=name, public_key=name, enrolled_at=self._now))
        self._known.add(device)
