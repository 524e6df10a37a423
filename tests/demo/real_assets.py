"""The demo's downloaded files, for tests that need the real ones and must not download them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from demo.assets import CACHE_VARIABLE


def use_real_cache(monkeypatch: pytest.MonkeyPatch) -> Path:
    """Point the demo at the cache of the person who runs the tests, and return it.

    The test run has a cache of its own, so the default place is spelled out here.
    """
    folder = Path(os.environ.get(CACHE_VARIABLE) or "~/.cache/edge-sdk/demo").expanduser()
    monkeypatch.setenv(CACHE_VARIABLE, str(folder))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    return folder
