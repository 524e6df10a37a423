"""Which of ONNX Runtime's execution providers a session uses."""

from __future__ import annotations

from collections.abc import Sequence

_FASTEST_FIRST = (
    "TensorrtExecutionProvider",
    "CUDAExecutionProvider",
    "CPUExecutionProvider",
)


def choose_providers(available: Sequence[str]) -> list[str]:
    """Return the providers to use, the fastest first; the CPU's is always the last.

    Only the CPU's is measured and tested. The others come with another build of ONNX Runtime; what
    they cannot compute, such as attention in fp32, stays on the CPU.
    """
    return [name for name in _FASTEST_FIRST if name in available]
