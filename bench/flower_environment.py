"""Flower in a virtual environment of its own: it pins other versions of what we use."""

from __future__ import annotations

import os
import subprocess
import sys
import venv
from collections.abc import Mapping
from pathlib import Path

import platformdirs

VERSION = "1.41.0"
"""The newest that installs: 1.42.0 wants a certifi that is newer than any that was published."""

QUICK_LOOK_S = "0.05"
"""How often a Flower that is set to short polls looks for tasks; the default is 1 s. Its devices
ask every 3 s, and its strategy looks for replies every 3 s: neither can be set."""


def default_folder() -> Path:
    """Return where the environment is kept between runs."""
    return platformdirs.user_cache_path("edge-sdk") / "bench" / f"flower-{VERSION}"


def prepare(folder: Path) -> Path:
    """Install Flower where it is not yet; return the folder of its commands.

    Raises:
        SystemExit: It cannot be installed.
    """
    commands = folder / "bin"
    if not (commands / "flower-superlink").exists():
        venv.create(folder, clear=True, with_pip=True)
        install = [str(commands / "python"), "-m", "pip", "install", "-qq", f"flwr=={VERSION}"]
        if subprocess.run(install, check=False).returncode:
            raise SystemExit(f"flwr {VERSION} cannot be installed in {folder}: see above")
    return commands


def variables(commands: Path, home: Path, has_short_polls: bool) -> Mapping[str, str]:
    """Return the environment of Flower's processes: no telemetry, nothing outside this machine."""
    own = {
        "PATH": f"{commands}{os.pathsep}{os.environ.get('PATH', '')}",
        "FLWR_HOME": str(home),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "OMP_NUM_THREADS": "1",
    }
    if has_short_polls:
        own["FLWR_SUPEREXEC_TASK_POLL_INTERVAL"] = QUICK_LOOK_S
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return {**kept, **own}


def python_version() -> str:
    """Return the version both sides run on: the environment is made by this interpreter."""
    return ".".join(map(str, sys.version_info[:3]))
