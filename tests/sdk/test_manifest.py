"""Signed statements: what a signature covers, and where a chain of keys leads."""

from __future__ import annotations

from dataclasses import replace

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from edge_sdk.errors import BadSignature, MalformedMessage, UnknownKey
from edge_sdk.wire.manifest import (
    Manifest,
    Pointer,
    Signed,
    Succession,
    bytes_to_sign,
    canonical,
    follow_successions,
    key_id_of,
    open_signed,
    spec_digest,
)
from edge_sdk.wire.messages import decode_message, encode_message
from edge_sdk.wire.task import AdapterSpec, DenseSpec, LayerSpec
from server.access.signing import SigningKey
from tests.server.tasks import tiny_spec


def key(number: int) -> SigningKey:
    return SigningKey(Ed25519PrivateKey.from_private_bytes(bytes([number] * 32)))


MANIFEST = Manifest(
    task="tiny",
    version=3,
    round_number=3,
    parent_version=2,
    parent_digest="0b" * 32,
    base_digest="ab" * 32,
    spec_digest="cd" * 32,
    digest="ef" * 32,
    size_bytes=1000,
    created_at=1_000_000.25,
)
POINTER = Pointer(
    task="tiny",
    sequence=4,
    version=3,
    canary_version=None,
    canary_share=0.0,
    created_at=1_000_000.5,
)
SIGNED = key(1).sign(MANIFEST)


@pytest.mark.parametrize("statement", [MANIFEST, POINTER])
def test_what_was_signed_is_what_is_opened(statement):
    signed = decode_message(Signed, encode_message(key(1).sign(statement)))
    assert open_signed(type(statement), signed, key(1).public_key) == statement


def test_the_text_that_is_signed_has_sorted_keys_and_no_spaces():
    assert SIGNED.payload == (
        f'{{"base_digest":"{"ab" * 32}","created_at":1000000.25,"digest":"{"ef" * 32}",'
        f'"parent_digest":"{"0b" * 32}","parent_version":2,"round_number":3,"size_bytes":1000,'
        f'"spec_digest":"{"cd" * 32}","task":"tiny","version":3}}'
    )
    assert canonical({"b": [1, 2.5], "a": None}) == b'{"a":null,"b":[1,2.5]}'


def test_the_signature_is_over_the_encoding_of_dsse():
    kind = b"application/vnd.edge-sdk.adapter-manifest.v1+json"
    assert bytes_to_sign(Manifest, b"{}") == b"DSSEv1 49 " + kind + b" 2 {}"


def test_another_key_is_not_the_trusted_one():
    with pytest.raises(UnknownKey, match=key(2).key_id):
        open_signed(Manifest, SIGNED, key(2).public_key)


def test_a_foreign_signature_under_the_trusted_name_is_wrong():
    forged = replace(key(2).sign(MANIFEST), key_id=key(1).key_id)
    with pytest.raises(BadSignature):
        open_signed(Manifest, forged, key(1).public_key)


@given(st.integers(0, len(SIGNED.payload) - 1), st.characters())
def test_no_changed_character_goes_unnoticed(position, character):
    payload = SIGNED.payload[:position] + character + SIGNED.payload[position + 1 :]
    if payload == SIGNED.payload:
        return
    with pytest.raises(BadSignature):
        open_signed(Manifest, replace(SIGNED, payload=payload), key(1).public_key)


def test_a_statement_of_one_kind_never_passes_for_another():
    for kind, signed in ((Pointer, SIGNED), (Manifest, key(1).sign(POINTER))):
        with pytest.raises(BadSignature):
            open_signed(kind, signed, key(1).public_key)


def test_a_rightly_signed_text_of_another_form_is_malformed():
    payload = canonical({"task": "tiny"})
    private = Ed25519PrivateKey.from_private_bytes(bytes([1] * 32))
    signature = private.sign(bytes_to_sign(Manifest, payload)).hex()
    signed = Signed(payload=payload.decode(), key_id=key(1).key_id, signature=signature)
    with pytest.raises(MalformedMessage, match="Manifest"):
        open_signed(Manifest, signed, key(1).public_key)


