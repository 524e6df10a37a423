"""What one check found, and what to do about it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Outcome = Literal["ok", "warn", "fail", "skipped"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """The result of one check.

    Attributes:
        check: Its name.
        outcome: ``warn`` is for what works worse than it could, ``fail`` for what stops training
            or inference, ``skipped`` for what does not apply here.
        found: What there is; never a secret.
        fix: What to do, in one line; empty if there is nothing.
    """

    check: str
    outcome: Outcome
    found: str
    fix: str = ""
