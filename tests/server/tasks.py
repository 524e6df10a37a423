"""Small tasks, updates and a clock that tests can turn."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import numpy as np

from edge_sdk.wire import payload
from edge_sdk.wire.messages import CheckIn, UpdateReport, encode_message
from edge_sdk.wire.task import (
    AdapterSpec,
    AggregationSpec,
    BaseModel,
    DenseSpec,
    LayerSpec,
    RoundPolicy,
    TaskSpec,
    TrainingSpec,
)
from edge_sdk.wire.update_body import encode_update
from server.access.auth import Gate
from server.access.credentials import Credentials
from server.blobs.blobs import BlobFolder, Blobs
from server.rounds.coordinator import Coordinator
from server.rounds.tasks import create_task
from server.settings.settings import Settings
from server.storage.access_store import DeviceRow
from server.storage.sql_store import SqlStore, open_store

BASE_DIGEST = "ab" * 32
SEED = 7
TTL_S = 3600.0


class TurnedClock:
    """Seconds since 1970, as a test says."""

    def __init__(self, now: float = 1_000_000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


def tiny_spec(
    name: str = "tiny",
    *,
    r: int = 8,
    dense: bool = True,
    wire_dtype="fp32",
    update_encoding="wire",
    error_feedback=False,
    **policy,
):
    """Two layers of different shape and, if asked for, a small classifier head."""
    rules = {"rounds": 3, "cohort_size": 3, "quorum": 3, "sketch_sizes": [1, 2, 4, 8]} | policy
    ways = {x: rules.pop(x) for x in AggregationSpec.__dataclass_fields__ if x in rules}
    head = [DenseSpec(name="score.weight", shape=[2, 12]), DenseSpec(name="score.bias", shape=[2])]
    return TaskSpec(
        name=name,
        base=BaseModel(model="tiny-llama", digest=BASE_DIGEST),
        adapter=AdapterSpec(
            r=r,
            lora_alpha=2.0 * r,
            target_modules=["q_proj", "v_proj"],
            layers=[
                LayerSpec(name="model.layers.0.self_attn.q_proj", d_in=12, d_out=16),
                LayerSpec(name="model.layers.0.self_attn.v_proj", d_in=12, d_out=8),
            ],
            dense=head if dense else [],
            wire_dtype=wire_dtype,
        ),
        training=TrainingSpec(
            local_steps=2, update_encoding=update_encoding, error_feedback=error_feedback
        ),
        policy=RoundPolicy(**rules),
        aggregation=AggregationSpec(**ways),
    )


def random_arrays(spec: AdapterSpec, k: int, seed: int, scale: float = 0.1) -> payload.Arrays:
    """Random tensors of the shapes at rank ``k``."""
    rng = np.random.default_rng(seed)
    shapes = payload.adapter_shapes(spec, k)
    return {x: (scale * rng.normal(size=s)).astype(np.float32) for x, s in shapes.items()}


def update_body(
    spec: TaskSpec, k: int, seed: int, examples: int = 5, loss: float = 1.5, scale: float = 0.1
) -> bytes:
    """The bytes a device would send; ``scale`` is about the root mean square of its numbers."""
    report = UpdateReport(examples=examples, loss=loss, seconds=0.25, peak_rss_bytes=1 << 20)
    arrays = random_arrays(spec.adapter, k, seed, scale)
    return encode_update(arrays, spec, seed, encode_message(report))


def ready(affordable_k: int = 8) -> CheckIn:
    """A device that holds the base model."""
    return CheckIn(base_digest=BASE_DIGEST, affordable_k=affordable_k, examples=5)


class Site:
    """A state folder with its store, as one server process would have it open."""

    def __init__(self, folder: Path, clock: TurnedClock | None = None) -> None:
        self.settings = Settings(state=folder)
        folder.mkdir(parents=True, exist_ok=True)
        self.clock = clock or TurnedClock()
        self.store: SqlStore = open_store(self.settings.url)
        self.blobs = BlobFolder(self.settings.blob_folder)
        self.coordinator = Coordinator(self.store, self.blobs, self.clock)
        self.gate = Gate(self.store, self.clock, Credentials(self.store, self.clock, TTL_S))

    def use(self, blobs: Blobs) -> None:
        """Keep tensors somewhere else from now on."""
        self.blobs = blobs
        self.coordinator = Coordinator(self.store, blobs, self.clock)

    def restarted(self) -> Site:
        """Open the same folder anew, as after a kill."""
        self.store.close()
        return Site(self.settings.state, self.clock)

    def add_task(self, spec: TaskSpec, seed: int = SEED) -> TaskSpec:
        create_task(self.store, self.coordinator._shelf, spec, seed, self.clock())
        return spec

    def add_device(self, device_id: str) -> str:
        row = DeviceRow(id=device_id, name=device_id, public_key=device_id, enrolled_at=0.0)
        with self.store.write() as tx:
            tx.add_device(row)
        return device_id

    def submit(self, device_id: str, task: str, number: int, body: bytes):
        with self.coordinator.open_upload() as upload:
            upload.write(body)
            digest = payload.content_digest(body)
            return self.coordinator.accept_update(device_id, task, number, upload, digest)

    def train(self, device_id: str, spec: TaskSpec, seed: int, affordable_k: int = 8, **report):
        """Check in and submit a random update; returns the assignment."""
        reply = self.coordinator.check_in(device_id, spec.name, ready(affordable_k))
        assert reply.assignment is not None, reply
        body = update_body(spec, reply.assignment.k, seed, **report)
        self.submit(device_id, spec.name, reply.round_number, body)
        return reply.assignment

    def advance(self) -> None:
        for task, number in self.coordinator.unfinished():
            self.coordinator.advance(task, number)

    def master(self, spec: TaskSpec, version: int) -> payload.Arrays:
        """One adapter version at rank r as the server keeps it."""
        with self.store.read() as tx:
            row = tx.adapter(spec.name, version)
        body = self.blobs.read(row.master_digest)
        shapes = payload.adapter_shapes(spec.adapter, spec.adapter.r)
        return payload.decode(body, shapes, "fp32")[0]


def in_parallel(calls):
    """Start all calls at the same moment; return what each returned or raised."""
    results = [None] * len(calls)
    barrier = threading.Barrier(len(calls))

    def run(i):
        barrier.wait()
        try:
            results[i] = calls[i]()
        except Exception as error:
            results[i] = error

    threads = [threading.Thread(target=run, args=(i,)) for i in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def wait_until(is_true, seconds=20.0):
    """Look again and again until it is so."""
    until = time.monotonic() + seconds
    while not is_true():
        assert time.monotonic() < until, "it did not happen in time"
        time.sleep(0.01)