def test_fields_of_a_later_release_are_covered_and_ignored():
    facts = {name: getattr(MANIFEST, name) for name in Manifest.__dataclass_fields__}
    payload = canonical({**facts, "colour": "blue"})
    private = Ed25519PrivateKey.from_private_bytes(bytes([1] * 32))
    signature = private.sign(bytes_to_sign(Manifest, payload)).hex()
    signed = Signed(payload=payload.decode(), key_id=key(1).key_id, signature=signature)
    assert open_signed(Manifest, signed, key(1).public_key) == MANIFEST


@pytest.mark.parametrize(
    "changes",
    [{"signature": "00"}, {"signature": "z" * 128}, {"key_id": ""}, {"key_id": "g" * 16}],
)
def test_an_envelope_that_cannot_be_is_malformed(changes):
    fields = {"payload": "{}", "key_id": "0" * 16, "signature": "0" * 128} | changes
    with pytest.raises(MalformedMessage):
        decode_message(Signed, encode_message(fields))


def test_a_chain_of_keys_leads_from_every_link_to_the_newest():
    chain = [
        key(n).sign(Succession(public_key=key(n + 1).public_key, created_at=0.0)) for n in (1, 2, 3)
    ]
    for n in (1, 2, 3, 4):
        assert follow_successions(key(n).public_key, chain) == key(4).public_key
    assert follow_successions(key(9).public_key, chain) == key(9).public_key


def test_a_link_that_the_trusted_key_did_not_sign_is_refused():
    thief = key(7).sign(Succession(public_key=key(7).public_key, created_at=0.0))
    with pytest.raises(BadSignature):
        follow_successions(key(1).public_key, [replace(thief, key_id=key(1).key_id)])
    assert follow_successions(key(1).public_key, [thief]) == key(1).public_key


def test_a_key_is_named_by_its_own_bytes():
    assert key_id_of(key(1).public_key) == key(1).key_id != key(2).key_id
    assert len(key(1).key_id) == 16


SPEC = tiny_spec().adapter


@pytest.mark.parametrize(
    "changes",
    [
        {"r": 4},
        {"lora_alpha": 17.0},
        {"use_rslora": True},
        {"target_modules": ["q_proj"]},
        {"layers": SPEC.layers[:1]},
        {"layers": [*SPEC.layers[1:], LayerSpec(name="x", d_in=12, d_out=16)]},
        {"dense": [DenseSpec(name="score.weight", shape=[3, 12])]},
        {"wire_dtype": "bf16"},
    ],
)
def test_whatever_changes_the_reading_of_the_tensors_changes_the_digest(changes):
    assert spec_digest(replace(SPEC, **changes)) != spec_digest(SPEC)


def test_the_digest_is_the_same_on_both_sides_of_the_wire():
    spec = replace(SPEC, lora_alpha=16)
    received = decode_message(AdapterSpec, encode_message(spec))
    assert spec_digest(received) == spec_digest(spec)


IDS = [f"{n:016x}" for n in range(2000)]


def in_canary(share: float, task: str = "tiny") -> set[str]:
    pointer = replace(POINTER, task=task, canary_version=5, canary_share=share)
    return {x for x in IDS if pointer.version_for(x) == 5}


def test_a_canary_has_its_share_of_the_devices_and_a_larger_one_keeps_them():
    assert in_canary(0.0) == set()
    assert in_canary(1.0) == set(IDS)
    assert 0.07 < len(in_canary(0.1)) / len(IDS) < 0.13
    assert in_canary(0.1) < in_canary(0.3) < in_canary(0.9)
    assert in_canary(0.1) != in_canary(0.1, task="other")


def test_without_a_canary_every_device_gets_the_same_version():
    assert {replace(POINTER, canary_share=1.0).version_for(x) for x in IDS} == {3}


@pytest.mark.parametrize("share", [-0.1, 1.1, float("nan")])
def test_a_share_that_is_none_is_malformed(share):
    text = encode_message(POINTER).replace(b'"canary_share":0.0', b'"canary_share":%f' % share)
    with pytest.raises(MalformedMessage):
        decode_message(Pointer, text)
