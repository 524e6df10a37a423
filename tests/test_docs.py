"""The documents name what there is, and their code is code."""

from __future__ import annotations

import argparse
import ast
import inspect
import re
from dataclasses import fields
from pathlib import Path

import pytest

from edge_sdk.cli import _parser as device_parser
from edge_sdk.client import EdgeClient
from edge_sdk.errors import by_code
from server.cli import _build_parser as server_parser
from server.settings import ENVIRONMENT_PREFIX, Settings

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
OPERATIONS = (ROOT / "docs/operations.md").read_text(encoding="utf-8")
PROTOCOL = (ROOT / "docs/protocol.md").read_text(encoding="utf-8")


def test_readme_code_calls_the_client_with_arguments_it_has():
    (code,) = re.findall(r"```python\n(.*?)```", README, flags=re.S)
    (call,) = [
        node
        for node in ast.walk(ast.parse(code))
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "EdgeClient"
    ]
    inspect.signature(EdgeClient).bind(**{word.arg: None for word in call.keywords})
    for method in re.findall(r"client\.(\w+)\(", code):
        assert callable(getattr(EdgeClient, method))


@pytest.mark.parametrize("name", ["probe", "plan", "join", "run", "pull", "infer"])
def test_readme_shows_every_device_command(name):
    assert f"edge-sdk {name}" in README


def test_operations_names_every_setting_and_its_default():
    for setting in fields(Settings):
        assert f"`{ENVIRONMENT_PREFIX}{setting.name.upper()}`" in OPERATIONS
    for name in ("port", "poll_s", "tick_s", "max_json_bytes"):
        assert f"`{getattr(Settings(), name):.0f}`" in OPERATIONS
    assert f"`{Settings().host}`" in OPERATIONS


def test_protocol_lists_only_codes_that_exist():
    listed = set(re.findall(r"`([a-z_]+)`", PROTOCOL.split("| status |")[1].split("\n\n")[0]))
    assert listed - {"code"} <= by_code().keys()
    assert {"round_closed", "not_finite", "storage_error", "too_large"} <= listed


def test_every_endpoint_is_in_the_protocol(tmp_path):
    from server.app import create_app

    paths = create_app(Settings(state=tmp_path)).openapi()["paths"]
    assert len(paths) >= 9
    for path in paths:
        assert path.replace("{number}", "{n}") in PROTOCOL


@pytest.mark.parametrize("link", re.findall(r"\]\(((?!http)[^)#]+)\)", README))
def test_readme_links_lead_somewhere(link):
    assert (ROOT / link).exists()


@pytest.mark.parametrize("path", sorted(set(re.findall(r"`(tests/[\w/]+\.py)`", README))))
def test_readme_names_tests_that_exist(path):
    assert (ROOT / path).is_file()


@pytest.mark.parametrize("parser", [device_parser(), server_parser()], ids=lambda p: p.prog)
def test_every_option_of_every_command_is_in_the_documents(parser):
    commands = (ROOT / "docs/commands.md").read_text(encoding="utf-8")
    found = set(_options(parser))
    assert len(found) > 10
    assert [option for option in found if not re.search(rf"`[a-z- ]*{option}\b", commands)] == []
    assert set(re.findall(r"`(--[a-z-]+)", commands)) <= (
        {*_options(device_parser()), *_options(server_parser())} | {"--help"}
    )


def _options(parser: argparse.ArgumentParser):
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                yield from _options(command)
        elif action.option_strings and action.dest != "help":
            yield action.option_strings[-1]
