"""Bootstrap of all metrics: ours against the usual loop over resamples."""

from __future__ import annotations

import numpy as np

from utils.analysis.bootstrap import bootstrap_cis
from utils.benchmarks.measure import Comparison, Way, alternate, check
from utils.benchmarks.synthetic import Size

SAMPLES = 1000
METRICS = 4


def case(size: Size, device: str) -> list[Comparison]:
    """1,000 resamples of four scores for as many examples as CNN/DM's test set has."""
    rng = np.random.default_rng(0)
    scores = rng.beta(2, 6, (size.pairs, METRICS))
    intervals: dict[str, list[tuple[float, float, float]]] = {}

    def ours() -> None:
        intervals["ours"] = bootstrap_cis(scores, samples=SAMPLES, seed=1)

    rows = [dict(enumerate(row)) for row in scores.tolist()]

    def loop() -> None:
        intervals["loop"] = _looped(rows, seed=2)

    ways = [Way("ours", ours, METRICS), Way("a loop over resamples", loop, METRICS)]
    found = Comparison(f"bootstrap, {size.pairs} × {SAMPLES}", "metrics", ways, targets={ways[1].name: 30.0})
    alternate(found, rounds=size.rounds, device="cpu")
    # The ends of an interval from 1,000 resamples scatter by about 8 % of its half width (quantile's standard error).
    for own, theirs in zip(intervals["ours"], intervals["loop"], strict=True):
        half = (theirs[2] - theirs[1]) / 2
        same = own[0] == theirs[0] and max(abs(own[1] - theirs[1]), abs(own[2] - theirs[2])) < 0.4 * half
        check(same, f"intervals {own} and {theirs}")
    found.checks.append("means, and intervals within resampling noise")
    return [found]


def _looped(rows: list[dict[int, float]], seed: int) -> list[tuple[float, float, float]]:
    """The usual recipe: draw as many examples as there are by NumPy, and average their scores in Python; repeat."""
    rng = np.random.RandomState(seed)
    means = np.empty((SAMPLES, METRICS))
    for sample in means:
        drawn = [rows[i] for i in rng.choice(len(rows), len(rows))]
        sample[:] = [np.mean([row[metric] for row in drawn]) for metric in range(METRICS)]
    lower, upper = np.percentile(means, [2.5, 97.5], axis=0)
    return [
        (float(np.mean([row[k] for row in rows])), float(low), float(high))
        for k, (low, high) in enumerate(zip(lower, upper, strict=True))
    ]
