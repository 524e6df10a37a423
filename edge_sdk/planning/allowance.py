"""What the owner of a device allows a round to take from it."""

from __future__ import annotations

from dataclasses import dataclass

from edge_sdk.compute.execution import Quantization
from edge_sdk.errors import ConfigError

QUANTIZATIONS: tuple[Quantization, ...] = ("nf4", "int8", "bf16", "fp32")
"""Number formats in the order a plan prefers them: a fleet should hold the same base."""

_POSITIVE = (
    "memory_bytes",
    "round_s",
    "transfer_bytes",
    "uplink_bytes_per_s",
    "downlink_bytes_per_s",
    "max_upload_bytes_per_s",
    "max_download_bytes_per_s",
    "threads",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Allowance:
    """What the owner allows a round to take; None leaves it to the plan.

    Attributes:
        memory_bytes: Of the training process; None takes a share of what is free.
        reserved_bytes: Memory that stays free for the owner's own programs.
        round_s: Time for a round.
        transfer_bytes: To and from the server in a round.
        uplink_bytes_per_s: Of the link to the server; None takes what earlier rounds measured.
        downlink_bytes_per_s: From the server; the same.
        max_upload_bytes_per_s: The most to send to the server; None is as fast as the link is.
        max_download_bytes_per_s: The most to receive from it.
        quantization: Number format of the frozen base; None takes the first that works.
        threads: CPU threads; None takes the cores this process may use.
    """

    memory_bytes: int | None = None
    reserved_bytes: int = 0
    round_s: float | None = None
    transfer_bytes: int | None = None
    uplink_bytes_per_s: float | None = None
    downlink_bytes_per_s: float | None = None
    max_upload_bytes_per_s: float | None = None
    max_download_bytes_per_s: float | None = None
    quantization: Quantization | None = None
    threads: int | None = None

    def __post_init__(self) -> None:
        for name in _POSITIVE:
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ConfigError(f"{name}={value} must be more than 0, or None for no limit")
        if self.reserved_bytes < 0:
            raise ConfigError(f"reserved_bytes={self.reserved_bytes} must be at least 0")

    @property
    def quantizations(self) -> tuple[Quantization, ...]:
        """Number formats a plan may choose, the preferred one first."""
        return QUANTIZATIONS if self.quantization is None else (self.quantization,)
