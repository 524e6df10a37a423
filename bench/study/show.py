"""The study's tables for people: on the screen, and in its document."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from bench.study.cells import HEADER, cells
from bench.study.tables import results_path

DOCUMENT = Path("docs") / "results.md"
_PLACE = re.compile(r"(<!-- table ([a-z0-9-]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def print_tables(console: Console, names: Sequence[str]) -> None:
    """Print every table; losses with the half width of their 95 % interval."""
    for name in names:
        lines, caption = cells(name)
        table = Table(*HEADER, title=name, caption=caption)
        for line in lines:
            table.add_row(*line)
        console.print(table)


def filled(document: str) -> str:
    """Return a Markdown document with every table between its two marks, from the stored rows."""
    return _PLACE.sub(lambda place: place[1] + markdown(place[2]) + place[3], document)


def markdown(name: str) -> str:
    """Return a table in Markdown, with its caption; columns that say nothing are left out."""
    if not results_path(name).exists():
        return "\nNot run yet.\n\n"
    lines, caption = cells(name)
    said = [number for number in range(len(HEADER)) if {line[number] for line in lines} - {"", "-"}]
    rows = [list(HEADER), ["---"] * len(HEADER), *lines]
    text = "\n".join("| " + " | ".join(row[number] for number in said) + " |" for row in rows)
    return f"\n{text}\n\n*{caption}.*\n\n"
