"""Named arrays to safetensors bytes and back, with a digest and without torch.

A body holds, for each adapted layer, ``<layer>.lora_A (k, d_in)`` and ``<layer>.lora_B
(d_out, k)``, then the dense parameters under their own names. Numbers travel as fp32 or bf16
and are float32 in memory. A JSON message may ride along in the file's metadata. Updates may
travel in fewer bits, see :mod:`edge_sdk.wire.update_body`.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import math
from collections.abc import Mapping
from typing import Any

import ml_dtypes
import msgspec
import numpy as np
import safetensors
import safetensors.numpy
from numpy.typing import NDArray

from edge_sdk.errors import DigestMismatch, MalformedPayload, NotFinite
from edge_sdk.wire.task import AdapterSpec, WireDtype

Arrays = dict[str, NDArray[np.float32]]
WireArrays = dict[str, NDArray[Any]]
"""In the number format they travel in: float32 or bfloat16."""

Shapes = dict[str, tuple[int, ...]]

MEDIA_TYPE = "application/vnd.safetensors"
"""Content type of every tensor body."""

_METADATA_KEY = "edge_sdk"  # one key only: the order of several is not stable in the file
_NUMBERS = {"fp32": np.dtype("<f4"), "bf16": np.dtype(ml_dtypes.bfloat16)}
_FORMAT = {"fp32": "F32", "bf16": "BF16"}
_HEADER_BYTES_PER_TENSOR = 256
_HEADER_BYTES_PER_RANK = 8  # a slice may say which ranks it holds
HEADER_BYTES_FIXED = 64 * 1024
"""Most bytes of a body's header beside what it says of its tensors: the message, mainly."""


def adapter_shapes(adapter: AdapterSpec, k: int) -> Shapes:
    """Return the name and shape of every tensor in a body at rank ``k``, in the task's order."""
    shapes: Shapes = {}
    for layer in adapter.layers:
        shapes[f"{layer.name}.lora_A"] = (k, layer.d_in)
        shapes[f"{layer.name}.lora_B"] = (layer.d_out, k)
    for dense in adapter.dense:
        shapes[dense.name] = tuple(dense.shape)
    return shapes


def number_bytes(wire_dtype: WireDtype) -> int:
    """Return the bytes of one number in a tensor body."""
    return int(_NUMBERS[wire_dtype].itemsize)


def dense_bytes(adapter: AdapterSpec) -> int:
    """Return the bytes of the dense parameters in a body: the part that does not follow k."""
    item_bytes = number_bytes(adapter.wire_dtype)
    return item_bytes * sum(math.prod(dense.shape) for dense in adapter.dense)


def body_limit(adapter: AdapterSpec, k: int) -> int:
    """Return the most bytes a well-formed body at rank ``k`` can have, headers included."""
    shapes = adapter_shapes(adapter, k)
    item_bytes = number_bytes(adapter.wire_dtype)
    data = sum(math.prod(shape) for shape in shapes.values()) * item_bytes
    names = sum(len(name.encode()) for name in shapes)
    ranks = len(adapter.layers) * k * _HEADER_BYTES_PER_RANK
    return data + names + ranks + len(shapes) * _HEADER_BYTES_PER_TENSOR + HEADER_BYTES_FIXED


def digest(body: bytes) -> str:
    """Return the SHA-256 of a body as 64 hex digits."""
    return hashlib.sha256(body).hexdigest()


def content_digest(body: bytes) -> str:
    """Return the ``Content-Digest`` header of a body (RFC 9530)."""
    return content_digest_of(digest(body))


def content_digest_of(hex_digest: str) -> str:
    """Return the ``Content-Digest`` header for a SHA-256 of 64 hex digits."""
    return f"sha-256=:{base64.b64encode(bytes.fromhex(hex_digest)).decode()}:"


def check_content_digest(body: bytes, header: str | None) -> str:
    """Compare a body with its ``Content-Digest`` header and return its hex digest.

    Raises:
        DigestMismatch: The header is missing, malformed, or of other bytes.
    """
    announced = (header or "").strip()
    try:
        if not (announced.startswith("sha-256=:") and announced.endswith(":")):
            raise ValueError
        expected = base64.b64decode(announced[len("sha-256=:") : -1], validate=True).hex()
    except (ValueError, binascii.Error):
        raise DigestMismatch(
            f"Content-Digest is {header!r}; expected sha-256=:<base64>: (RFC 9530)"
        ) from None
    actual = digest(body)
    if actual != expected:
        raise DigestMismatch(
            f"the body has SHA-256 {actual[:12]}… but was announced as {expected[:12]}…: "
            "it changed on the way, send it again"
        )
    return actual


