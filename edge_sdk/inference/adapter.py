"""An adapter file open in memory, checked against the graph whose slots it fills."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path

import onnxruntime

from edge_sdk.errors import AdapterError
from edge_sdk.inference.mapped_adapter import map_adapter

Slots = Mapping[str, Sequence[int | str]]
"""Shape of everything an adapter may give, by name; text stands for any size."""


class Adapter:
    """An adapter in memory, as the slots of its base's graph take it.

    Args:
        path: Its file.
        values: One for every slot it fills.
    """

    def __init__(self, path: Path, values: Mapping[str, onnxruntime.OrtValue]) -> None:
        self.path = path
        self.values = values

    @property
    def label_count(self) -> int:
        """How many labels the classifier's head in it has; 0 if it holds none."""
        names = sorted(x for x in self.values if not x.endswith((".lora_A", ".lora_B")))
        heads = [self.values[name].shape()[0] for name in names]
        return int(heads[-1]) if heads else 0  # by name, a head's output layer comes last

    @cached_property
    def run_options(self) -> onnxruntime.RunOptions:
        """Options that make a run use it; runs with bound memory ignore them."""
        self._lora = onnxruntime.LoraAdapter()  # the options do not keep it alive
        self._lora.Load(str(self.path))
        options = onnxruntime.RunOptions()
        options.add_active_adapter(self._lora)
        return options


def open_adapter(path: Path, slots: Slots) -> Adapter:
    """Map an adapter file and check that it fits a base.

    Args:
        path: As :func:`edge_sdk.inference.adapter_file.write_adapter` writes it.
        slots: Of the base's graph.

    Raises:
        AdapterError: The file is damaged or for another base; says the first thing that differs.
    """
    values: dict[str, onnxruntime.OrtValue] = {}
    for name, array in map_adapter(path):
        if not _fits(array.shape, slots.get(name)):
            raise AdapterError(
                f"the adapter in {path} has {name} of shape {list(array.shape)}, which this base "
                "model does not take: use the base model it was converted for"
            )
        values[name] = onnxruntime.OrtValue.ortvalue_from_numpy(array)  # of the same memory
    return Adapter(path, values)


def _fits(found: Sequence[int], wanted: Sequence[int | str] | None) -> bool:
    return (
        wanted is not None
        and len(found) == len(wanted)
        and all(
            isinstance(size, str) or size == own for own, size in zip(found, wanted, strict=True)
        )
    )
