"""How a benchmark states its claims: target, measurement, and whether it holds."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """One statement and what was measured.

    Attributes:
        claim: What is said to hold.
        target: Bound, in words and numbers.
        measured: The number found.
        holds: Whether it meets the target.
    """

    claim: str
    target: str
    measured: float
    holds: bool


def json_path(description: str | None) -> Path | None:
    """Read the only option a benchmark has: ``--json FILE``."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the numbers here")
    chosen: Path | None = parser.parse_args().json
    return chosen


def publish(
    console: Console, claims: Sequence[Claim], rows: Sequence[Mapping[str, Any]], path: Path | None
) -> int:
    """Print the claims, write the JSON if asked for, and return the exit status."""
    table = Table("claim", "target", "measured", "holds")
    for claim in claims:
        table.add_row(
            claim.claim, claim.target, f"{claim.measured:.4g}", "yes" if claim.holds else "NO"
        )
    console.print(table)
    if path is not None:
        content = {"claims": [asdict(claim) for claim in claims], "rows": list(rows)}
        path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return 0 if all(claim.holds for claim in claims) else 1
