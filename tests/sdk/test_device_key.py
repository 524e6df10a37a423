"""A device's key signs for one purpose at a time, and only with its own private half."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_sdk.errors import BadProof, ConfigError
from edge_sdk.identity.device_key import DeviceKey, make_private_key
from edge_sdk.wire.proofs import (
    access_statement,
    check_proof,
    enrolment_statement,
    key_change_statement,
)


def test_a_signature_is_of_this_key_over_this_statement():
    key, other = DeviceKey(make_private_key()), DeviceKey(make_private_key())
    signature = key.sign(b"statement")
    check_proof(key.public_key, signature, b"statement")
    flipped = ("0" if signature[0] != "0" else "1") + signature[1:]
    for case in (
        (other.public_key, signature, b"statement"),
        (key.public_key, signature, b"another"),
        (key.public_key, flipped, b"statement"),
        (key.public_key, "", b"statement"),
        ("none of d1", signature, b"statement"),
        ("00" * 31, signature, b"statement"),
    ):
        with pytest.raises(BadProof):
            check_proof(*case)


def test_a_key_is_the_same_after_a_restart_and_new_when_made():
    private_key = make_private_key()
    assert DeviceKey(private_key).public_key == DeviceKey(private_key).public_key
    assert make_private_key() != private_key


@pytest.mark.parametrize("damaged", ["", "x" * 64, "ab" * 31])
def test_a_damaged_key_says_what_to_do(damaged):
    with pytest.raises(ConfigError, match="join again"):
        DeviceKey(damaged)


@given(st.text(), st.text(), st.text(), st.text())
def test_no_two_requests_have_the_same_statement(a, b, c, d):
    statements = [
        access_statement(a, b),
        access_statement(a + b, ""),
        access_statement(a, b + "\0"),
        enrolment_statement(a, b),
        key_change_statement(a, b, c, d),
        key_change_statement(a, b + c, "", d),
    ]
    different = {0: (a, b), 1: (a + b, ""), 2: (a, b + "\0")}
    assert len({statements[i] for i in different}) == len(set(different.values()))
    assert statements[3] not in statements[:3] + statements[4:]
    assert (statements[4] == statements[5]) is (c == "")
