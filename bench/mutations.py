"""Damage to valid bytes: of single bytes, of the JSON in them, of a tensor file's header."""

from __future__ import annotations

import json
import random
from typing import Any

_LENGTH_BYTES = 8
_NUMBERS = (b"\xff\x7f", b"\x80\x7f", b"\x80\xff", b"\x7f\x7f")  # the upper halves of floats
_MOST_BYTES = 1 << 18
_MOST_CHANGES = 4
_DEPTH = 20_000
_TOKENS = (
    b"null",
    b"NaN",
    b"-Infinity",
    b"1e999",
    b"-0",
    b"[]",
    b"{}",
    b'""',
    b"\\ud800",
    b"\\u0000",
    b"\xff\xfe",
    b"\xed\xa0\x80",
    b"\0",
    b"__metadata__",
    b"data_offsets",
    b"[" * _DEPTH,
    b'{"a":' * _DEPTH,
    b"9" * 5000,
)
_DEEP = "a place for a value nested beyond measure"
_VALUES: tuple[Any, ...] = (
    None,
    None,
    _DEEP,
    _DEEP,
    True,
    -1,
    0,
    2**53,
    2**63,
    2**64,
    10**400,
    0.5,
    1e308,
    "",
    "x",
    "\0",
    "\u202e",
    "é" * 300,
    "../../etc/passwd",
    "F64",
    "bf16",
    "ab" * 32,
    [],
    {},
    [[]],
    [0] * 1000,
    {"edge_sdk": "{}"},
)


def mutate(body: bytes, rng: random.Random) -> bytes:
    """Return a body with one to four kinds of damage; seldom none.

    Args:
        body: Valid JSON, a tensor file, or anything else.
        rng: Seeded, so that a run can be repeated.
    """
    for _ in range(rng.randrange(_MOST_CHANGES + 1)):
        change = rng.choice((_damage_bytes, _damage_bytes, _damage_json, _damage_header))
        body = change(body, rng)[:_MOST_BYTES]
    return body


def _damage_bytes(body: bytes, rng: random.Random) -> bytes:
    start, stop = sorted((rng.randrange(len(body) + 1), rng.randrange(len(body) + 1)))
    kind = rng.randrange(8)
    if kind == 0:
        return body[:start]
    if kind == 1:
        return body[:start] + body[stop:]
    if kind == 2:
        return body[:start] + rng.choice(_TOKENS) + body[start:]
    if kind == 3:
        return body[:stop] + body[start:stop] * rng.randrange(1, 50) + body[stop:]
    if kind == 4:
        length = rng.choice((0, 1, 2, 255, 2**31, 2**32, 2**62, 2**64 - 1, len(body)))
        return length.to_bytes(_LENGTH_BYTES, "little") + body[_LENGTH_BYTES:]
    if kind == 5:
        return body[: start & ~1] + rng.choice(_NUMBERS) + body[(start & ~1) + 2 :]
    changed = bytearray(body)
    for _ in range(rng.randrange(1, 9) if body else 0):
        changed[rng.randrange(len(body))] = rng.randrange(256)
    return bytes(changed)


def _damage_json(body: bytes, rng: random.Random) -> bytes:
    try:
        tree = json.loads(body)
    except (ValueError, RecursionError):
        return _damage_header(body, rng)
    return _as_json(_damage_tree(tree, rng))


def _damage_header(body: bytes, rng: random.Random) -> bytes:
    """Damage the JSON header of a tensor file, and let its length be right again."""
    stop = _LENGTH_BYTES + int.from_bytes(body[:_LENGTH_BYTES], "little")
    try:
        tree = json.loads(body[_LENGTH_BYTES:stop])
    except (ValueError, RecursionError):
        return _damage_bytes(body, rng)
    header = _as_json(_damage_tree(tree, rng))
    return len(header).to_bytes(_LENGTH_BYTES, "little") + header + body[stop:]


def _damage_tree(tree: Any, rng: random.Random) -> Any:
    """Return a tree of which one node is gone, another, twice there or elsewhere."""
    if isinstance(tree, dict) and tree and rng.random() < 0.9:
        return _damage_object(tree, rng)
    if isinstance(tree, list) and tree and rng.random() < 0.9:
        place = rng.randrange(len(tree))
        if rng.random() < 0.2:
            return tree[:place] + tree[place + 1 :]
        if rng.random() < 0.2:
            return tree + [tree[place]] * rng.randrange(1, 20)
        return [_damage_tree(x, rng) if i == place else x for i, x in enumerate(tree)]
    if isinstance(tree, int) and rng.random() < 0.5:
        return tree + rng.choice((-1, 1, 4, -4, 2**32))
    return rng.choice(_VALUES)


def _damage_object(tree: dict[str, Any], rng: random.Random) -> dict[str, Any]:
    name = rng.choice(sorted(tree))
    kind = rng.randrange(10)
    if kind == 0:
        return {key: value for key, value in tree.items() if key != name}
    if kind == 1:
        return {**tree, rng.choice(("x", "", "__metadata__", "\0")): rng.choice(_VALUES)}
    if kind in (2, 3):
        return {**tree, name: rng.choice(_VALUES)}
    if kind == 4:
        return {**tree, name: tree[rng.choice(sorted(tree))]}
    return {**tree, name: _damage_tree(tree[name], rng)}


def _as_json(tree: Any) -> bytes:
    text = json.dumps(tree).encode("utf-8", "surrogatepass")
    return text.replace(f'"{_DEEP}"'.encode(), b"[" * _DEPTH + b"]" * _DEPTH)
