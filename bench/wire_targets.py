"""Everything one side decodes that the other side sent: valid bytes of it, and the decoder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import msgspec
import numpy as np
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from edge_sdk.rounds.error_feedback import read_ranks
from edge_sdk.wire import credentials, manifest, messages, payload
from edge_sdk.wire.block_codes import CODES, CodeName
from edge_sdk.wire.manifest import Manifest, Pointer, Signed, Statement, Succession
from edge_sdk.wire.messages import UpdateReport
from edge_sdk.wire.task import (
    AdapterSpec,
    BaseModel,
    DenseSpec,
    LayerSpec,
    RoundPolicy,
    TaskSpec,
    TrainingSpec,
    WireDtype,
)
from edge_sdk.wire.update_body import decode_update, encode_update, view_update
from server.api.openapi_examples import message_examples

_MESSAGES: tuple[type[object], ...] = (
    credentials.EnrolRequest,
    credentials.Enrolment,
    credentials.Challenge,
    credentials.AccessRequest,
    credentials.AccessToken,
    credentials.Departure,
    credentials.KeyChange,
    TaskSpec,
    messages.CheckIn,
    messages.CheckInReply,
    messages.RoundStatus,
    messages.Receipt,
    messages.AdapterInfo,
)
_PROBLEM = messages.Problem(title="busy", status=503, code="server_busy", detail="come back")
_DIGEST = "ab" * 32
_KEY = Ed25519PrivateKey.from_private_bytes(bytes(32))
_PUBLIC_KEY = (
    _KEY.public_key().public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw).hex()
)
_K = 2
_ADAPTER = AdapterSpec(
    r=4,
    lora_alpha=8,
    target_modules=["q_proj", "v_proj"],
    layers=[
        LayerSpec(name="model.layers.0.q_proj", d_in=6, d_out=4),
        LayerSpec(name="model.layers.0.v_proj", d_in=6, d_out=4),
    ],
    dense=[DenseSpec(name="score.weight", shape=[2, 3])],
)
_MANIFEST = Manifest(
    task="news",
    version=2,
    round_number=2,
    parent_version=1,
    parent_digest=_DIGEST,
    base_digest=_DIGEST,
    spec_digest=_DIGEST,
    digest=_DIGEST,
    size_bytes=1000,
    created_at=1.0,
)
_POINTER = Pointer(
    task="news", sequence=3, version=2, canary_version=None, canary_share=0.25, created_at=1.0
)
_SUCCESSION = Succession(public_key=_DIGEST, created_at=1.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """One decoder.

    Attributes:
        name: For the report.
        samples: Bytes it accepts.
        decode: Takes any bytes; may raise errors of :mod:`edge_sdk.errors` and nothing else.
    """

    name: str
    samples: Sequence[bytes]
    decode: Callable[[bytes], object]


def all_targets() -> list[Target]:
    """Return every decoder of tensor files, messages, digests and signed statements."""
    return [
        _update("fp32"),
        _update("bf16"),
        *(_coded_update(encoding) for encoding in CODES),
        _slice_ranks(),
        *_messages(),
        _message("Problem", messages.Problem, _PROBLEM),
        _message("UpdateReport", UpdateReport, _report()),
        _message("names of tasks", list[str], ["news", "chat"]),
        _message("successions", list[Signed], [_signed(_SUCCESSION)] * 2),
        *_statements(_MANIFEST),
        *_statements(_POINTER),
        *_statements(_SUCCESSION),
        _digest(),
    ]


def _report() -> UpdateReport:
    return UpdateReport(examples=3, loss=0.5, seconds=2.5, peak_rss_bytes=1 << 20)


def _signed(statement: object) -> Signed:
    return _sign(type(statement), manifest.canonical(statement).decode())


def _sign(kind: type, text: str) -> Signed:
    signature = _KEY.sign(manifest.bytes_to_sign(kind, text.encode())).hex()
    return Signed(payload=text, key_id=manifest.key_id_of(_PUBLIC_KEY), signature=signature)


def _update(dtype: WireDtype) -> Target:
    """Return the way of an update: its tensors, the report inside, a view without a copy."""
    shapes = payload.adapter_shapes(_ADAPTER, _K)
    rng = np.random.default_rng(0)
    arrays = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}

    def decode(body: bytes) -> object:
        found, report = payload.decode(body, shapes, dtype)
        for name, view in payload.view(body, shapes, dtype).items():
            if not np.array_equal(view.astype(np.float32), found[name]):
                raise ValueError(f"{name}: the two ways to read a body disagree")
        return messages.decode_message(UpdateReport, report)

    body = payload.encode(arrays, dtype, messages.encode_message(_report()))
    return Target(name=f"update {dtype}", samples=[body], decode=decode)


def _coded_update(encoding: CodeName) -> Target:
    """Return the way of an update in codes: all of it, and tensor by tensor."""
    spec = TaskSpec(
        name="news",
        base=BaseModel(model="base", digest=_DIGEST),
        adapter=_ADAPTER,
        training=TrainingSpec(update_encoding=encoding),
        policy=RoundPolicy(rounds=1, cohort_size=1, quorum=1, sketch_sizes=[_K]),
    )
    shapes = payload.adapter_shapes(_ADAPTER, _K)
    rng = np.random.default_rng(0)
    arrays = {name: rng.normal(size=shape) for name, shape in shapes.items()}

    def decode(body: bytes) -> object:
        found, report = decode_update(body, spec, _K)
        for name, view in view_update(body, spec, _K).items():
            if found[name].shape != shapes[name] or not np.array_equal(view, found[name]):
                raise ValueError(f"{name}: the two ways to read a body disagree")
        return messages.decode_message(UpdateReport, report)

    body = encode_update(arrays, spec, 0, messages.encode_message(_report()))
    return Target(name=f"update {encoding}", samples=[body], decode=decode)


def _slice_ranks() -> Target:
    ranks = messages.SliceRanks(ranks=[[0, 3], [1, 2]])

    def decode(body: bytes) -> object:
        return read_ranks(body, _ADAPTER, _K)

    return Target(name="SliceRanks", samples=[msgspec.json.encode(ranks)], decode=decode)


def _messages() -> list[Target]:
    examples = message_examples()
    return [_message(kind.__name__, kind, examples[kind.__name__]) for kind in _MESSAGES]


def _message(name: str, kind: type[object], sample: object) -> Target:
    def decode(body: bytes) -> object:
        return messages.decode_message(kind, body)

    return Target(name=name, samples=[msgspec.json.encode(sample)], decode=decode)


def _statements(statement: Statement) -> list[Target]:
    return [_signed_answer(statement), _statement(statement)]


def _signed_answer(statement: Statement) -> Target:
    """Return a target in front of the signature: what comes says itself who signed it."""
    kind = type(statement)

    def decode(body: bytes) -> object:
        return manifest.open_signed(kind, messages.decode_message(Signed, body), _PUBLIC_KEY)

    samples = [msgspec.json.encode(_signed(statement))]
    return Target(name=f"answer with a {kind.__name__}", samples=samples, decode=decode)


def _statement(statement: Statement) -> Target:
    """Return a target behind the signature: whatever comes is signed by the trusted key."""
    kind = type(statement)

    def decode(body: bytes) -> object:
        signed = _sign(kind, body.decode("utf-8", "replace"))
        return manifest.open_signed(kind, signed, _PUBLIC_KEY)

    samples = [manifest.canonical(statement)]
    return Target(name=f"signed {kind.__name__}", samples=samples, decode=decode)


def _digest() -> Target:
    content = b"body"
    header = payload.content_digest(content).encode()

    def decode(body: bytes) -> object:
        return payload.check_content_digest(content, body.decode("latin-1"))

    return Target(name="Content-Digest", samples=[header], decode=decode)
