"""The measured rates of this device: from a short benchmark, remembered until it changes."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import subprocess
import sys
from pathlib import Path

import msgspec
import platformdirs

from edge_sdk.compute.rates import Rates, assumed_rates
from edge_sdk.device import DeviceReport, fingerprint
from edge_sdk.errors import DeviceError
from edge_sdk.files.whole_file import write_whole
from edge_sdk.wire.typed_json import decode_json

_LIBRARIES = ("edge-sdk", "torch", "transformers", "bitsandbytes")
_TIMEOUT_S = 300.0  # a slow board imports torch for a minute


def known_rates(report: DeviceReport, threads: int) -> Rates:
    """Return what was measured here before with these libraries, or cautious assumptions."""
    try:
        return decode_json(_path(report, threads).read_bytes(), Rates)
    except (OSError, msgspec.DecodeError):  # never measured, or by another version
        return assumed_rates(threads)


def measure_rates(report: DeviceReport, threads: int) -> Rates:
    """Run the benchmark in a process of its own, and remember what it says.

    Raises:
        DeviceError: torch or transformers are missing, or the benchmark failed.
    """
    command = [sys.executable, "-m", "edge_sdk.training.kernel_rates", str(threads)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    try:
        done = subprocess.run(  # noqa: S603 - our own module
            command, capture_output=True, env=environment, timeout=_TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired:
        raise DeviceError(f"the benchmark took more than {_TIMEOUT_S:.0f} s: try again") from None
    except OSError as error:
        raise DeviceError(
            f"the benchmark cannot be started ({error}): plan with assumed rates"
        ) from error
    lines = done.stdout.splitlines()
    try:
        rates = decode_json(lines[-1] if lines else b"", Rates)
    except msgspec.DecodeError:
        said = done.stderr.decode(errors="replace").strip().splitlines()
        raise DeviceError(
            f"the benchmark failed ({said[-1] if said else f'exit status {done.returncode}'}): "
            "install edge-sdk[train], or plan with assumed rates"
        ) from None
    with contextlib.suppress(OSError):  # measured again next time
        write_whole(_path(report, threads), msgspec.json.encode(rates))
    return rates


def _path(report: DeviceReport, threads: int) -> Path:
    name = f"{fingerprint(report, library_versions())}-{threads}.json"
    return platformdirs.user_cache_path("edge-sdk") / "rates" / name


def library_versions() -> dict[str, str]:
    """Return the versions of what computes, as far as it is installed."""
    found = {}
    for name in _LIBRARIES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found
