"""The frozen base a plan trains on: lean where the passes know the model, generic elsewhere."""

from __future__ import annotations

from pathlib import Path

import torch

from edge_sdk.compute.execution import Execution
from edge_sdk.errors import ModelError
from edge_sdk.lean.base import open_lean_base
from edge_sdk.model.lean_eligibility import why_not_lean
from edge_sdk.model.model_folder import read_config
from edge_sdk.training.lean_kernels import lean_warm_up
from edge_sdk.training.local_steps import TrainableBase
from edge_sdk.wire.task import BaseModel


def warm_up_for(folder: Path, spec: BaseModel, execution: Execution, threads: int) -> None:
    """Import and start everything a round uses, before memory may run short.

    Raises:
        ModelError: The model or the number format cannot be used here.
    """
    if _why_generic(folder, spec) is None:
        lean_warm_up(execution.products, threads)
    else:
        from edge_sdk.training.kernels import warm_up  # imports transformers

        warm_up(execution.quantization, threads)


def load_trainable(
    folder: Path, spec: BaseModel, execution: Execution, threads: int | None = None
) -> TrainableBase:
    """Load, or map, a frozen base model as an execution says.

    Args:
        folder: Hugging Face folder of the model.
        spec: Task type and labels.
        execution: Decides number format and products.
        threads: CPU threads of the whole process; None leaves them as they are.

    Raises:
        ModelError: It cannot be used, or not in that format.
        StorageError: The prepared base cannot be written.
    """
    reason = _why_generic(folder, spec)
    if reason is None:
        return open_lean_base(
            folder,
            execution.quantization,
            execution.products,
            threads,
            computes_in_bf16=execution.computes_in_bf16,
        )
    if execution.quantization == "int8" or execution.products == "int8":
        raise ModelError(
            f"8-bit integers work in the hand-written passes alone, and {reason}: choose nf4, "
            "bf16 or fp32"
        )
    from edge_sdk.general.base_model import load_base  # imports transformers

    return load_base(
        folder, spec, execution.quantization, threads, computes_in_bf16=execution.computes_in_bf16
    )


def _why_generic(folder: Path, spec: BaseModel) -> str | None:
    """Return why a model is trained by autograd, or None."""
    if torch.cuda.is_available():
        return "they run on a CPU alone"
    return why_not_lean(read_config(folder), spec.task_type)