def encode(
    arrays: Mapping[str, NDArray[np.floating]], dtype: WireDtype = "fp32", message: bytes = b""
) -> bytes:
    """Encode named arrays, and optionally one JSON message, as safetensors bytes.

    The bytes are the same for the same input on every machine.
    """
    tensors = {
        name: np.ascontiguousarray(array, dtype=_NUMBERS[dtype]) for name, array in arrays.items()
    }
    return write_tensors(tensors, message)


def write_tensors(tensors: Mapping[str, NDArray[Any]], message: bytes) -> bytes:
    """Write C-contiguous arrays of any number format, and one JSON message, as safetensors."""
    return safetensors.numpy.save(dict(tensors), {_METADATA_KEY: message.decode()})


def decode(body: bytes, expected: Shapes, dtype: WireDtype = "fp32") -> tuple[Arrays, bytes]:
    """Decode a body whose tensors must be exactly the expected ones.

    Args:
        body: Safetensors bytes; the caller has bounded their number.
        expected: Name and shape of every tensor that must be there, and no other.
        dtype: Number format the task prescribes.

    Returns:
        The arrays as float32, and the JSON message that rode along (empty if none).

    Raises:
        MalformedPayload: Not safetensors, or other names, shapes or number formats.
        NotFinite: A tensor holds NaN or infinity.
    """
    tensors, message = read_tensors(body, dict.fromkeys(expected, _FORMAT[dtype]), expected)
    arrays: Arrays = {}
    for name, shape in expected.items():
        numbers = np.frombuffer(tensors.pop(name), dtype=_NUMBERS[dtype])
        arrays[name] = numbers.astype(np.float32, copy=False).reshape(shape)
        if not np.isfinite(arrays[name]).all():
            raise NotFinite(f"tensor {name} holds NaN or infinity")
    return arrays, message


def read_tensors(
    body: bytes, formats: Mapping[str, str], shapes: Shapes
) -> tuple[dict[str, bytes], bytes]:
    """Read a body whose tensors must be exactly these, and leave their numbers as bytes.

    Args:
        body: Safetensors bytes; the caller has bounded their number.
        formats: Name and number format, as safetensors calls it, of every tensor.
        shapes: Their shapes.

    Returns:
        The bytes of each tensor, and the JSON message that rode along (empty if none).

    Raises:
        MalformedPayload: Not safetensors, or other names, shapes or number formats.
    """
    tensors, message = _parsed(body)
    if tensors.keys() != shapes.keys():
        odd = sorted(tensors.keys() ^ shapes.keys())
        raise MalformedPayload(
            f"the body has {len(tensors)} tensors, the task {len(shapes)}; "
            f"first difference: {odd[0]!r}"
        )
    for name, shape in shapes.items():
        tensor = tensors[name]
        if tuple(tensor["shape"]) != shape or tensor["dtype"] != formats[name]:
            raise MalformedPayload(
                f"tensor {name} is {tensor['dtype']} {tuple(tensor['shape'])}; "
                f"the task says {formats[name]} {shape}"
            )
    return {name: tensor["data"] for name, tensor in tensors.items()}, message


def read_message(body: bytes) -> bytes:
    """Return the JSON message that rides along in a body, empty if none.

    Raises:
        MalformedPayload: Not safetensors.
    """
    return _parsed(body)[1]


def view(body: bytes, expected: Shapes, dtype: WireDtype = "fp32") -> WireArrays:
    """Return the tensors of a body that :func:`decode` has accepted before, without a copy.

    Args:
        body: The same bytes, as their digest says.
        expected: Name and shape of its tensors.
        dtype: Its number format, which is that of the arrays.
    """
    starts = tensor_starts(body)
    return {
        name: np.frombuffer(body, _NUMBERS[dtype], math.prod(shape), starts[name]).reshape(shape)
        for name, shape in expected.items()
    }


def tensor_starts(body: bytes) -> dict[str, int]:
    """Return where in a body that was accepted before the numbers of each tensor begin."""
    header, data = _header(body)
    header.pop("__metadata__", None)
    return {name: data + int(tensor["data_offsets"][0]) for name, tensor in header.items()}


def _parsed(body: bytes) -> tuple[dict[str, Any], bytes]:
    try:
        tensors = dict(safetensors.deserialize(body))  # type: ignore[no-untyped-call]
        return tensors, _metadata(body)
    except (safetensors.SafetensorError, ValueError) as error:
        raise MalformedPayload(f"the body is not a safetensors file: {error}") from error


def _metadata(body: bytes) -> bytes:
    header, _ = _header(body)
    metadata = header.get("__metadata__") or {}  # null is legal, and means none
    return str(metadata.get(_METADATA_KEY, "")).encode()


def _header(body: bytes) -> tuple[dict[str, Any], int]:
    """Return what a body says of its tensors, and where their data begins."""
    data = 8 + int.from_bytes(body[:8], "little")
    header: dict[str, Any] = msgspec.json.decode(body[8:data])
    return header, data
