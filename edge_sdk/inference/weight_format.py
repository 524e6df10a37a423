"""The number formats of an export's frozen matrices."""

from __future__ import annotations

from typing import Literal

WeightFormat = Literal["nf4", "int4", "int8", "fp32"]
"""An adapter is always fp32.

``nf4`` and ``int4`` both hold the very values that a base in NF4 has, as adapters are trained on
it: ``nf4`` in codes of 8 bits, which are multiplied as they are, ``int4`` in NF4's own codes of 4,
half the memory, which are turned into fp32 for every product.
"""
