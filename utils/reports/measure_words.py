"""The pre-named measures in words: success and drop in points, loss in nats."""

from __future__ import annotations

from typing import Protocol

from utils.analysis.claims import Measure
from utils.reports.table import signed

TITLES: dict[Measure, str] = {
    "success": "worst-case success (the share of summaries that the strongest of all attacks spoils)",
    "relative_drop": "mean relative ROUGE-L drop (worst case)",
    "loss_increase": "mean loss rise (worst case)",
}
NAMES = {measure: title.split(" (")[0] for measure, title in TITLES.items()}


class Difference(Protocol):
    """Monotonic, or a control arm, minus baseline."""

    @property
    def difference(self) -> float: ...
    @property
    def lower(self) -> float: ...
    @property
    def upper(self) -> float: ...


def level(measure: Measure, value: float) -> str:
    """One model's figure."""
    return f"{value:+.3f} nats" if measure == "loss_increase" else f"{100 * value:.1f} %"


def change(measure: Measure, one: Difference) -> str:
    """A difference with its interval."""
    bounds = [one.lower, one.upper]
    if measure == "loss_increase":
        return f"{signed(one.difference, bounds)} nats"
    return f"{signed(100 * one.difference, [100 * bound for bound in bounds], digits=1)} points"
