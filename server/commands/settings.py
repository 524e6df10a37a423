"""The settings on the command line: their flags, and ``edge-server config show``."""

from __future__ import annotations

import argparse
import inspect
import os
import re
from collections.abc import Iterable
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from server.commands import output
from server.settings.settings import Settings
from server.settings.settings_sources import FoundSettings, find_settings, flag_of, setting_kinds

STATE_SETTINGS = ("state", "database_url", "blob_url", "blob_endpoint", "signing_key")
"""What every command needs to find the state of the server."""

_PASSWORD = re.compile(r"(://[^:/@\s]*:)[^@\s]*@")
_SECRETS = ("upstream_token",)
_SECRET_PARAMETER = re.compile(r"([?&][^=&]*(?:password|secret|token|key)[^=&]*=)[^&]*", re.I)


def add_flags(parser: argparse.ArgumentParser, names: Iterable[str] | None = None) -> None:
    """Add the flags of settings to a command, each with its meaning and default.

    Args:
        parser: Of the command.
        names: Of the settings; all of them without it.
    """
    parser.add_argument("--config", metavar="FILE", help="settings file, such as edge-server.toml")
    meanings = describe_settings()
    kinds = setting_kinds()
    defaults = {setting.name: setting.default for setting in fields(Settings)}
    for name in kinds if names is None else names:
        text = meanings.get(name, "")
        if defaults[name] not in ("", (), None, MISSING):
            text += f" (default: {defaults[name]})"
        help_text = text.replace("%", "%%")
        parser.add_argument(flag_of(name), dest=name, help=help_text, **_form(kinds[name]))


def describe_settings() -> dict[str, str]:
    """Return what every setting means, by name, as the docstring of Settings says it."""
    _, _, attributes = (inspect.getdoc(Settings) or "").partition("Attributes:\n")
    entries = re.findall(r"^    (\w+): (.*(?:\n {8}.*)*)", attributes, re.M)
    return {name: " ".join(text.replace("``", "").split()) for name, text in entries}


def show(args: argparse.Namespace) -> None:
    """Print every setting, its value and where it comes from; passwords are masked."""
    found = find_settings(vars(args), os.environ)
    rows = _rows(found)
    if args.json:
        file = None if found.file is None else str(found.file)
        output.line("", {"file": file, "settings": rows}, args.json)
    else:
        output.settings([(row["name"], row["value"], row["origin"]) for row in rows])


def _rows(found: FoundSettings) -> list[dict[str, Any]]:
    return [
        {"name": name, "value": _shown(name, getattr(found.settings, name)), "origin": origin}
        for name, origin in found.origins.items()
    ]


def _shown(name: str, value: object) -> object:
    """Return a value as it may be shown: as JSON has it, without tokens and passwords."""
    if name in _SECRETS and value:
        return "***"
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, str):
        return _SECRET_PARAMETER.sub(r"\1***", _PASSWORD.sub(r"\1***@", value))
    return value


def _form(kind: Any) -> dict[str, Any]:
    """Return how argparse reads one kind of setting."""
    if kind is bool:
        return {"action": argparse.BooleanOptionalAction, "default": None}
    if get_origin(kind) is tuple:
        return {"nargs": "+", "metavar": "NAME"}
    if get_origin(kind) is Literal:
        return {"choices": get_args(kind)}
    return {"type": kind}
