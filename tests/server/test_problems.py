import asyncio
import re
from pathlib import Path

import pytest

from edge_sdk import errors
from edge_sdk.wire.messages import Problem, decode_message
from server.http.problems import MEDIA_TYPE, STATUS, answer

PROTOCOL = Path(__file__).parents[2] / "docs" / "protocol.md"


def test_the_table_is_the_one_in_the_protocol():
    rows = re.findall(r"^\| (\d{3}) \| (.*) \|$", PROTOCOL.read_text(encoding="utf-8"), re.M)
    documented = {
        code: int(status) for status, codes in rows for code in re.findall(r"`(\w+)`", codes)
    }
    assert {error.code: status for error, status in STATUS.items()} == documented


@pytest.mark.parametrize("error", STATUS, ids=lambda error: error.__name__)
def test_every_error_becomes_a_problem_its_code_leads_back_from(error):
    response = answer(error("what came, what is allowed"))
    problem = decode_message(Problem, response.body)
    assert response.media_type == MEDIA_TYPE
    assert problem.status == response.status_code == STATUS[error]
    assert errors.by_code()[problem.code] is error
    assert problem.detail == "what came, what is allowed"


@pytest.mark.parametrize("error", [errors.AdapterError, errors.DataError, errors.EdgeError])
def test_an_error_outside_the_table_says_nothing_about_its_cause(error):
    problem = decode_message(Problem, answer(error("secret path")).body)
    assert (problem.status, problem.code) == (500, "server_failed")
    assert "secret" not in problem.detail


def test_a_busy_server_says_when_to_come_back():
    assert answer(errors.ServerBusy("later", retry_after_s=1.2)).headers["retry-after"] == "2"


def test_an_unauthorized_answer_names_the_scheme():
    assert answer(errors.NotAuthorized("who?")).headers["www-authenticate"] == "Bearer"


def test_a_storage_error_is_also_told_to_the_operator(caplog):
    from server.http.problems import _on_edge_error

    asyncio.run(_on_edge_error(None, errors.StorageError("the disk is full")))
    assert "the disk is full" in caplog.text
