"""Random-k sketches of a rank-r adapter: draw, take, scatter and scale.

Symbols as in the method (FSLoRA, arXiv:2501.19389): the global adapter is ``B (d_out, r)``,
``A (r, d_in)``; a device with sketch size ``k`` trains the ranks ``I``, ``|I| = k``, of
``B S A``, where ``S`` is diagonal with ``r / k`` on ``I`` and 0 elsewhere, so ``E[S] = I_r``.
"""

from __future__ import annotations

import hashlib
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from edge_sdk.errors import SketchError

Indices = NDArray[np.int64]
Matrix = NDArray[Any]
Factors = Literal["AB", "A", "B"]
"""The factors of an adapter that are trained; the other one stays as it is."""


def derive_seed(task_seed: int, round_number: int, device_id: str) -> int:
    """Derive the seed of one device in one round: fresh for each pair, the same on every machine.

    Returns:
        An integer in ``0 .. 2**53 - 1``, so that it survives any JSON reader.
    """
    text = f"{task_seed}/{round_number}/{device_id}".encode()
    return int.from_bytes(hashlib.sha256(text).digest()[:8], "big") >> 11


def draw_indices(r: int, k: int, rng: np.random.Generator) -> Indices:
    """Choose which k of the r ranks a device trains; every k-subset is equally likely.

    Only the raw 64-bit stream of the generator is used. NumPy keeps that stream stable across
    releases, but not ``choice`` or ``permutation``: a stored seed must replay the same ranks
    after an upgrade.

    Args:
        r: Global rank.
        k: Sketch size of the device.
        rng: Seeded source of randomness.

    Returns:
        ``(k,)`` sorted, without repeats, each in ``0 .. r-1``.

    Raises:
        SketchError: ``k`` is outside ``1 .. r``.

    Source:
        FSLoRA, arXiv:2501.19389, random-k sketching.
    """
    drawn: Indices = _draw(r, k, 1, rng)[0]
    return drawn


def draw_sketch(seed: int, r: int, k: int, layers: int) -> list[Indices]:
    """Draw one index set per adapted layer, shared by the A and B of that layer.

    Args:
        seed: Of this device and round, see :func:`derive_seed`.
        r: Global rank.
        k: Sketch size.
        layers: How many layers the adapter has, in the task's order.

    Returns:
        ``layers`` index sets of length ``k``.
    """
    rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed)))
    return list(_draw(r, k, layers, rng))


def take(B: Matrix, A: Matrix, indices: Indices) -> tuple[Matrix, Matrix]:
    """Copy the ranks one sketch selects: ``(d_out, r), (r, d_in) -> (d_out, k), (k, d_in)``."""
    return np.take(B, indices, axis=1), A[indices]


def scatter_add(
    into_B: Matrix, into_A: Matrix, B: Matrix, A: Matrix, indices: Indices, weight: float = 1.0
) -> None:
    """Add ``weight`` times a k-rank pair onto its ranks, in place; all others stay untouched.

    Args:
        into_B: ``(d_out, r)``.
        into_A: ``(r, d_in)``.
        B: ``(d_out, k)``.
        A: ``(k, d_in)``.
        indices: ``(k,)`` without repeats.
        weight: Of this device in the round.
    """
    into_B[:, indices] += weight * B
    into_A[indices] += weight * A


def lora_scaling(lora_alpha: float, r: int, use_rslora: bool = False) -> float:
    """Return ``alpha / r``, or ``alpha / sqrt(r)`` for rank-stabilized LoRA, at the global rank."""
    return float(lora_alpha / (np.sqrt(r) if use_rslora else r))


def _draw(r: int, k: int, layers: int, rng: np.random.Generator) -> Indices:
    """Return ``(layers, k)``: what drawing one layer after another gives."""
    check_sizes(r, k)
    raw = np.asarray(rng.bit_generator.random_raw(layers * r)).reshape(layers, r)
    return np.sort(np.argsort(raw, axis=1, kind="stable")[:, :k], axis=1).astype(np.int64)


def sketched_scaling(lora_alpha: float, r: int, k: int, use_rslora: bool = False) -> float:
    """Return the factor of ``B_I A_I`` in a device's forward: ``lora_scaling * r / k``.

    This is the only place where the sketch scale ``r / k`` enters. Under plain scaling the
    result is ``alpha / k``: an ordinary rank-k LoRA with unchanged alpha.
    """
    check_sizes(r, k)
    return lora_scaling(lora_alpha, r, use_rslora) * r / k


def largest_sketch(ladder: list[int], affordable_k: int) -> int | None:
    """Return the largest sketch size on the ladder that a device can afford, if any."""
    return max((k for k in ladder if k <= affordable_k), default=None)


def default_sketch_sizes(r: int) -> list[int]:
    """Return the usual ladder: the powers of two up to ``r``, and ``r``."""
    return sorted({1 << i for i in range(r.bit_length())} | {r}) if r >= 1 else [1]


def check_sizes(r: int, k: int) -> None:
    """Refuse sizes that no sketch can have.

    Raises:
        SketchError: ``r < 1`` or ``k`` outside ``1 .. r``.
    """
    if r < 1:
        raise SketchError(f"global rank r={r} must be at least 1")
    if not 1 <= k <= r:
        raise SketchError(f"sketch size k={k} must be in 1..{r}, the global rank")
