"""The commands ``edge-server backup`` and ``edge-server restore``."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

from edge_sdk.errors import StorageError
from edge_sdk.quantities import format_bytes
from server.commands import output
from server.commands.registry import Add
from server.operation.backup import Copied, back_up, restore
from server.settings.settings import Settings

_SHOWN = 3
_Subparsers = argparse._SubParsersAction  # argparse has no public name for it


class BackupCommands:
    """What the commands do.

    Args:
        read_settings: Turns the arguments of a command into settings.
    """

    def __init__(self, read_settings: Callable[[argparse.Namespace], Settings]) -> None:
        self._settings = read_settings

    def add(self, commands: _Subparsers[argparse.ArgumentParser], add: Add) -> None:
        """Declare both commands."""
        for name, text, run in (
            ("backup", "copy the state of a running server into a new folder", self.back_up),
            ("restore", "copy a backup to where there is no state yet", self.restore),
        ):
            add(commands, name, text, run).add_argument("folder", type=Path, metavar="DIR")

    def back_up(self, args: argparse.Namespace) -> None:
        """Copy the state into a folder."""
        folder: Path = args.folder
        copied = back_up(self._settings(args), folder, time.time())
        _report(f"backup in {folder}", "server", folder, copied, args.json)

    def restore(self, args: argparse.Namespace) -> None:
        """Copy a backup to where the state is."""
        settings = self._settings(args)
        copied = restore(settings, args.folder)
        _report(f"restored into {settings.state}", "backup", settings.state, copied, args.json)


def _report(text: str, source: str, folder: Path, copied: Copied, is_json: bool) -> None:
    """Print what was copied.

    Raises:
        StorageError: Not everything could be.
    """
    amount = f"{copied.tensor_files} tensor files, {format_bytes(copied.size_bytes)}"
    facts = {
        "folder": str(folder),
        "tensor_files": copied.tensor_files,
        "size_bytes": copied.size_bytes,
        "missing": copied.missing,
    }
    output.line(f"{text}: the database and {amount}", facts, is_json)
    if copied.missing:
        names = ", ".join(copied.missing[:_SHOWN])
        raise StorageError(
            f"all but {len(copied.missing)} tensor files that are missing or damaged in the "
            f"{source}: {names}{', …' if len(copied.missing) > _SHOWN else ''}"
        )
