"""The address that the demo prints opens the dashboard of its server."""

from __future__ import annotations

from urllib.parse import parse_qs, urlsplit

import pytest
import requests

import demo.__main__ as main
from demo.processes import Processes


@pytest.mark.processes
def test_the_address_the_demo_prints_opens_the_dashboard(tmp_path, tiny_llama, monkeypatch):
    monkeypatch.setattr(main, "FOLDER", tmp_path)
    monkeypatch.setattr(main, "RANK", 4)
    monkeypatch.setattr(main, "SKETCH_SIZES", (1, 2, 4))
    with Processes(tmp_path / "logs", threads=1) as processes:
        served = main._start_server(processes, tiny_llama)
        address = urlsplit(main._dashboard(served.address, served.reader_token))
        page = address._replace(fragment="").geturl()
        assert "Fleet dashboard" in requests.get(page, timeout=10).text
        (token,) = parse_qs(address.fragment)["token"]
        answer = requests.get(
            f"{served.address}/v1/admin/overview",
            headers={"Authorization": f"Bearer {token}"},
            timeout=10,
        )
        assert answer.json()["task"]["line"]["name"] == main.TASK
