"""One text in a decoder: keys and values of its tokens so far, written in place as it grows."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from onnxruntime import OrtValue

from edge_sdk.inference.adapter import Adapter
from edge_sdk.inference.decoder import LAST, LENGTH, RESULT, TOKENS, past_names, present_names
from edge_sdk.inference.runtime import Runtime


class Past:
    """A text that grows by tokens.

    Memory is bound once for the whole text: an ordinary run would copy all keys and values for
    every token. Runs with bound memory ignore active adapters, so the adapter's values, which are
    those of its mapped file, are bound as well. The text keeps that adapter until it ends.

    Args:
        runtime: Of a decoder.
        adapter: In use from the first token on; None for the base alone.
        room: Tokens it can have; memory that is never written to is never taken.
        result_size: Numbers in a result.
    """

    def __init__(
        self, runtime: Runtime, adapter: Adapter | None, room: int, result_size: int
    ) -> None:
        self.length = 0
        self._session = runtime.session
        self._binding = self._session.io_binding()
        self._adapter = adapter  # keeps its values alive
        if adapter is not None:
            for name, value in adapter.values.items():
                self._binding.bind_ortvalue_input(name, value)
        self._memory: list[OrtValue] = []  # bound by address: it must outlive the binding
        for layer in range(_layers(runtime)):
            names = zip(past_names(layer), present_names(layer), strict=True)
            for past, present in names:
                memory = self._bind(past, np.zeros(_shape(runtime, past, room), np.float32))
                self._binding.bind_ortvalue_output(present, memory)
                self._memory.append(memory)
        self._last, self._count = np.zeros(1, np.int32), np.zeros((), np.int32)
        self._result: NDArray[np.float32] = np.zeros((1, result_size), np.float32)
        self._memory += [self._bind(LAST, self._last), self._bind(LENGTH, self._count)]
        result = OrtValue.ortvalue_from_numpy(self._result)
        self._binding.bind_ortvalue_output(RESULT, result)
        self._memory.append(result)

    def extend(self, ids: Sequence[int]) -> NDArray[np.float32]:
        """Add tokens; return the result ``(size,)`` after the last one, until the next call."""
        self._tokens = self._bind(TOKENS, np.array([ids], np.int64))
        self.length += len(ids)
        self._last[0] = self.length - 1
        self._count[()] = self.length
        self._session.run_with_iobinding(self._binding)
        return self._result.reshape(-1)

    def rewind(self, length: int) -> None:
        """Forget all tokens but the first ``length``."""
        self.length = length

    def _bind(self, name: str, values: NDArray[np.generic]) -> OrtValue:
        value: OrtValue = OrtValue.ortvalue_from_numpy(values)
        self._binding.bind_ortvalue_input(name, value)
        return value


def _layers(runtime: Runtime) -> int:
    return sum(1 for x in runtime.session.get_inputs() if x.name.endswith(".key"))


def _shape(runtime: Runtime, name: str, room: int) -> list[int]:
    found = next(x.shape for x in runtime.session.get_inputs() if x.name == name)
    return [size if isinstance(size, int) else room for size in found]
