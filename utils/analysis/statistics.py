"""Paired tests, effect sizes and corrections for scores of two models on the same examples.

Every function returns plain floats that JSON can hold. Degenerate inputs have defined results, never NaN: where there
is nothing to compare (no pairs, or all pairs equal) a difference and an effect is 0.0 and a p-value 1.0.
Differences are always second − first (b − a).
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
from numpy.typing import ArrayLike
from scipy import optimize, stats

from utils.analysis.bootstrap import (
    Floats,
    bootstrap_ci,
    bootstrap_means,
    paired_bootstrap,
    paired_difference,
)

__all__ = [
    "bootstrap_ci",
    "bootstrap_means",
    "cliffs_delta",
    "cohens_dz",
    "compare_models",
    "correct_family",
    "holm",
    "mcnemar",
    "mcnemar_exact",
    "minimum_detectable_difference",
    "paired_bootstrap",
    "paired_t_test",
    "permutation_test",
    "rank_biserial",
    "wilcoxon_test",
    "wilson_interval",
]

Key = TypeVar("Key", bound=Hashable)

# Up to this many pairs every sign pattern is tried (2^14 of them); beyond, random ones are drawn.
EXACT_PAIRS = 14
PERMUTATIONS_AT_ONCE = 500
# Sums that are equal in exact arithmetic differ in the last bits; as ties they must count as "at least as extreme".
TIE_TOLERANCE = 1e-12


def permutation_test(a: ArrayLike, b: ArrayLike, *, permutations: int = 10_000, seed: int = 0) -> float:
    """Two-sided p-value of the paired sign-flip permutation test of the mean difference.

    Null hypothesis: the two models are exchangeable on every example, so each difference is as likely as its negative.
    Exact (all sign patterns) up to 14 pairs; beyond, (1 + hits) / (1 + permutations), which is valid, never 0.
    Source: Good, Permutation, Parametric and Bootstrap Tests of Hypotheses (2005), section 3.2.
    """
    difference = paired_difference(a, b)
    n = len(difference)
    observed = abs(float(difference.sum())) - TIE_TOLERANCE * float(np.abs(difference).sum())
    if n == 0 or not difference.any():
        return 1.0
    if n <= EXACT_PAIRS:
        patterns = ((np.arange(2**n)[:, None] >> np.arange(n)) & 1) * 2.0 - 1.0
        return float(np.mean(np.abs(patterns @ difference) >= observed))
    # Eight signs are one random byte: a table holds the 256 signed sums of every group of eight differences.
    groups = -(-n // 8)
    padded = np.zeros(groups * 8)
    padded[:n] = difference
    signs = ((np.arange(256)[:, None] >> np.arange(8)) & 1) * 2.0 - 1.0
    table = (padded.reshape(groups, 8) @ signs.T).ravel()
    offsets = np.arange(groups, dtype=np.int32) * 256
    rng = np.random.default_rng(seed)
    hits = 0
    for start in range(0, permutations, PERMUTATIONS_AT_ONCE):
        rows = min(PERMUTATIONS_AT_ONCE, permutations - start)
        bytes_ = rng.integers(0, 256, size=(rows, groups), dtype=np.uint8)
        hits += int(np.sum(np.abs(table[bytes_ + offsets].sum(axis=1)) >= observed))
    return (1 + hits) / (1 + permutations)


def wilcoxon_test(a: ArrayLike, b: ArrayLike) -> float:
    """Two-sided p-value of Wilcoxon's signed-rank test (zero differences dropped); 1.0 where all are zero.

    Exact for up to 50 pairs without ties, the normal approximation otherwise (scipy's own choice for few tied pairs,
    a permutation test, takes seconds a call).
    """
    difference = paired_difference(a, b)
    difference = difference[difference != 0]
    if not len(difference):
        return 1.0
    exact = len(difference) <= 50 and len(np.unique(np.abs(difference))) == len(difference)
    return float(stats.wilcoxon(difference, method="exact" if exact else "asymptotic").pvalue)


def paired_t_test(a: ArrayLike, b: ArrayLike) -> float:
    """Two-sided p-value of the paired t-test; 1.0 for fewer than two pairs or differences that are all zero.

    Differences that are all equal but not zero have no variance to test against: the p-value is 0.0.
    """
    difference = paired_difference(a, b)
    if len(difference) < 2 or not difference.any():
        return 1.0
    if np.all(difference == difference[0]):
        return 0.0
    return float(stats.ttest_1samp(difference, 0.0).pvalue)


def cohens_dz(a: ArrayLike, b: ArrayLike) -> float:
    """Mean difference over its standard deviation (n − 1); 0.0 where the deviation is 0 or unknown (n < 2).

    Source: Lakens, Frontiers in Psychology 4:863 (2013), eq. 6.
    """
    difference = paired_difference(a, b)
    if len(difference) < 2:
        return 0.0
    deviation = float(difference.std(ddof=1))
    # Equal differences leave a deviation of rounding size, which is no scale to measure an effect by.
    return float(difference.mean()) / deviation if deviation > 1e-15 * float(np.abs(difference).max()) else 0.0


def rank_biserial(a: ArrayLike, b: ArrayLike) -> float:
    """Matched-pairs rank-biserial correlation in [−1, 1]: (positive − negative rank sum) / total, zeros dropped.

    Source: Kerby, Comprehensive Psychology 3:1 (2014).
    """
    difference = paired_difference(a, b)
    difference = difference[difference != 0]
    if len(difference) == 0:
        return 0.0
    ranks = stats.rankdata(np.abs(difference))
    return float(np.sum(ranks * np.sign(difference)) / np.sum(ranks))


def cliffs_delta(a: ArrayLike, b: ArrayLike) -> float:
    """P(b > a) − P(b < a) over all pairs of the two samples (unpaired), in [−1, 1]; 0.0 if one is empty.

    Source: Cliff, Psychological Bulletin 114:494 (1993). O(n log n).
    """
    first = np.sort(np.asarray(a, dtype=np.float64))
    second = np.asarray(b, dtype=np.float64)
    if len(first) == 0 or len(second) == 0:
        return 0.0
    below = np.searchsorted(first, second, side="left").sum()
    above = len(first) * len(second) - np.searchsorted(first, second, side="right").sum()
    return float(below - above) / (len(first) * len(second))


def mcnemar_exact(only_a: int, only_b: int) -> float:
    """Two-sided exact p-value of McNemar's test from the two discordant counts; 1.0 where both are 0.

    Source: McNemar, Psychometrika 12:153 (1947), with the binomial distribution instead of χ².
    """
    if only_a < 0 or only_b < 0:
        raise ValueError(f"discordant counts cannot be negative: {only_a}, {only_b}")
    total = int(only_a) + int(only_b)
    if total == 0:
        return 1.0
    return float(min(1.0, 2 * stats.binom.cdf(min(int(only_a), int(only_b)), total, 0.5)))


def mcnemar(success_a: ArrayLike, success_b: ArrayLike, *, confidence: float = 0.95) -> dict[str, float | int]:
    """McNemar's exact test of two paired yes/no outcomes [n], with the four counts and the difference of rates.

    `lower`, `upper` of the difference: Wald's interval with half an example added to each count, which keeps its level
    for small n. Source: Agresti and Min, Statistics in Medicine 24:729 (2005).
    """
    first, second = np.asarray(success_a, dtype=bool), np.asarray(success_b, dtype=bool)
    if first.shape != second.shape or first.ndim != 1:
        raise ValueError(f"paired outcomes of shapes {first.shape} and {second.shape}")
    only_a, only_b = int(np.sum(first & ~second)), int(np.sum(second & ~first))
    n = len(first)
    centre = (only_b - only_a) / (n + 2)
    spread = (only_a + only_b + 1 - (only_b - only_a) ** 2 / (n + 2)) ** 0.5 / (n + 2)
    reach = float(stats.norm.ppf((1 + confidence) / 2)) * spread
    return {
        "n": n,
        "both": int(np.sum(first & second)),
        "only_a": only_a,
        "only_b": only_b,
        "neither": int(np.sum(~first & ~second)),
        "rate_a": float(first.mean()) if n else 0.0,
        "rate_b": float(second.mean()) if n else 0.0,
        "difference": (only_b - only_a) / n if n else 0.0,
        "lower": max(-1.0, centre - reach),
        "upper": min(1.0, centre + reach),
        "p_value": mcnemar_exact(only_a, only_b),
    }


def holm(p_values: Mapping[Key, float]) -> dict[Key, float]:
    """Holm's step-down adjusted p-values of a family, in the order given.

    Source: Holm, Scandinavian Journal of Statistics 6:65 (1979).
    """
    adjusted: dict[Key, float] = dict.fromkeys(p_values, 1.0)
    running = 0.0
    for rank, key in enumerate(sorted(p_values, key=lambda name: p_values[name])):
        running = max(running, (len(p_values) - rank) * p_values[key])
        adjusted[key] = min(1.0, float(running))
    return adjusted


def correct_family(tests: Sequence[dict[str, Any]]) -> None:
    """Holm over the `p_value` of every test of a family; writes `p_value_holm` and `family_size` into each."""
    adjusted = holm(dict(enumerate(test["p_value"] for test in tests)))
    for number, test in enumerate(tests):
        test |= {"p_value_holm": adjusted[number], "family_size": len(tests)}


def wilson_interval(successes: int, n: int, *, confidence: float = 0.95) -> tuple[float, float, float]:
    """(share, lower, upper) of a proportion by Wilson's score interval; (0, 0, 1) where n is 0.

    Source: Wilson, JASA 22:209 (1927).
    """
    if not 0 <= successes <= n:
        raise ValueError(f"{successes} successes of {n}")
    if n == 0:
        return 0.0, 0.0, 1.0
    z = float(stats.norm.ppf((1 + confidence) / 2))
    share = successes / n
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * np.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    # At 0 and n the bound is the share itself; the formula misses it by a rounding error.
    lower = 0.0 if successes == 0 else float(centre - half)
    upper = 1.0 if successes == n else float(centre + half)
    return share, lower, upper


def minimum_detectable_difference(n: int, sd: float, *, power: float = 0.8, alpha: float = 0.05) -> float | None:
    """Smallest true mean difference that a two-sided paired t-test of n pairs finds with probability `power`.

    sd: standard deviation of the paired differences; the result has its unit. Exact, by the noncentral t distribution.
    None for n < 2: no difference, however large, can be shown.
    """
    if n < 2:
        return None
    if sd == 0:
        return 0.0
    critical = stats.t.ppf(1 - alpha / 2, n - 1)

    def shortfall(noncentrality: float) -> float:
        above = float(stats.nct.sf(critical, n - 1, noncentrality))
        below = float(stats.nct.cdf(-critical, n - 1, noncentrality))
        if np.isnan(above):  # SciPy's series does not converge in far tails; there the normal law is as good
            above = float(stats.norm.sf(critical - noncentrality))
        return above + (0.0 if np.isnan(below) else below) - power

    upper = 2.0 * float(critical + stats.t.ppf(power, n - 1)) + 1.0
    return float(optimize.brentq(shortfall, 0.0, upper)) * sd / float(np.sqrt(n))


def compare_models(
    scores_a: ArrayLike,
    scores_b: ArrayLike,
    *,
    samples: int = 1000,
    seed: int = 0,
    confidence: float = 0.95,
    permutations: int = 10_000,
) -> dict[str, Any]:
    """Two models on the same examples [n]: the difference b − a, its interval, tests and effect sizes, JSON-ready.

    `p_value` (the one to correct over a family) is the paired permutation test's; the others are there to be compared.
    """
    difference: Floats = paired_difference(scores_a, scores_b)
    n = len(difference)
    deviation = float(difference.std(ddof=1)) if n > 1 else 0.0
    mean_a = float(np.mean(scores_a)) if n else 0.0
    bootstrap = paired_bootstrap(scores_a, scores_b, samples=samples, seed=seed, confidence=confidence)
    return {
        "n": n,
        "mean_a": mean_a,
        "mean_b": float(np.mean(scores_b)) if n else 0.0,
        "difference": bootstrap["difference"],
        "lower": bootstrap["lower"],
        "upper": bootstrap["upper"],
        "relative_difference": bootstrap["difference"] / mean_a if mean_a else 0.0,
        "p_value": permutation_test(scores_a, scores_b, permutations=permutations, seed=seed),
        "p_value_test": "paired sign-flip permutation",
        "p_value_bootstrap": bootstrap["p_value"],
        "p_value_t": paired_t_test(scores_a, scores_b),
        "p_value_wilcoxon": wilcoxon_test(scores_a, scores_b),
        "cohens_dz": cohens_dz(scores_a, scores_b),
        "rank_biserial": rank_biserial(scores_a, scores_b),
        "cliffs_delta": cliffs_delta(scores_a, scores_b),
        "sd_difference": deviation,
        "minimum_detectable_difference": minimum_detectable_difference(n, deviation),
        "better_a": int(np.sum(difference < 0)),
        "better_b": int(np.sum(difference > 0)),
        "ties": int(np.sum(difference == 0)),
    }
