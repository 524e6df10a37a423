"""Whole rounds of a real task in one process: the server's rules, one base, devices in turn.

The coordinator, its database and its files are the server's own, and a device's local steps,
error feedback and update body are the device's own; only HTTP and the processes are left out, so
that many runs of a task fit where one fleet would.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from edge_sdk.rounds.error_feedback import ErrorFeedback, read_ranks
from edge_sdk.sketch import lora_scaling
from edge_sdk.text.example import Example
from edge_sdk.training.local_steps import TrainableBase, train_round
from edge_sdk.wire import payload
from edge_sdk.wire.messages import CheckIn, UpdateReport, encode_message
from edge_sdk.wire.task import TaskSpec
from edge_sdk.wire.update_body import encode_update
from server.blobs.blobs import BlobFolder
from server.rounds.adapters import AdapterShelf
from server.rounds.coordinator import Coordinator
from server.rounds.tasks import create_task
from server.settings.settings import Settings
from server.storage.access_store import DeviceRow
from server.storage.sql_store import open_store


@dataclass(frozen=True, slots=True, kw_only=True)
class Learner:
    """One device.

    Attributes:
        k: Sketch size it can afford.
        examples: Its private data.
    """

    k: int
    examples: Sequence[Example]


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a task came to.

    Attributes:
        update_bytes: Bodies of all updates.
        slice_bytes: Bodies of all slices.
        train_losses: Mean training loss of each round.
        heldout_losses: Of the last adapter version, of each held-out example.
    """

    update_bytes: int
    slice_bytes: int
    train_losses: list[float]
    heldout_losses: list[float]


def run_task(
    folder: Path,
    spec: TaskSpec,
    seed: int,
    base: TrainableBase,
    learners: Mapping[str, Learner],
    heldout: Sequence[Example],
) -> Outcome:
    """Run a task from its first round to its last and try what came of it.

    Args:
        folder: New; of the server's and the devices' state.
        spec: Of the task; its cohort is all learners.
        seed: Of all its randomness.
        base: The frozen model.
        learners: Devices by name.
        heldout: What the result is tried on.
    """
    settings = Settings(state=folder / "server")
    settings.state.mkdir(parents=True)
    store = open_store(settings.url)
    try:
        server = Coordinator(store, BlobFolder(settings.blob_folder))
        create_task(store, AdapterShelf(BlobFolder(settings.blob_folder)), spec, seed, 0.0)
        with store.write() as tx:
            for name in learners:
                tx.add_device(DeviceRow(id=name, name=name, public_key=name, enrolled_at=0.0))
        update_bytes = slice_bytes = 0
        losses = []
        for number in range(1, spec.policy.rounds + 1):
            done = [
                _take_part(server, spec, base, name, learner, folder / name)
                for name, learner in learners.items()
            ]
            update_bytes += sum(sent for sent, _, _ in done)
            slice_bytes += sum(received for _, received, _ in done)
            losses.append(sum(loss for _, _, loss in done) / len(done))
            server.advance(spec.name, number)
        return Outcome(
            update_bytes=update_bytes,
            slice_bytes=slice_bytes,
            train_losses=losses,
            heldout_losses=_heldout_losses(server, spec, base, heldout),
        )
    finally:
        store.close()


def _take_part(
    server: Coordinator,
    spec: TaskSpec,
    base: TrainableBase,
    name: str,
    learner: Learner,
    folder: Path,
) -> tuple[int, int, float]:
    """Train one device's part of the open round; returns bytes sent and received, and the loss."""
    ready = CheckIn(
        base_digest=spec.base.digest, affordable_k=learner.k, examples=len(learner.examples)
    )
    work = server.check_in(name, spec.name, ready).assignment
    if work is None:
        raise SystemExit(f"device {name} got no work")
    received = server.slice_for(name, spec.name, work.round_number)
    shapes = payload.adapter_shapes(spec.adapter, work.k)
    slices, about = payload.decode(received, shapes, spec.adapter.wire_dtype)
    result = train_round(
        base, spec.adapter, work.k, slices, work.training, learner.examples, work.seed
    )
    report = encode_message(
        UpdateReport(
            examples=len(learner.examples),
            loss=result.loss,
            seconds=result.seconds,
            peak_rss_bytes=0,
        )
    )
    feedback = ErrorFeedback(folder, "bench", spec)
    if spec.training.error_feedback:
        ranks = read_ranks(about, spec.adapter, work.k)
        body = feedback.encode(result.update, ranks, work.seed, report)
    else:
        body = encode_update(result.update, spec, work.seed, report)
    with server.open_upload() as upload:
        upload.write(body)
        digest = payload.content_digest(body)
        receipt = server.accept_update(name, spec.name, work.round_number, upload, digest)
    if spec.training.error_feedback:
        feedback.confirm(receipt.digest)
    return len(body), len(received), result.loss


def _heldout_losses(
    server: Coordinator, spec: TaskSpec, base: TrainableBase, heldout: Sequence[Example]
) -> list[float]:
    """Return the loss of each example under the last version of the adapter."""
    adapter = spec.adapter
    info, stream = server.adapter_body(spec.name, spec.policy.rounds)
    body = b"".join(stream(0, info.size_bytes))
    shapes = payload.adapter_shapes(adapter, adapter.r)
    arrays, _ = payload.decode(body, shapes, adapter.wire_dtype)
    scale = lora_scaling(adapter.lora_alpha, adapter.r, adapter.use_rslora)
    trainee = base.trainee(adapter, arrays, scale, None, heldout, spec.training.batch_size, 0)
    try:
        return [score.loss for score in trainee.scores(heldout)]
    finally:
        trainee.detach()
