"""Which instructions the compiled kernels and torch use in this process: printed as JSON."""

from __future__ import annotations

import dataclasses
import json
import sys
from dataclasses import dataclass

import msgspec
import torch

from edge_sdk.lean.native import library


@dataclass(frozen=True, slots=True, kw_only=True)
class Vectors:
    """Instruction sets in use.

    Attributes:
        width: fp32 numbers the compiled kernels compute at once; 0 if there are none.
        multiplies_integers: The compiled kernels multiply integers.
        torch_capability: What torch's own kernels use.
    """

    width: int
    multiplies_integers: bool
    torch_capability: str


def main() -> int:
    """Print what is used with the threads the first argument says."""
    torch.set_num_threads(msgspec.json.decode(sys.argv[1], type=int))
    native = library()
    found = Vectors(
        width=0 if native is None else native.width,
        multiplies_integers=native is not None and native.multiplies_integers,
        torch_capability=torch.backends.cpu.get_cpu_capability(),
    )
    sys.stdout.write(json.dumps(dataclasses.asdict(found)) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
