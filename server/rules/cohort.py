"""At which sketch size a device gets work."""

from __future__ import annotations

from edge_sdk.errors import ConfigError
from edge_sdk.sketch import largest_sketch
from edge_sdk.wire.task import RoundPolicy


def choose_sketch_size(policy: RoundPolicy, affordable_k: int) -> int:
    """Return the largest sketch size of the task that a device can afford.

    Raises:
        ConfigError: It can afford none.
    """
    k = largest_sketch(policy.sketch_sizes, affordable_k)
    if k is None:
        raise ConfigError(
            f"affordable_k={affordable_k} is below the smallest sketch size of the task, "
            f"k={min(policy.sketch_sizes)}: free memory on the device, or use a smaller one"
        )
    return k
