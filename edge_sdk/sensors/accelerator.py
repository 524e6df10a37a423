"""What a device has besides its CPU to compute with."""

from __future__ import annotations

from dataclasses import dataclass

from edge_sdk.sensors.reading import Reading


@dataclass(frozen=True, slots=True, kw_only=True)
class AcceleratorReport:
    """One accelerator; every reading is missing, with the reason, where there is none.

    Attributes:
        kind: ``cuda`` or ``metal``.
        name: Product, for people and for telling machines apart.
        total_bytes: Its memory, or the machine's where they share it.
        free_bytes: What of it is free, or available on the machine where they share it.
        is_memory_shared: CPU and accelerator use the same memory: it must not be counted twice.
        compute_capability: Of a CUDA device, such as ``8.7``.
        driver_version: Of a CUDA device's driver.
        power_mode: Of a Jetson, such as ``15W``: speed depends on it.
    """

    kind: Reading[str]
    name: Reading[str]
    total_bytes: Reading[int]
    free_bytes: Reading[int]
    is_memory_shared: Reading[bool]
    compute_capability: Reading[str]
    driver_version: Reading[str]
    power_mode: Reading[str]


def no_accelerator(reason: str) -> AcceleratorReport:
    """Return the report of a machine on which no accelerator was found."""
    return AcceleratorReport(
        kind=Reading(None, reason),
        name=Reading(None, reason),
        total_bytes=Reading(None, reason),
        free_bytes=Reading(None, reason),
        is_memory_shared=Reading(None, reason),
        compute_capability=Reading(None, reason),
        driver_version=Reading(None, reason),
        power_mode=Reading(None, reason),
    )
