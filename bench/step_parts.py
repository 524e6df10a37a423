"""Where the time of a step of the hand-written passes goes: their parts are timed as they run."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from edge_sdk.lean import llama
from edge_sdk.lean.attention import PackedAttention
from edge_sdk.lean.products import IntegerProducts, WideProducts
from edge_sdk.lean.ranks import RankGroup

_PARTS: tuple[tuple[str, Any, tuple[str, ...]], ...] = (
    ("frozen layers, forward", WideProducts, ("forward",)),
    ("frozen layers, forward", IntegerProducts, ("forward",)),
    ("frozen layers, back", WideProducts, ("backward",)),
    ("frozen layers, back", IntegerProducts, ("backward",)),
    ("ranks", RankGroup, ("reduce", "add", "back", "learn")),
    ("attention", PackedAttention, ("forward", "backward")),
    ("head and loss", llama, ("vocabulary_loss",)),
)


class StepParts:
    """Seconds by part since the last :meth:`take`; a part inside another counts as the outer one.

    Time between the parts is that of norms, rotation, gates, and keeping activations.
    """

    def __init__(self) -> None:
        self._seconds = dict[str, float]()
        self._is_inside = False
        for part, home, names in _PARTS:
            for name in names:
                setattr(home, name, self._timed(part, getattr(home, name)))

    def take(self) -> dict[str, float]:
        """Return the seconds by part, and start again."""
        found, self._seconds = self._seconds, {}
        return found

    def _timed(self, part: str, work: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **named: Any) -> Any:
            if self._is_inside:
                return work(*args, **named)
            self._is_inside = True
            started = time.perf_counter()
            try:
                return work(*args, **named)
            finally:
                self._is_inside = False
                passed = time.perf_counter() - started
                self._seconds[part] = self._seconds.get(part, 0.0) + passed

        return timed
