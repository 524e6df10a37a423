"""What the server turns away is counted by reason, and costs no memory that grows."""

from __future__ import annotations

from edge_sdk.errors import MalformedPayload, RoundClosed
from server.operation.refusals import Refusals
from tests.server.tasks import TurnedClock


def test_each_code_has_one_line_with_its_count_and_the_latest_case():
    clock = TurnedClock(100.0)
    refusals = Refusals(clock)
    refusals.note("words", RoundClosed("round 1 is over"))
    clock.now = 200.0
    refusals.note("words", MalformedPayload("other shapes"))
    refusals.note("sums", RoundClosed("round 7 is over"))
    found = [(x.code, x.count, x.task, x.detail, x.at) for x in refusals.lines()]
    assert found == [
        ("round_closed", 2, "sums", "round 7 is over", 200.0),
        ("malformed_payload", 1, "words", "other shapes", 200.0),
    ]
    assert refusals.started_at == 100.0


def test_long_texts_of_a_device_are_cut():
    refusals = Refusals(TurnedClock())
    refusals.note("t" * 10_000, MalformedPayload("x" * 10_000))
    (line,) = refusals.lines()
    assert (len(line.task), len(line.detail)) == (63, 300)
