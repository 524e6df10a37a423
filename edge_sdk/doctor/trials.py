"""The trials of libraries, one a name: ``python -m edge_sdk.doctor.trials NAME``.

Each prints one finding as JSON. What they say of CUDA was not measured on hardware.
"""

from __future__ import annotations

import importlib.util
import platform
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from edge_sdk.doctor.finding import Finding, Outcome

_TRAIN = "pip install 'edge-sdk[train]'"
_INFER = "pip install 'edge-sdk[infer]'"
_JETSON = "install the torch build made for this JetPack; version 7 takes the ordinary one"
_BITSANDBYTES = f"{_TRAIN}; on a Jetson take the bitsandbytes built for its JetPack"
_COMPILE = "install a C compiler, then: pip install --force-reinstall --no-deps edge-sdk"
_TOLERANCE = 1e-3


def _torch() -> Finding:
    name = "torch"
    if not _has("torch"):
        return _said(name, "fail", "not installed: this device cannot train", _TRAIN)
    import torch

    found = f"torch {torch.__version__}"
    x = torch.linspace(-1, 1, 64 * 64).reshape(64, 64)
    product, exact = x @ x, x.double() @ x.double()
    if float((product.double() - exact).abs().max()) > _TOLERANCE * float(exact.abs().max()):
        return _said(name, "fail", f"{found} multiplies wrongly", f"reinstall torch: {_TRAIN}")
    return _said(name, "ok", f"{found} multiplies rightly on the CPU")


def _cuda() -> Finding:
    name = "cuda"
    has_card = shutil.which("nvidia-smi") is not None or Path("/proc/driver/nvidia").exists()
    is_jetson = platform.release().endswith("-tegra")
    if not (has_card or is_jetson):
        return _said(name, "skipped", "this machine has no NVIDIA driver")
    if not _has("torch"):
        return _said(name, "skipped", "torch is not installed")
    import torch

    fix = _JETSON if is_jetson else "install a torch build for the CUDA version the driver offers"
    if torch.version.cuda is None:
        return _said(name, "warn", f"torch {torch.__version__} is built without CUDA", fix)
    if not torch.cuda.is_available():
        found = f"torch is built for CUDA {torch.version.cuda}, which does not start here"
        return _said(name, "warn", found, f"{fix}, or update the driver")
    major, minor = torch.cuda.get_device_capability()
    x = torch.linspace(-1, 1, 64 * 64).reshape(64, 64)
    try:
        is_right = bool(((x.cuda() @ x.cuda()).cpu() - x @ x).abs().max() < _TOLERANCE * 64)
    except RuntimeError as error:
        found = f"no kernel for compute capability {major}.{minor}: {_first_line(error)}"
        return _said(name, "fail", found, fix)
    if not is_right:
        return _said(name, "fail", "the GPU multiplies wrongly", fix)
    return _said(name, "ok", f"CUDA {torch.version.cuda} runs on {torch.cuda.get_device_name()}")


def _kernels() -> Finding:
    name = "kernels"
    if not _has("torch"):
        return _said(name, "skipped", "torch is not installed")
    import torch

    from edge_sdk.lean.native import library
    from edge_sdk.lean.nf4 import decode_nf4, decode_nf4_plain, quantize_nf4
    from edge_sdk.lean.row_operations import norm_forward

    torch.set_num_threads(1)
    if library() is None:
        return _said(name, "warn", "not compiled: training works without, slower", _COMPILE)
    x = torch.linspace(-1, 1, 4 * 256).reshape(4, 256)
    y, inverse = torch.empty_like(x), torch.empty(4)
    norm_forward(x, torch.ones(256), 1e-6, y, inverse)
    is_right = torch.allclose(y, x * torch.rsqrt(x.square().mean(1) + 1e-6)[:, None], atol=1e-4)
    packed, absmax = quantize_nf4(x)
    decoded, plain = torch.empty(x.numel()), torch.empty(x.numel())
    decode_nf4(packed, absmax, decoded)
    decode_nf4_plain(packed, absmax, plain)
    if not (is_right and torch.allclose(decoded, plain, atol=1e-4)):
        return _said(name, "fail", "the compiled kernels give wrong numbers", _COMPILE)
    return _said(name, "ok", "the compiled kernels run and compute rightly")


def _number_format(quantization: str) -> Callable[[], Finding]:
    def check() -> Finding:
        if not (_has("torch") and _has("transformers")):
            return _said(quantization, "skipped", "torch and transformers are not installed")
        from edge_sdk.training.kernels import why_unusable

        reason = why_unusable(quantization)  # type: ignore[arg-type]
        if reason is None:
            return _said(quantization, "ok", "multiplies rightly, forward and backward")
        return _said(
            quantization,
            "warn",
            f"cannot be used by the general trainer: {reason}",
            _BITSANDBYTES if quantization == "nf4" else "choose another with --quantization",
        )

    return check


def _onnx() -> Finding:
    name = "onnx"
    missing = [module for module in ("onnx", "onnxruntime", "tokenizers") if not _has(module)]
    if missing:
        found = f"not installed: {', '.join(missing)}; training works without"
        return _said(name, "warn", found, _INFER)
    import numpy as np
    import onnxruntime
    from onnx import TensorProto, helper

    from edge_sdk.inference.providers import choose_providers

    providers = choose_providers(onnxruntime.get_available_providers())
    square = [helper.make_tensor_value_info(side, TensorProto.FLOAT, [8, 8]) for side in ("x", "y")]
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "x"], ["y"])], "trial", square[:1], square[1:]
    )
    model = helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 17)])
    session: Any = onnxruntime.InferenceSession(model.SerializeToString(), providers=providers)
    x = np.linspace(-1, 1, 64, dtype=np.float32).reshape(8, 8)
    used = ", ".join(session.get_providers())
    found = f"onnxruntime {onnxruntime.__version__} with {used}"
    if not np.allclose(session.run(None, {"x": x})[0], x @ x, atol=_TOLERANCE):
        return _said(name, "fail", f"{found} multiplies wrongly", f"reinstall it: {_INFER}")
    lost = [provider for provider in providers if provider not in session.get_providers()]
    if lost:
        fix = "install the CUDA libraries this onnxruntime build names, or use the CPU's build"
        return _said(name, "warn", f"{found}; {', '.join(lost)} does not start", fix)
    return _said(name, "ok", found)


TRIALS: dict[str, Callable[[], Finding]] = {
    "torch": _torch,
    "cuda": _cuda,
    "kernels": _kernels,
    "bf16": _number_format("bf16"),
    "nf4": _number_format("nf4"),
    "onnx": _onnx,
}


def main() -> int:
    """Run the trial that was named; print what it found."""
    name = sys.argv[1]
    try:
        finding = TRIALS[name]()
    except Exception as error:  # a broken installation raises anything
        finding = _said(
            name, "fail", f"{type(error).__name__}: {_first_line(error)}", f"reinstall: {_TRAIN}"
        )
    sys.stdout.write(msgspec.json.encode(finding).decode() + "\n")
    return 0


def _has(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def _said(check: str, outcome: Outcome, found: str, fix: str = "") -> Finding:
    return Finding(check=check, outcome=outcome, found=found, fix=fix)


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n", 1)[0][:200]


if __name__ == "__main__":
    sys.exit(main())
