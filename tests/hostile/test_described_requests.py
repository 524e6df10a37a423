"""Whatever the description allows or forbids is sent, and the answers are those it announces."""

from __future__ import annotations

import os

import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi import checks

from edge_sdk.wire.payload import MEDIA_TYPE, content_digest
from tests.hostile.conftest import Stage
from tests.server.tasks import tiny_spec, update_body

EXAMPLES = int(os.environ.get("EDGE_HOSTILE_EXAMPLES", "6"))
"""Requests of each kind for each operation; set it for a longer run."""

CHECKS = [
    not_a_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_headers_conformance,
    checks.response_schema_conformance,
]
UPDATE = update_body(tiny_spec(), 8, seed=1)


@st.composite
def damaged_updates(draw):
    """An update with some bytes replaced, and maybe cut."""
    body = bytearray(UPDATE)
    for place, value in draw(
        st.lists(st.tuples(st.integers(0, len(UPDATE) - 1), st.integers(0, 255)))
    ):
        body[place] = value
    return bytes(body[: draw(st.just(len(body)) | st.integers(0, len(body)))])


schemathesis.openapi.media_type(MEDIA_TYPE, damaged_updates())


@schemathesis.serializer(MEDIA_TYPE)
def send_tensors(_context, value):
    return value


def schemes_of(operation) -> set[str]:
    required = operation.definition.raw.get("security", [])
    return {scheme for requirement in required for scheme in requirement}


def send(stage: Stage, case, is_real: bool):
    """Send one request with a good token, maybe about things that exist."""
    if is_real:
        found = stage.parts()
        case.path_parameters = {name: found[name] for name in case.path_parameters or {}}
    token = stage.token_for(schemes_of(case.operation))
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    if isinstance(case.body, bytes):
        headers["Content-Digest"] = content_digest(case.body)
    case.validate_response(case.call(headers=headers), checks=CHECKS, headers=headers)


def attack(stage: Stage, operation, mode: GenerationMode) -> None:
    @settings(
        max_examples=EXAMPLES,
        derandomize=True,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(operation.as_strategy(generation_mode=mode), st.booleans())
    def run(case, is_real):
        send(stage, case, is_real)

    run()


def test_every_request_of_the_described_form_gets_a_described_answer(stage):
    schema = schemathesis.openapi.from_url(f"{stage.url}/openapi.json")
    operations = [found.ok() for found in schema.get_all_operations()]
    assert len(operations) >= 20
    for operation in operations:
        attack(stage, operation, GenerationMode.POSITIVE)


def test_every_request_of_another_form_gets_a_described_answer(stage):
    schema = schemathesis.openapi.from_url(f"{stage.url}/openapi.json")
    operations = [found.ok() for found in schema.get_all_operations()]
    negatable = [x for x in operations if x.body or x.query]
    assert len(negatable) >= 5
    for operation in negatable:
        attack(stage, operation, GenerationMode.NEGATIVE)
