"""Conditional and partial answers (RFC 9110): known bodies, and the part that is asked for."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Header

from edge_sdk.errors import RangeNotSatisfiable

_RANGE = re.compile(r"bytes=(?P<first>\d{0,18})-(?P<last>\d{0,18})", re.IGNORECASE)
_ETAG = re.compile(r'(?:W/)?"[^"]*"')


@dataclass(frozen=True, slots=True, kw_only=True)
class Conditions:
    """What a request says about the answer it wants.

    Attributes:
        if_none_match: Entity tags of what the asker has.
        range: The part it wants.
        if_range: Entity tag of the body it has the rest of.
    """

    if_none_match: str | None = None
    range: str | None = None
    if_range: str | None = None

    def has_body(self, digest: str) -> bool:
        """Say whether the asker has the body of a digest already."""
        if self.if_none_match is None:
            return False
        if self.if_none_match.strip() == "*":
            return True
        known = {tag.removeprefix("W/") for tag in _ETAG.findall(self.if_none_match)}
        return etag(digest) in known

    def part(self, digest: str, size_bytes: int) -> tuple[int, int] | None:
        """Return where the wanted part starts and stops; None is the whole body.

        Several ranges, other units and what cannot be read are answered with the whole body, as
        the standard allows, and so is a part of a body that is no longer this one.

        Raises:
            RangeNotSatisfiable: Nothing of the part is in the body.
        """
        asked = _RANGE.fullmatch((self.range or "").strip())
        if asked is None or self.if_range not in (None, etag(digest)):
            return None
        first, last = asked["first"], asked["last"]
        if not first:
            return _tail(int(last), size_bytes) if last else None
        if last and int(last) < int(first):
            return None
        if int(first) >= size_bytes:
            raise _beyond(f"bytes from {first}", size_bytes)
        return int(first), min(int(last) + 1, size_bytes) if last else size_bytes


def etag(digest: str) -> str:
    """Return the strong entity tag of a body: its SHA-256 in quotes."""
    return f'"{digest}"'


def _tail(length: int, size_bytes: int) -> tuple[int, int]:
    if length == 0:
        raise _beyond("the last 0 bytes", size_bytes)
    return max(0, size_bytes - length), size_bytes


def _beyond(what: str, size_bytes: int) -> RangeNotSatisfiable:
    return RangeNotSatisfiable(
        f"{what} of a body of {size_bytes}: ask for a part of it", size_bytes
    )


def _read(
    if_none_match: Annotated[str | None, Header(description="Entity tags you have")] = None,
    range_: Annotated[str | None, Header(alias="Range", description="`bytes=<first>-`")] = None,
    if_range: Annotated[str | None, Header(description="Entity tag of what you have")] = None,
) -> Conditions:
    return Conditions(if_none_match=if_none_match, range=range_, if_range=if_range)


Asked = Annotated[Conditions, Depends(_read)]
