"""Who gets work in a round, and at which sketch size."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from edge_sdk.errors import ConfigError
from edge_sdk.sketch import largest_sketch
from edge_sdk.wire.messages import RoundPolicy


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


def has_free_seat(
    policy: RoundPolicy,
    assigned_at: Mapping[str, float],
    accepted: Collection[str],
    stretch_at: float,
) -> bool:
    """Say whether the cohort of a round takes one more device.

    A device that let a whole stretch of a prolonged round pass without an update no longer holds
    its seat, or a cohort of dropped devices would block the task for ever. Its assignment stays
    valid.

    Args:
        policy: Of the task.
        assigned_at: When each assigned device got its work.
        accepted: Devices whose update is durable.
        stretch_at: When the round was opened or last prolonged.
    """
    taken = sum(
        device in accepted or seconds >= stretch_at for device, seconds in assigned_at.items()
    )
    return taken < policy.cohort_size
