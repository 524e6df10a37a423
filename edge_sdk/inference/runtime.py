"""An export opened in ONNX Runtime: the only place that makes sessions and knows their errors."""

from __future__ import annotations

from pathlib import Path

import onnxruntime
from onnxruntime.capi import onnxruntime_pybind11_state as native

from edge_sdk.errors import ModelError
from edge_sdk.inference.decoder import RESULT
from edge_sdk.inference.export import GRAPH_FILE, ExportRecord, check_export
from edge_sdk.inference.providers import choose_providers

RUNTIME_ERRORS = (
    native.Fail,
    native.InvalidArgument,
    native.InvalidGraph,
    native.InvalidProtobuf,
    native.NoSuchFile,
    native.NotImplemented,
    native.RuntimeException,
    RuntimeError,
    ValueError,
)
"""What ONNX Runtime raises; the classes have nothing in common."""

_ERRORS_ONLY = 3


class Runtime:
    """One base model, ready to run with any adapter of it.

    Args:
        export: Folder of the export.
        threads: CPU threads; None takes one per physical core.

    Attributes:
        record: What the export says of itself.
        session: Of ONNX Runtime; may run in several threads at once.
        slots: Shape of everything an adapter may give, by name; text stands for any size.
        result_size: Numbers in a result; None where the adapter's labels decide.

    Raises:
        ModelError: The export is damaged, or ONNX Runtime refuses it.
    """

    def __init__(self, export: Path, threads: int | None = None) -> None:
        self.record: ExportRecord = check_export(export)
        onnxruntime.disable_telemetry_events()
        options = onnxruntime.SessionOptions()
        options.log_severity_level = _ERRORS_ONLY
        options.intra_op_num_threads = threads or 0
        # A thread that waits by spinning takes the core from the one it waits for, when training
        # or the host app keep the cores busy as well.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.enable_mem_pattern = False  # texts differ in length: each would leave a pattern
        try:
            self.session = onnxruntime.InferenceSession(
                str(export / GRAPH_FILE),
                options,
                providers=choose_providers(onnxruntime.get_available_providers()),
            )
        except RUNTIME_ERRORS as error:
            raise ModelError(f"ONNX Runtime cannot open {export}: {error}") from error
        self.slots = {
            slot.name: list(slot.shape) for slot in self.session.get_overridable_initializers()
        }
        size = next(x.shape[1] for x in self.session.get_outputs() if x.name == RESULT)
        self.result_size: int | None = size if isinstance(size, int) else None
