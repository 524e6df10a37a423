"""The body of an update: in the numbers of the wire, or in codes of fewer bits.

In codes, a body has two tensors, whatever the number of layers: ``codes`` and ``scales``, those of
every tensor of the task one after the other, each with one row per rank (see
:mod:`edge_sdk.wire.rank_rows`), so that no block holds numbers of two ranks. Dense parameters
are encoded as one row. The report of the device rides along as in every body.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_sdk.errors import NotFinite
from edge_sdk.wire import payload
from edge_sdk.wire.block_codes import (
    CODES,
    SCALE,
    CodeName,
    code_count,
    decode_rows,
    encode_rows,
    encoded_bytes,
    scale_count,
)
from edge_sdk.wire.payload import Arrays
from edge_sdk.wire.rank_rows import each_rank_rows, row_shapes
from edge_sdk.wire.task import AdapterSpec, TaskSpec, UpdateEncoding

_ROUNDING = 2  # ranks and the order of examples come from the same seed: never the same stream


def update_data_bytes(
    shapes: Iterable[tuple[int, int]], encoding: UpdateEncoding, number_bytes: int
) -> int:
    """Return the bytes of an update without its header.

    Args:
        shapes: Rows and width of every tensor, see :func:`edge_sdk.wire.rank_rows.row_shapes`.
        encoding: Of the task.
        number_bytes: Of one number in the task's ``wire_dtype``.
    """
    if encoding == "wire":
        return number_bytes * sum(rows * width for rows, width in shapes)
    return sum(encoded_bytes(shape, encoding) for shape in shapes)


def update_limit(spec: TaskSpec, k: int) -> int:
    """Return the most bytes a well-formed update at rank ``k`` can have, header included."""
    encoding = spec.training.update_encoding
    if encoding == "wire":
        return payload.body_limit(spec.adapter, k)
    shapes = row_shapes(spec.adapter, k).values()
    return sum(encoded_bytes(s, encoding) for s in shapes) + payload.HEADER_BYTES_FIXED


def encode_update(
    update: Mapping[str, NDArray[np.floating]], spec: TaskSpec, seed: int, message: bytes = b""
) -> bytes:
    """Encode an update as its task says; the same arguments give the same bytes.

    Args:
        update: Every tensor of ``adapter_shapes(spec.adapter, k)`` for any k.
        spec: Of the task.
        seed: Of the assignment; decides what is rounded up.
        message: The report of the device.

    Raises:
        NotFinite: A tensor holds NaN, infinity, or what is beyond its encoding.
    """
    encoding = spec.training.update_encoding
    if encoding == "wire":
        return payload.encode(update, spec.adapter.wire_dtype, message)
    source = np.random.PCG64(np.random.SeedSequence(seed, spawn_key=(_ROUNDING,)))
    codes, scales = [], []
    for name, rows in each_rank_rows(update, spec.adapter):
        try:
            some_codes, some_scales = encode_rows(rows.astype(np.float32), encoding, source)
        except NotFinite as error:
            raise NotFinite(f"tensor {name}: {error}") from None
        codes.append(some_codes)
        scales.append(some_scales)
    tensors = {"codes": np.concatenate(codes), "scales": np.concatenate(scales)}
    return payload.write_tensors(tensors, message)


def decode_update(body: bytes, spec: TaskSpec, k: int) -> tuple[Arrays, bytes]:
    """Decode an update that must be of exactly this task and sketch size.

    Args:
        body: Safetensors bytes; the caller has bounded their number.
        spec: Of the task.
        k: Sketch size of the assignment.

    Returns:
        Every tensor of ``adapter_shapes(spec.adapter, k)`` as float32, and the report.

    Raises:
        MalformedPayload: Not safetensors, or other names, shapes or number formats.
        NotFinite: It stands for NaN or infinity.
    """
    adapter, encoding = spec.adapter, spec.training.update_encoding
    if encoding == "wire":
        return payload.decode(body, payload.adapter_shapes(adapter, k), adapter.wire_dtype)
    formats = {"codes": CODES[encoding].format, "scales": "BF16"}
    counts = _counts(adapter, k, encoding)
    tensors, message = payload.read_tensors(body, formats, {n: (c,) for n, c in counts.items()})
    codes = np.frombuffer(tensors["codes"], CODES[encoding].dtype)
    scales = np.frombuffer(tensors["scales"], SCALE)
    arrays = dict(_Decoded(codes, scales, adapter, k, encoding))
    for name, array in arrays.items():
        if not np.isfinite(array).all():
            raise NotFinite(f"tensor {name} holds NaN or infinity")
    return arrays, message


def view_update(body: bytes, spec: TaskSpec, k: int) -> Mapping[str, NDArray[Any]]:
    """Return the tensors of an update that :func:`decode_update` has accepted before.

    Numbers of the wire are not copied; codes are decoded tensor by tensor, when one is asked for.

    Args:
        body: The same bytes, as their digest says.
        spec: Of the task.
        k: Sketch size of the assignment.
    """
    adapter, encoding = spec.adapter, spec.training.update_encoding
    if encoding == "wire":
        return payload.view(body, payload.adapter_shapes(adapter, k), adapter.wire_dtype)
    starts, counts = payload.tensor_starts(body), _counts(adapter, k, encoding)
    dtype = CODES[encoding].dtype
    codes = np.frombuffer(body, dtype, counts["codes"], starts["codes"])
    scales = np.frombuffer(body, SCALE, counts["scales"], starts["scales"])
    return _Decoded(codes, scales, adapter, k, encoding)


class _Decoded(Mapping[str, NDArray[np.float32]]):
    """The tensors that codes and scales stand for, each decoded when it is asked for."""

    def __init__(
        self,
        codes: NDArray[Any],
        scales: NDArray[Any],
        adapter: AdapterSpec,
        k: int,
        encoding: CodeName,
    ) -> None:
        self._codes = codes
        self._scales = scales
        self._encoding: CodeName = encoding
        self._tensor_shapes = payload.adapter_shapes(adapter, k)
        self._row_shapes = row_shapes(adapter, k)
        self._is_turned = {f"{layer.name}.lora_B" for layer in adapter.layers}
        self._starts: dict[str, tuple[int, int]] = {}
        code, scale = 0, 0
        for name, shape in self._row_shapes.items():
            self._starts[name] = code, scale
            code += code_count(shape, encoding)
            scale += scale_count(shape)

    def __getitem__(self, name: str) -> NDArray[np.float32]:
        shape, (code, scale) = self._row_shapes[name], self._starts[name]
        codes = self._codes[code : code + code_count(shape, self._encoding)]
        scales = self._scales[scale : scale + scale_count(shape)]
        rows = decode_rows(codes, scales, shape, self._encoding)
        return rows.T if name in self._is_turned else rows.reshape(self._tensor_shapes[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._row_shapes)

    def __len__(self) -> int:
        return len(self._row_shapes)


def _counts(adapter: AdapterSpec, k: int, encoding: CodeName) -> dict[str, int]:
    shapes = row_shapes(adapter, k).values()
    return {
        "codes": sum(code_count(shape, encoding) for shape in shapes),
        "scales": sum(scale_count(shape) for shape in shapes),
    }
