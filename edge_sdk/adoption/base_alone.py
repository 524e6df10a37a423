"""The base model without what the fleet learned, as an adapter that changes nothing."""

from __future__ import annotations

import numpy as np

from edge_sdk.wire.payload import Arrays, adapter_shapes
from edge_sdk.wire.task import AdapterSpec


def base_alone(spec: AdapterSpec) -> Arrays:
    """Return zeros for every tensor at rank r; a classifier's head then takes all classes alike."""
    shapes = adapter_shapes(spec, spec.r)
    return {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
