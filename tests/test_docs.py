"""The documents name what there is, and their code is code."""

from __future__ import annotations

import argparse
import ast
import inspect
import re
import shlex
from dataclasses import fields
from pathlib import Path

import pytest

from edge_sdk.cli import _parser as device_parser
from edge_sdk.client import EdgeClient
from edge_sdk.errors import by_code
from server.cli import _build_parser as server_parser
from server.settings.settings import Settings
from server.settings.settings_sources import flag_of

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
OPERATIONS = (ROOT / "docs/operations.md").read_text(encoding="utf-8")
SETTINGS = (ROOT / "docs/settings.md").read_text(encoding="utf-8")
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


@pytest.mark.parametrize(
    "name", ["probe", "plan", "join", "run", "status", "doctor", "pull", "infer"]
)
def test_readme_shows_every_device_command(name):
    assert f"edge-sdk {name}" in README


def test_every_setting_is_documented_with_its_default_and_unit():
    rows = re.findall(r"^\| `(\w+)` \| (.*?) \| (.*?) \| (.*?) \|$", SETTINGS, re.M)
    documented = {name: (default, unit) for name, default, unit, _ in rows}
    assert documented.keys() == {setting.name for setting in fields(Settings)}
    assert documented.pop("state") == ("the user's state folder", "path")
    for name, (default, unit) in documented.items():
        assert default == _shown(getattr(Settings(), name)), name
        assert ("seconds" in unit) is name.endswith("_s"), name
        assert ("bytes" in unit) is ("_bytes" in name), name


def _shown(default):
    if default in ("", ()):
        return "none"
    if isinstance(default, bool):
        return f"`{default}`".lower()
    return f"`{default:.0f}`" if isinstance(default, (int, float)) else f"`{default}`"


def test_every_metric_is_documented(tmp_path):
    from prometheus_client.parser import text_string_to_metric_families

    from server.app import create_app

    app = create_app(Settings(state=tmp_path))
    families = text_string_to_metric_families(app.state.metrics.render().decode())
    ours = {family.name for family in families if family.name.startswith("edge_server_")}
    assert len(ours) >= 7
    assert [name for name in ours if f"`{name}" not in OPERATIONS] == []


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


@pytest.mark.parametrize("path", sorted((ROOT / "docs").glob("*.md")), ids=lambda p: p.name)
def test_readme_leads_to_every_document(path):
    assert f"](docs/{path.name})" in README


@pytest.mark.parametrize("path", [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))])
def test_every_command_in_a_document_is_one(path):
    blocks = re.findall(r"```\n(.*?)```", path.read_text(encoding="utf-8"), flags=re.S)
    lines = "\n".join(blocks).replace("\\\n", " ")
    for program, parser in (("edge-sdk", device_parser()), ("edge-server", server_parser())):
        for line in re.findall(rf"^(?:.*[ /])?{program} +([a-z]+ .*|[a-z]+)$", lines, re.M):
            parser.parse_args(shlex.split(line, comments=True))  # exits if it is none


@pytest.mark.parametrize("path", sorted(set(re.findall(r"`(tests/[\w/]+\.py)`", README))))
def test_readme_names_tests_that_exist(path):
    assert (ROOT / path).is_file()


@pytest.mark.parametrize("parser", [device_parser(), server_parser()], ids=lambda p: p.prog)
def test_every_option_of_every_command_is_in_the_documents(parser):
    commands = (ROOT / "docs/commands.md").read_text(encoding="utf-8")
    found = set(_options(parser)) - {flag_of(setting.name) for setting in fields(Settings)}
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
            yield action.option_strings[0]
