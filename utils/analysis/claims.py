"""What is read from the pre-named measures, for one seed and for several: which measure, which direction, which loss.

The primary measure is worst-case success. Where both models are above 90 % or below 10 % it cannot tell them apart, and
the next measure is read. The order is fixed before the results are seen, and so are the limits.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from utils.analysis.comparisons import AttackTests, PairedTest, SuccessTest
from utils.analysis.records import given

Measure = Literal["success", "relative_drop", "loss_increase"]
ORDER: tuple[Measure, ...] = ("success", "relative_drop", "loss_increase")
CEILING, FLOOR = 0.9, 0.1  # success of both models beyond these says nothing of their difference
NO_DROP = 0.01  # a mean relative drop has no floor but 0: below one point nothing was lost on either model


@dataclass(frozen=True)
class Outcome:
    """One measure of baseline (a) and monotonic (b); difference, lower and upper are b minus a."""

    a: float
    b: float
    difference: float
    lower: float
    upper: float
    p_value: float
    p_value_holm: float | None  # None: in no family

    def shown(self, alpha: float) -> bool:
        """Whether the difference is shown: by the corrected p-value where there is one."""
        return (self.p_value if self.p_value_holm is None else self.p_value_holm) < alpha


def outcome(test: PairedTest | SuccessTest) -> Outcome:
    """The outcome of a test of baseline (a) and monotonic (b) on one seed."""
    a, b = (test.rate_a, test.rate_b) if isinstance(test, SuccessTest) else (test.mean_a, test.mean_b)
    return Outcome(a, b, test.difference, test.lower, test.upper, test.p_value, test.p_value_holm)


def outcomes(tests: AttackTests) -> dict[Measure, Outcome]:
    """The pre-named measures in their order."""
    return {
        "success": outcome(tests.success),
        "relative_drop": outcome(tests.relative_drop),
        "loss_increase": outcome(given(tests.loss_increase)),
    }


def saturation(measure: Measure, found: Outcome) -> Literal["ceiling", "floor", ""]:
    """Whether a measure is at its ceiling or floor on both models."""
    if measure == "loss_increase":
        return ""
    least = FLOOR if measure == "success" else NO_DROP
    if min(found.a, found.b) > CEILING:
        return "ceiling"
    return "floor" if max(found.a, found.b) < least else ""


def measure_read(found: Mapping[Measure, Outcome]) -> Measure:
    """The first measure that is neither at its ceiling nor at its floor."""
    return next(measure for measure in ORDER if not saturation(measure, found[measure]))
