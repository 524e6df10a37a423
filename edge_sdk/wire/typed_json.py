"""Decode JSON into typed values, safely from many threads at once."""

from __future__ import annotations

import threading
from typing import Any, TypeVar, cast

import msgspec

Value = TypeVar("Value")

_preparing = threading.Lock()
_decoders: dict[Any, msgspec.json.Decoder[Any]] = {}


def decode_json(body: bytes | str, kind: type[Value]) -> Value:
    """Decode JSON into a value of a type, checking every field.

    msgspec works a type out when it first meets it, and crashes the process when a second thread
    meets it meanwhile; here one thread at a time prepares the decoders, which all share.

    Raises:
        msgspec.DecodeError: The body is not JSON, or not of this type; says which field. Also if
            it is nested deeper than Python allows calls.
        UnicodeDecodeError: A text in the body is not UTF-8.
    """
    decoder = _decoders.get(kind)
    if decoder is None:
        with _preparing:
            decoder = _decoders.setdefault(kind, msgspec.json.Decoder(kind))
    try:
        return cast(Value, decoder.decode(body))
    except RecursionError as error:
        raise msgspec.DecodeError("JSON is nested too deeply") from error
