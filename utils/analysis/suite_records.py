"""What the suite of attacks comes to: its members, its worst case, its noise floor, and what was found of the possible.

Rates and shares are from 0 to 1. Torch-free.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from utils.analysis.comparisons import Interval
from utils.analysis.records import Count, Share


@dataclass(frozen=True, kw_only=True)
class WorstCase:
    """The strongest attack, example by example."""

    num_attackable: Count
    success_rate: Share | None
    mean_degradation: float | None


@dataclass(frozen=True, kw_only=True)
class SuiteMember(WorstCase):
    """One attack of the suite, on the examples of the worst case, and what it cost."""

    mean_queries: Annotated[float | None, "exact scores of candidates per example; null: nothing was searched"] = None
    mean_gradients: Annotated[float | None, "per example"] = None
    mean_generations: Annotated[float | None, "summaries per example that chose between candidates"] = None


@dataclass(frozen=True, kw_only=True)
class NoiseFloor(WorstCase):
    """The worst case over random attacks: what success is without any search; and that of no attack at all."""

    unchanged_success_rate: Annotated[Share | None, "of the clean text, summarised again in the batches of an attack"]
    unchanged_differs: Annotated[Share | None, "clean texts whose summary is another one then"]


@dataclass(frozen=True, kw_only=True)
class FoundOfPossible:
    """What the first flip of an attack does, as a share of what the best single flip can do."""

    num_examples: Annotated[Count, "of the sample, attackable"]
    every_move: Annotated[Count, "of these, where all legal flips were tried; else a random sample of them"]
    by_loss: Annotated[Interval | None, "HotFlip, share of the largest loss rise; where any flip raises the loss"]
    by_loss_sd: Annotated[float | None, "standard deviation over examples"]
    by_loss_examples: Annotated[Count, "where any flip raises the loss"]
    by_rougeL: Annotated[Interval | None, "search by metric, share of the largest drop; where any flip lowers ROUGE-L"]
