"""The measures of the experiment, each defined once: what an attack costs a summary, and when it has succeeded.

Attacks write them into records, summaries average them, verification recomputes them; all call these functions.
"""

from __future__ import annotations

from typing import TypeVar, overload

import numpy as np
from numpy.typing import NDArray

Values = TypeVar("Values", float, NDArray[np.float64])  # one number, or one for each example

# A ROUGE F-measure of n words is a ratio of small whole numbers, and so is a relative drop: m / (c * s) with at most c
# words in common and s words in both texts. Such a ratio differs from a threshold of two decimals by at least
# 1 / (100 * c * s) or not at all (5e-7 for texts of 100 words), while floating point misses it by some 1e-16.
THRESHOLD_TOLERANCE = 1e-9
SUMMARY_COST = 3.75  # in forward passes: a beam-4 summary (measured 3.6 to 3.9)
GRADIENT_COST = 3  # in forward passes: a gradient is one, and a backward pass of about twice its work


def relative_drop(clean: float, attacked: float) -> float:
    """Share of the clean score that is lost: 0.15 = 15 %; negative where the attack raised the score.

    Where the clean score is 0 there is nothing to lose, and the drop is 0.0.
    """
    return (clean - attacked) / clean if clean else 0.0


@overload
def reaches_threshold(value: float, threshold: float) -> bool: ...
@overload
def reaches_threshold(value: NDArray[np.float64], threshold: float) -> NDArray[np.bool_]: ...
def reaches_threshold(value: float | NDArray[np.float64], threshold: float) -> bool | NDArray[np.bool_]:
    """Whether a score or a drop is at least `threshold`; a value that equals it in exact arithmetic counts.

    17 of 20 words kept is a drop of exactly 15 %, but 0.1499999999999999 in floating point. NaN reaches nothing.
    """
    reached = value >= threshold - THRESHOLD_TOLERANCE
    return reached if isinstance(reached, np.ndarray) else bool(reached)


def success_rate(drops: NDArray[np.float64], threshold: float) -> float | None:
    """Share of relative drops float [N] that reach the threshold; None without any."""
    return float(reaches_threshold(drops, threshold).mean()) if len(drops) else None


def improved_rate(drops: NDArray[np.float64], threshold: float) -> float | None:
    """Share of relative drops float [N] where the score *rose* by the threshold: how much of success is noise."""
    return success_rate(-drops, threshold)


def loss_increase(clean: Values, attacked: Values) -> Values:
    """By how much an attack raised the loss, nats per token; NaN or infinite where one of the losses is."""
    return attacked - clean


def rouge_change(clean: Values, attacked: Values) -> Values:
    """ROUGE after the attack minus before, from -1 to 1: negative where the attack did harm."""
    return attacked - clean


def relative_gain(before: float, after: float) -> float | None:
    """How much larger `after` is, as a share of `before` (0.05 = 5 %); None where `before` is not above 0."""
    return after / before - 1 if before > 0 else None
