"""How a command line takes an enrolment token: as a word, or from where others cannot see it."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from edge_sdk.errors import ConfigError


def add_token_options(parser: argparse.ArgumentParser) -> None:
    """Add the two ways; :func:`read_token` reads them back."""
    chosen = parser.add_mutually_exclusive_group()
    chosen.add_argument("--token", help="enrolment token from the operator; needed once")
    chosen.add_argument(
        "--token-file",
        type=Path,
        metavar="FILE",
        help="a file that holds it, or - for standard input: other users can see a command line",
    )


def read_token(options: argparse.Namespace) -> str | None:
    """Return the enrolment token; None if none is given.

    Raises:
        ConfigError: The file cannot be read, or is empty.
    """
    path: Path | None = options.token_file
    if path is None:
        given: str | None = options.token
        return given
    try:
        text = sys.stdin.readline() if str(path) == "-" else path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"the enrolment token cannot be read from {path}: {error}") from error
    if not text.strip():
        raise ConfigError(f"there is no enrolment token in {path}: it is empty")
    return text.strip()
