"""Convert an adapter when it is fetched, so that swapping it in only has to open a file."""

from __future__ import annotations

import logging
from importlib.util import find_spec
from pathlib import Path

from edge_sdk.errors import EdgeError

log = logging.getLogger("edge_sdk")


def convert_ahead(adapter: Path, base: Path) -> None:
    """Write the file that a session opens when it is told to use a PEFT folder.

    It does nothing where ONNX Runtime is not installed or does not compute the base model. What
    goes wrong is logged: the session converts the folder itself, and says why if it cannot.

    Args:
        adapter: PEFT folder.
        base: Folder of the base model.
    """
    if find_spec("onnxruntime") is None or find_spec("onnx") is None:
        return
    from edge_sdk.inference.adapter_file import convert_peft_folder, task_type_of
    from edge_sdk.inference.export import why_not_exported
    from edge_sdk.model.model_folder import read_config
    from edge_sdk.model.model_shape import read_shape

    try:
        config, task_type = read_config(base), task_type_of(adapter)
        if why_not_exported(config, task_type) is None:
            convert_peft_folder(adapter, read_shape(config, task_type, num_labels=2))
    except EdgeError as error:
        log.warning("the adapter is converted when it is used, not now: %s", error)
