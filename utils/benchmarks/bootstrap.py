"""Bootstrap of all metrics: ours against a loop over resamples in Python."""

from __future__ import annotations

import numpy as np

from utils.benchmarks.measure import Comparison, Way, alternate, check
from utils.benchmarks.world import Size
from utils.bootstrap import bootstrap_means, interval

SAMPLES = 1000
METRICS = 4


def case(size: Size, device: str) -> list[Comparison]:
    """1,000 resamples of four scores for as many examples as CNN/DM's test set has."""
    rng = np.random.default_rng(0)
    scores = rng.beta(2, 6, (size.pairs, METRICS))
    intervals: dict[str, list[tuple[float, float, float]]] = {}

    def ours() -> None:
        means = bootstrap_means(scores, samples=SAMPLES, seed=1)
        intervals["ours"] = [
            interval(scores[:, k], means[:, k], confidence=0.95, method="percentile") for k in range(METRICS)
        ]

    def loop() -> None:
        intervals["loop"] = [_looped(scores[:, k].tolist(), seed=k) for k in range(METRICS)]

    ways = [Way("ours", ours, METRICS), Way("a loop over resamples and metrics", loop, METRICS)]
    found = Comparison(f"bootstrap, {size.pairs} × {SAMPLES}", "metrics", ways, targets={ways[1].name: 30.0})
    alternate(found, rounds=size.rounds, device="cpu")
    # The ends of an interval from 1,000 resamples scatter by about 8 % of its half width (quantile's standard error).
    for own, theirs in zip(intervals["ours"], intervals["loop"], strict=True):
        half = (theirs[2] - theirs[1]) / 2
        same = own[0] == theirs[0] and max(abs(own[1] - theirs[1]), abs(own[2] - theirs[2])) < 0.4 * half
        check(same, f"intervals {own} and {theirs}")
    found.checks.append("means, and intervals within resampling noise")
    return [found]


def _looped(values: list[float], seed: int) -> tuple[float, float, float]:
    """The usual recipe, value by value: draw as many as there are, with replacement, and take their mean; repeat."""
    rng = np.random.RandomState(seed)
    means = [np.mean([values[i] for i in rng.randint(0, len(values), len(values))]) for _ in range(SAMPLES)]
    lower, upper = np.percentile(means, [2.5, 97.5])
    return float(np.mean(values)), float(lower), float(upper)
