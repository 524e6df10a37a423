"""An ONNX graph under construction: nodes, inputs, outputs, and weights as they are written."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from edge_sdk.inference.blocks import BLOCK, block_shapes, round_to_blocks
from edge_sdk.inference.nf4 import BLOCK as NF4_BLOCK
from edge_sdk.inference.nf4 import code_nf4, pack_nf4, round_to_nf4
from edge_sdk.inference.weight_file import WeightFile
from edge_sdk.inference.weight_format import WeightFormat
from edge_sdk.inference.weights import Weights

CONTRIB = "com.microsoft"
"""Domain of ONNX Runtime's own operators."""

FLOAT, BFLOAT16 = onnx.TensorProto.FLOAT, onnx.TensorProto.BFLOAT16
INT32, INT64 = onnx.TensorProto.INT32, onnx.TensorProto.INT64

_OPSET, _IR_VERSION = 20, 10
_PART_NUMBERS = 1 << 22


class Graph:
    """One graph and the file of its weights.

    Args:
        weights: Of the model.
        file: Where weights are written to as they are added.
        weight_format: Of the frozen matrices.
    """

    def __init__(self, weights: Weights, file: WeightFile, weight_format: WeightFormat) -> None:
        self.weights = weights
        self._format: WeightFormat = weight_format
        self._file = file
        self._nodes: list[onnx.NodeProto] = []
        self._inputs: list[onnx.ValueInfoProto] = []
        self._outputs: list[onnx.ValueInfoProto] = []
        self._initializers: list[onnx.TensorProto] = []

    def add_input(self, name: str, kind: int, shape: Sequence[int | str]) -> str:
        """Add what a caller gives on every run."""
        self._inputs.append(helper.make_tensor_value_info(name, kind, shape))
        return name

    def add_slot(self, name: str, shape: Sequence[int | str]) -> str:
        """Add what an adapter may give; without one, the sizes that are text are 0."""
        self.add_input(name, FLOAT, shape)
        empty = np.zeros([size if isinstance(size, int) else 0 for size in shape], np.float32)
        self._initializers.append(numpy_helper.from_array(empty, name))
        return name

    def add_output(self, name: str, shape: Sequence[int | str]) -> str:
        """Declare a value that a caller gets."""
        self._outputs.append(helper.make_tensor_value_info(name, FLOAT, shape))
        return name

    def add_constant(self, name: str, values: NDArray[Any]) -> str:
        """Add a few numbers, kept in the graph itself."""
        self._initializers.append(numpy_helper.from_array(np.asarray(values, order="C"), name))
        return name

    def add_node(
        self,
        operator: str,
        inputs: Sequence[str],
        output: str | Sequence[str],
        *,
        domain: str = "",
        **attributes: Any,
    ) -> str:
        """Add a node; return its first output."""
        outputs = [output] if isinstance(output, str) else list(output)
        self._nodes.append(
            helper.make_node(operator, inputs, outputs, outputs[0], domain=domain, **attributes)
        )
        return outputs[0]

    def add_vector(self, name: str, size: int) -> str:
        """Add a norm weight or bias of the model, in fp32."""
        return self.add_constant(name, self.weights.array(name, (size,)).astype(np.float32))

    def add_table(self, name: str, values: NDArray[np.float32]) -> str:
        """Add a matrix of which single rows are read, in fp32."""
        self._initializers.append(self._file.add(name, FLOAT, values.shape, [values]))
        return name

    def add_embedding(self, name: str, rows: int, columns: int) -> str:
        """Add an embedding: bf16 if the other matrices are rounded, else fp32.

        It is only looked up in, so just the rows that are read come into memory.
        """
        kind, dtype = (FLOAT, np.float32) if self._is_exact else (BFLOAT16, ml_dtypes.bfloat16)
        source = self.weights.array(name, (rows, columns))
        parts = (part.astype(dtype) for part in self._row_parts(source, columns))
        self._initializers.append(self._file.add(name, kind, (rows, columns), parts))
        return name

    def look_up(self, table: str, tokens: str, output: str) -> str:
        """Add the rows of an embedding for tokens: ``(1, n) -> (1, n, columns)`` in fp32."""
        if self._is_exact:
            return self.add_node("Gather", [table, tokens], output)
        rows = self.add_node("Gather", [table, tokens], f"{output}.rows")
        return self.add_node("Cast", [rows], output, to=FLOAT)

    def add_linear(self, slot: str, layers: Mapping[str, int], x: str, d_in: int) -> str:
        """Add frozen layers that share an input as one, with the slots of their adapter.

        The slots are ``<slot>.lora_A (d_in, rank)`` and ``<slot>.lora_B (rank, width)``, the
        scaling folded into B. Each slot's rank is a size of its own: where two were one, memory
        of an adapted layer would be planned for one that is not.

        Args:
            slot: Name adapters know the layers by.
            layers: Width of the output by the layer's name in the model's files.
            x: Name of the input ``(1, n, d_in)``.
            d_in: Width of the input.
        """
        width = sum(layers.values())
        tensors = {f"{name}.weight": n for name, n in layers.items()}
        y = self._add_product(slot, tensors, x, d_in, self._format)
        a = self.add_slot(f"{slot}.lora_A", (d_in, f"{slot}.rank"))
        b = self.add_slot(f"{slot}.lora_B", (f"{slot}.rank", width))
        narrow = self.add_node("MatMul", [x, a], f"{slot}.narrow")
        wide = self.add_node("MatMul", [narrow, b], f"{slot}.wide")
        return self.add_node("Add", [y, wide], f"{slot}.adapted")

    def add_head(self, name: str, tensor: str, x: str, d_in: int, d_out: int) -> str:
        """Add a product with a matrix outside the blocks ``(d_out, d_in)``, and its bias.

        It is rounded to 8 bits: a head in 4 costs much accuracy and saves little.
        """
        weight_format: WeightFormat = "fp32" if self._is_exact else "int8"
        return self._add_product(name, {tensor: d_out}, x, d_in, weight_format)

    @property
    def _is_exact(self) -> bool:
        return self._format == "fp32"

    def _add_product(
        self,
        name: str,
        tensors: Mapping[str, int],
        x: str,
        d_in: int,
        weight_format: WeightFormat,
    ) -> str:
        """Add a product with matrices of the model, one below the other, and their biases."""
        sources = [self.weights.array(tensor, (n, d_in)) for tensor, n in tensors.items()]
        if weight_format == "fp32":
            y = self.add_node("MatMul", [x, self._add_turned(name, sources)], f"{name}.y")
        elif weight_format == "int4" and all(source.size % NF4_BLOCK == 0 for source in sources):
            y = self._add_nf4_product(name, sources, x)
        else:
            y = self._add_blocks_product(name, sources, x, has_nf4=weight_format != "int8")
        bias = self._add_bias(name, tensors)
        return self.add_node("Add", [y, bias], f"{name}.biased") if bias else y

    def _add_nf4_product(self, name: str, sources: Sequence[NDArray[Any]], x: str) -> str:
        """Add a product with matrices in NF4's own codes; blocks end where a matrix does."""
        columns = sources[0].shape[1]
        count = sum(source.size for source in sources)
        found: list[NDArray[np.float32]] = []

        def parts() -> Iterator[NDArray[np.uint8]]:
            for part in chain.from_iterable(self._row_parts(x, columns) for x in sources):
                codes, scales = code_nf4(part)
                found.append(scales)
                yield pack_nf4(codes)

        self._initializers += [
            self._file.add(f"{name}.codes", onnx.TensorProto.UINT8, (count // 2,), parts()),
            self._file.add(f"{name}.scales", FLOAT, (count // NF4_BLOCK,), found),
        ]
        return self.add_node(
            "MatMulBnb4",
            [x, f"{name}.codes", f"{name}.scales"],
            f"{name}.y",
            domain=CONTRIB,
            K=columns,
            N=count // columns,
            block_size=NF4_BLOCK,
            quant_type=1,  # NF4
        )

    def _add_blocks_product(
        self, name: str, sources: Sequence[NDArray[Any]], x: str, *, has_nf4: bool
    ) -> str:
        """Add a product with matrices in 8 bits, of their own values or those of NF4."""
        rows, columns = sum(len(source) for source in sources), sources[0].shape[1]
        shape_of_codes, shape_of_scales = block_shapes(rows, columns)
        found: list[NDArray[np.float32]] = []

        def parts() -> Iterator[NDArray[np.uint8]]:
            for part in chain.from_iterable(self._row_parts(x, columns) for x in sources):
                blocks = round_to_blocks(round_to_nf4(part) if has_nf4 else part)
                found.append(blocks.scales)
                yield blocks.codes

        self._initializers += [
            self._file.add(f"{name}.codes", onnx.TensorProto.UINT8, shape_of_codes, parts()),
            self._file.add(f"{name}.scales", FLOAT, shape_of_scales, found),
        ]
        return self.add_node(
            "MatMulNBits",
            [x, f"{name}.codes", f"{name}.scales"],
            f"{name}.y",
            domain=CONTRIB,
            K=columns,
            N=rows,
            bits=8,
            block_size=BLOCK,
            accuracy_level=4,  # products of 8-bit integers
        )

    def write(self, path: Path) -> None:
        """Write the graph without its external weights.

        Raises:
            OSError: The disk is full or refuses.
        """
        graph = helper.make_graph(
            self._nodes, "edge-sdk", self._inputs, self._outputs, self._initializers
        )
        model = helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid("", _OPSET), helper.make_opsetid(CONTRIB, 1)],
            ir_version=_IR_VERSION,
            producer_name="edge-sdk",
        )
        path.write_bytes(model.SerializeToString())

    def _add_bias(self, name: str, tensors: Mapping[str, int]) -> str:
        """Add the biases of matrices, zero for those that have none; nothing if none has."""
        sizes = {tensor.removesuffix("weight") + "bias": n for tensor, n in tensors.items()}
        if not any(self.weights.has(bias) for bias in sizes):
            return ""
        found = [
            self.weights.array(bias, (n,)) if self.weights.has(bias) else np.zeros(n)
            for bias, n in sizes.items()
        ]
        return self.add_constant(f"{name}.bias", np.concatenate(found).astype(np.float32))

    def _add_turned(self, name: str, sources: Sequence[NDArray[Any]]) -> str:
        """Add matrices side by side, their columns as rows."""
        shape = (sources[0].shape[1], sum(len(source) for source in sources))
        pieces = zip(*(self._row_parts(source.T, shape[1]) for source in sources), strict=True)
        parts = (np.concatenate(piece, axis=1, dtype=np.float32) for piece in pieces)
        self._initializers.append(self._file.add(f"{name}.matrix", FLOAT, shape, parts))
        return f"{name}.matrix"

    def _row_parts(self, matrix: NDArray[Any], width: int) -> Iterator[NDArray[Any]]:
        """Yield as many rows of ``width`` as fit a part; keep no page of the model in memory.

        A part has a multiple of NF4's block in rows, so that its blocks are those of the matrix.
        """
        step = max(1, _PART_NUMBERS // width // NF4_BLOCK) * NF4_BLOCK
        for start in range(0, len(matrix), step):
            yield matrix[start : start + step]
            self.weights.forget()
