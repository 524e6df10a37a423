"""Whether an adapter loses against the one in use, on the same held-out examples of one device."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from edge_sdk.errors import ConfigError
from edge_sdk.model.scores import Score
from edge_sdk.text.held_out import FEWEST

STANDARD_ERRORS = 2.0
"""By how many of them a mean must be worse to be no chance."""

TOLERANCE = 1e-3
"""Rise of the mean loss, in nats, or of the share of errors that is taken for rounding."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """How an adapter did beside the one in use.

    Attributes:
        is_accepted: It does not lose.
        examples: It was judged by.
        loss_before: Mean loss of the one in use.
        loss_after: Mean loss of the new one.
        accuracy_before: Share of the examples the one in use classifies rightly; None unless it
            is a classifier, as the next.
        accuracy_after: The same of the new one.
    """

    is_accepted: bool
    examples: int
    loss_before: float
    loss_after: float
    accuracy_before: float | None = None
    accuracy_after: float | None = None


def judge(before: Sequence[Score], after: Sequence[Score]) -> Verdict:
    """Say whether a new adapter loses against the one in use.

    Both were tried on the same examples, so their difference on each counts: hard and easy
    examples cancel. The new one loses if the mean difference is worse by more than ``TOLERANCE``
    and by more than two of its standard errors. Of versions that are as good in truth, chance
    lets at most 4.3 % lose so (Student's t, 7 degrees of freedom; 2.6 % with 40 examples). A
    version without a finite loss loses anyway. For a classifier the errors are compared in the
    same way, and a higher loss is forgiven where more labels are right.

    Args:
        before: Of the adapter in use, by example.
        after: Of the new one, by the same examples.

    Raises:
        ConfigError: Other or too few examples.
    """
    if len(before) != len(after) or len(after) < FEWEST:
        raise ConfigError(
            f"{len(before)} and {len(after)} scores: an adapter is judged by the same "
            f"{FEWEST} or more examples as the one in use"
        )
    losses = [new.loss - old.loss for old, new in zip(before, after, strict=True)]
    errors = [_error(new) - _error(old) for old, new in zip(before, after, strict=True)]
    is_worse = _is_worse(errors) or (_is_worse(losses) and fmean(errors) >= 0)
    is_finite = all(math.isfinite(score.loss) for score in after)
    return Verdict(
        is_accepted=is_finite and not is_worse,
        examples=len(after),
        loss_before=fmean(score.loss for score in before),
        loss_after=fmean(score.loss for score in after),
        accuracy_before=_accuracy(before),
        accuracy_after=_accuracy(after),
    )


def _is_worse(differences: Sequence[float]) -> bool:
    """Say whether differences, new minus old, are a rise beyond rounding and chance."""
    if not all(map(math.isfinite, differences)):
        return False  # looked at apart
    standard_error = stdev(differences) / math.sqrt(len(differences))
    return fmean(differences) > max(TOLERANCE, STANDARD_ERRORS * standard_error)


def _error(score: Score) -> float:
    return float(score.is_right is False)


def _accuracy(scores: Sequence[Score]) -> float | None:
    if any(score.is_right is None for score in scores):
        return None
    return fmean(1 - _error(score) for score in scores)
