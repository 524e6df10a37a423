"""What runs on this device taught about its predictions, kept for the next plan."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import msgspec

from edge_sdk.compute.execution import Quantization
from edge_sdk.errors import StorageError
from edge_sdk.files.whole_file import write_whole
from edge_sdk.planning.cost import Correction, Cost
from edge_sdk.wire.typed_json import decode_json

_FILE = "calibration.json"


class Calibration:
    """The corrections of one device, in its state folder.

    A damaged file counts as none: the next run is planned with the wide margins and writes it
    anew.

    Args:
        folder: State folder.
        fingerprint: Of the device and its libraries; another one starts from nothing.
    """

    def __init__(self, folder: Path, fingerprint: str) -> None:
        self._path = folder / _FILE
        self._fingerprint = fingerprint

    def corrections(self, model_digest: str) -> dict[Quantization, Correction]:
        """Return what is known about one base model, by number format."""
        prefix = f"{self._fingerprint}/{model_digest}/"
        known: dict[Quantization, Correction] = {}
        for quantization in get_args(Quantization):
            found = self._read().get(prefix + quantization)
            if found is not None:
                known[quantization] = found
        return known

    def learn(self, model_digest: str, cost: Cost, peak_bytes: int, step_s: float) -> Correction:
        """Remember what a run took, and return the correction for the next.

        Args:
            model_digest: Of the base model.
            cost: What was predicted.
            peak_bytes: Measured peak memory of the process.
            step_s: Measured time of an optimizer step.

        Raises:
            StorageError: The state folder cannot be written.
        """
        known = self._read()
        key = f"{self._fingerprint}/{model_digest}/{cost.execution.quantization}"
        correction = Correction(
            memory_bytes=peak_bytes - cost.need.total,
            time_factor=step_s / cost.step.total,
            runs=known.get(key, Correction()).runs + 1,
        )
        known[key] = correction
        self._write(known)
        return correction

    def _read(self) -> dict[str, Correction]:
        try:
            return decode_json(self._path.read_bytes(), dict[str, Correction])
        except (OSError, msgspec.DecodeError):
            return {}

    def _write(self, known: dict[str, Correction]) -> None:
        content = msgspec.json.format(msgspec.json.encode(known))
        try:
            write_whole(self._path, content)
        except OSError as error:
            raise StorageError(f"{self._path} cannot be written: {error}") from error
