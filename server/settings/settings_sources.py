"""Where settings come from: flags, then the environment, then a file, then the defaults."""

from __future__ import annotations

import difflib
import sys
import types
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from edge_sdk.errors import ConfigError
from server import failpoints
from server.settings.settings import Settings

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ENVIRONMENT_PREFIX = "EDGE_SERVER_"

CONFIG_VARIABLE = f"{ENVIRONMENT_PREFIX}CONFIG"
"""Environment variable that names the settings file."""

_NO_SETTINGS = (CONFIG_VARIABLE, failpoints.VARIABLE)
_TRUTHS = {"true": True, "yes": True, "on": True, "1": True}
_FALSEHOODS = {"false": False, "no": False, "off": False, "0": False}

_Found = dict[str, tuple[Any, str]]


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundSettings:
    """Settings, and how they came about.

    Attributes:
        settings: Of this process.
        origins: By name: ``default``, ``file PATH``, ``environment VARIABLE`` or ``flag --NAME``.
        file: The settings file, if there is one.
    """

    settings: Settings
    origins: dict[str, str]
    file: Path | None


def read_settings(flags: Mapping[str, Any], environment: Mapping[str, str]) -> Settings:
    """Return the settings of this process; see :func:`find_settings`."""
    return find_settings(flags, environment).settings


def find_settings(flags: Mapping[str, Any], environment: Mapping[str, str]) -> FoundSettings:
    """Combine flags, environment, file and defaults; the first that has a value wins.

    Args:
        flags: Values by field name; a missing one or ``None`` was not given. ``config`` is the
            settings file.
        environment: Where ``EDGE_SERVER_<FIELD>`` is looked up; an empty one was not given.

    Raises:
        ConfigError: A value that cannot be, a setting that does not exist, or a file that cannot
            be read.
    """
    _check_variables(environment)
    named = flags.get("config") or environment.get(CONFIG_VARIABLE)
    file = Path(named).expanduser() if named else None
    found = _in_file(file) if file else {}
    found |= _in_environment(environment)
    found |= _in_flags(flags)
    return FoundSettings(
        settings=Settings(**{name: value for name, (value, _) in found.items()}),
        origins={
            setting.name: found[setting.name][1] if setting.name in found else "default"
            for setting in fields(Settings)
        },
        file=file,
    )


def setting_kinds() -> dict[str, Any]:
    """Return the type of every setting by name, without the ``None`` of an optional one."""
    hints = get_type_hints(Settings)
    return {setting.name: _without_none(hints[setting.name]) for setting in fields(Settings)}


def variable_of(name: str) -> str:
    """Return the environment variable of a setting."""
    return ENVIRONMENT_PREFIX + name.upper()


def flag_of(name: str) -> str:
    """Return the command-line flag of a setting."""
    return "--" + name.replace("_", "-")


def _without_none(hint: Any) -> Any:
    if get_origin(hint) in (Union, types.UnionType):
        return next(kind for kind in get_args(hint) if kind is not type(None))
    return hint


def _in_flags(flags: Mapping[str, Any]) -> _Found:
    return {
        name: (
            tuple(flags[name]) if get_origin(kind) is tuple else flags[name],
            f"flag {flag_of(name)}",
        )
        for name, kind in setting_kinds().items()
        if flags.get(name) is not None
    }


def _in_environment(environment: Mapping[str, str]) -> _Found:
    found: _Found = {}
    for name, kind in setting_kinds().items():
        variable = variable_of(name)
        text = environment.get(variable)
        if text:
            found[name] = (_take_text(variable, kind, text), f"environment {variable}")
    return found


def _in_file(file: Path) -> _Found:
    try:
        with file.open("rb") as stream:
            table = tomllib.load(stream)
    except OSError as error:
        raise ConfigError(f"the settings file {file} cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"the settings file {file} is not TOML: {error}") from error
    kinds = setting_kinds()
    for key in table:
        if key not in kinds:
            raise ConfigError(f"{file}: there is no setting {key!r}{_nearest(key, kinds)}")
    return {
        key: (_take_toml(f"{file}: {key}", kinds[key], value), f"file {file}")
        for key, value in table.items()
    }


def _check_variables(environment: Mapping[str, str]) -> None:
    """Refuse a variable of our prefix that nobody would read."""
    kinds = setting_kinds()
    known = {*map(variable_of, kinds), *_NO_SETTINGS}
    for variable in sorted(environment):
        if variable.startswith(ENVIRONMENT_PREFIX) and variable not in known:
            name = variable.removeprefix(ENVIRONMENT_PREFIX).lower()
            raise ConfigError(
                f"{variable} in the environment is no setting{_nearest(name, kinds, variable_of)}"
            )


def _nearest(name: str, known: Iterable[str], spell: Callable[[str], str] = str) -> str:
    """Return the end of a refusal: the most similar setting, spelled as it has to be there."""
    close = difflib.get_close_matches(name, list(known), n=1)
    if close:
        return f"; did you mean {spell(close[0])}?"
    return "; 'edge-server config show' lists all there are"


def _take_text(where: str, kind: Any, text: str) -> Any:
    try:
        return _parse(kind, text)
    except (KeyError, ValueError):
        raise _refuse(where, kind, text) from None


def _take_toml(where: str, kind: Any, value: object) -> Any:
    if kind is float and type(value) is int:
        return float(value)
    if kind in (bool, int, float):
        if type(value) is not kind:
            raise _refuse(where, kind, value)
        return value
    if get_origin(kind) is tuple:
        if not (isinstance(value, list) and all(isinstance(part, str) for part in value)):
            raise _refuse(where, kind, value)
        return tuple(value)
    if not isinstance(value, str):
        raise _refuse(where, kind, value)
    return _take_text(where, kind, value)


def _parse(kind: Any, text: str) -> Any:
    """Return the value that a text says; KeyError or ValueError if it says none."""
    if kind is bool:
        return (_TRUTHS | _FALSEHOODS)[text.lower()]
    if kind is Path:
        return Path(text).expanduser()
    if get_origin(kind) is tuple:
        return tuple(part.strip() for part in text.split(",") if part.strip())
    if get_origin(kind) is Literal:
        return {choice: choice for choice in get_args(kind)}[text]
    return kind(text)


def _refuse(where: str, kind: Any, value: object) -> ConfigError:
    return ConfigError(f"{where}={value!r} must be {_describe(kind)}")


def _describe(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return f"one of {', '.join(get_args(kind))}"
    if get_origin(kind) is tuple:
        return "a list of texts, in the environment with commas between them"
    return {
        bool: "true or false",
        int: "a whole number",
        float: "a number",
        Path: "a path",
        str: "a text",
    }[kind]
