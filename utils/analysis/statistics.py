"""Paired tests and corrections for scores of two models on the same examples.

Degenerate inputs have defined results, never NaN: where there
is nothing to compare (no pairs, or all pairs equal) a difference and an effect is 0.0 and a p-value 1.0.
Differences are always second − first (b − a).
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np
from numpy.typing import ArrayLike
from scipy import optimize, stats

from utils.analysis.bootstrap import Floats, bootstrap_ci, paired_difference
from utils.analysis.comparisons import PairedTest, SuccessTest, Test

Key = TypeVar("Key", bound=Hashable)
AnyTest = TypeVar("AnyTest", bound=Test)

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


def mcnemar(success_a: ArrayLike, success_b: ArrayLike, *, confidence: float = 0.95) -> SuccessTest:
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
    return SuccessTest(
        n=n,
        both=int(np.sum(first & second)),
        only_a=only_a,
        only_b=only_b,
        neither=int(np.sum(~first & ~second)),
        rate_a=float(first.mean()) if n else 0.0,
        rate_b=float(second.mean()) if n else 0.0,
        difference=(only_b - only_a) / n if n else 0.0,
        lower=max(-1.0, centre - reach),
        upper=min(1.0, centre + reach),
        minimum_detectable_difference=detectable_success(n, only_a + only_b, alpha=1 - confidence),
        # Of the examples on which the sides differ, half are expected for each: McNemar's exact test is a sign test.
        p_value=float(stats.binomtest(only_a, only_a + only_b).pvalue) if only_a + only_b else 1.0,
    )


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


def corrected(
    tests: Mapping[Key, AnyTest], confidence: float = 0.95, same_as: Mapping[Key, Key] | None = None
) -> dict[Key, AnyTest]:
    """The tests of one family with `p_value_holm`, `family_size` and what they can detect at the family's level.

    `same_as`: tests of the very same numbers as another one; they are that test once more, and do not count.
    """
    same = same_as or {}
    adjusted = holm({key: test.p_value for key, test in tests.items() if key not in same})
    return {
        key: in_family(test, adjusted[same.get(key, key)], len(adjusted), confidence) for key, test in tests.items()
    }


def in_family(test: AnyTest, adjusted: float, size: int, confidence: float = 0.95) -> AnyTest:
    """The test with its p-value as corrected over a family of `size` tests, and what it detects at that level."""
    alpha = (1 - confidence) / size
    changed: dict[str, Any] = {"p_value_holm": adjusted, "family_size": size}
    if isinstance(test, PairedTest):
        changed["minimum_detectable_difference"] = minimum_detectable_difference(test.n, test.sd, alpha=alpha)
    if isinstance(test, SuccessTest):
        changed["minimum_detectable_difference"] = detectable_success(test.n, test.only_a + test.only_b, alpha=alpha)
    return replace(test, **changed)


def wilson_interval(successes: int, n: int, *, confidence: float = 0.95) -> tuple[float, float, float]:
    """(share, lower, upper) of a proportion by Wilson's score interval; (0, 0, 1) where n is 0."""
    if n == 0:
        return 0.0, 0.0, 1.0
    interval = stats.binomtest(successes, n).proportion_ci(confidence, method="wilson")
    return successes / n, float(interval.low), float(interval.high)


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


def detectable_success(n: int, discordant: int, *, power: float = 0.8, alpha: float = 0.05) -> float | None:
    """Smallest true difference of two paired success rates that McNemar's exact test finds with probability `power`.

    n: pairs; discordant: those on which the sides differed, taken as their share in another experiment too (at least
    the difference itself). A multiple of 1 / n; None where no difference, not even 1, is found that often.
    """

    def found(difference: float) -> float:
        share = max(difference, discordant / n)
        # Pairs on which the sides differ: eight deviations around their expected number leave out less than 1e-14.
        reach = 8 * (n * share * (1 - share)) ** 0.5 + 8
        differing = np.arange(max(0, int(n * share - reach)), min(n, int(n * share + reach)) + 1)
        # Largest number of the rarer kind that is significant: twice its tail of Binomial(d, 1/2) is at most alpha.
        most = stats.binom.ppf(alpha / 2, differing, 0.5)
        most = most - (2 * stats.binom.cdf(most, differing, 0.5) > alpha)
        rarer = (share - difference) / (2 * share)
        hit = stats.binom.cdf(most, differing, rarer) + stats.binom.cdf(most, differing, 1 - rarer)
        return float(np.sum(stats.binom.pmf(differing, n, share) * hit))

    if n == 0 or found(1.0) < power:
        return None
    too_small, enough = 0, n
    while enough - too_small > 1:
        middle = (too_small + enough) // 2
        too_small, enough = (too_small, middle) if found(middle / n) >= power else (middle, enough)
    return enough / n


def exceeds(n: int, mean: float, sd: float, margin: float) -> float:
    """One-sided p-value of the t-test that a true mean is at most `margin`, from n values' mean and deviation (n - 1).

    Values that are all equal and beyond it are n signs that agree, 2^-n; fewer than two values show nothing: 1.0.
    """
    if n < 2 or (sd == 0 and mean <= margin):
        return 1.0
    return 2.0**-n if sd == 0 else float(stats.t.sf((mean - margin) / (sd / n**0.5), n - 1))


def compare_models(
    scores_a: ArrayLike,
    scores_b: ArrayLike,
    *,
    samples: int = 1000,
    seed: int = 0,
    confidence: float = 0.95,
    permutations: int = 10_000,
) -> PairedTest:
    """Two models on the same examples [n]: the difference b − a, its interval, test and effect size."""
    first, second = np.asarray(scores_a, dtype=np.float64), np.asarray(scores_b, dtype=np.float64)
    difference: Floats = paired_difference(first, second)
    n = len(difference)
    mean, lower, upper = bootstrap_ci(difference, samples=samples, seed=seed, confidence=confidence)
    sd = float(difference.std(ddof=1)) if n > 1 else 0.0
    return PairedTest(
        n=n,
        mean_a=float(np.mean(first)) if n else 0.0,
        mean_b=float(np.mean(second)) if n else 0.0,
        difference=mean,
        lower=lower,
        upper=upper,
        p_value=permutation_test(first, second, permutations=permutations, seed=seed),
        sd=sd,
        cohens_dz=cohens_dz(first, second),
        minimum_detectable_difference=minimum_detectable_difference(n, sd, alpha=1 - confidence),
    )


def crossed_difference(values: ArrayLike, *, confidence: float = 0.95) -> dict[str, float]:
    """Mean of paired differences float [seeds, examples] with interval and test: other seeds and other examples.

    The same examples are attacked in every seed, so seeds and examples are crossed, as readers and cases are in
    diagnostic studies: d[s, e] = mean + seed[s] + example[e] + rest[s, e], all random. Two-way analysis of variance
    gives the mean squares MS; by their expectations

        Var(mean) = (MS_seed + max(MS_example - MS_rest, 0)) / (S * N)

    (Obuchowski and Rockette, Communications in Statistics - Simulation 24:285, 1995, for one difference; MS_example -
    MS_rest estimates S times the variance of the example effects). Degrees of freedom: Hillis (Statistics in Medicine
    26:596, 2007; 33:330, 2014) has (S - 1) / share^2 where `share` is MS_seed's part of the sum: the Satterthwaite
    approximation with the example part taken as known. For three seeds that is too many: a small MS_seed makes the
    error small and the freedom large at once, and 95 % intervals cover 91 % (docs/statistics.md). With (S - 1) / share,
    equal at both ends, they cover 94 to 97 %. Attacks may leave a dozen examples, so the example part has N - 1: where
    all seeds are equal the test is the t-test over examples.

    Returns `difference`, `lower`, `upper` (at `confidence`) and the two-sided `p_value` of no difference. Equal values
    everywhere leave no variance to judge by: lower = upper = difference, and p is that of N signs that all agree,
    2^(1 - N), or 1.0 where the value is 0. ValueError for fewer than 2 seeds or 2 examples, for NaN or infinite values.
    """
    data = np.asarray(values, dtype=np.float64)
    if data.ndim != 2 or min(data.shape) < 2:
        raise ValueError(
            f"crossed_difference: shape {data.shape}: expected [seeds, examples] with at least 2 of each; the spread "
            "between seeds or examples cannot be told from one"
        )
    if not np.all(np.isfinite(data)):
        raise ValueError("crossed_difference: a value is NaN or infinite; leave the example out in every seed")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence {confidence}: expected a number between 0 and 1")
    seeds, examples = data.shape
    mean = float(data.mean())
    by_seed, by_example = data.mean(axis=1, keepdims=True) - mean, data.mean(axis=0, keepdims=True) - mean
    rest = data - by_seed - by_example - mean
    ms_seed = examples * float(np.sum(by_seed**2)) / (seeds - 1)
    ms_example = seeds * float(np.sum(by_example**2)) / (examples - 1)
    ms_rest = float(np.sum(rest**2)) / ((seeds - 1) * (examples - 1))
    excess = max(ms_example - ms_rest, 0.0)
    total = ms_seed + excess
    if total <= (1e-13 * float(np.abs(data).max())) ** 2 * data.size:  # equal values, but for the last bits
        agreed = 2.0 ** (1 - examples) if abs(mean) > 0 else 1.0
        return {"difference": mean, "lower": mean, "upper": mean, "p_value": agreed}
    freedom = total**2 / (ms_seed * total / (seeds - 1) + excess**2 / (examples - 1))
    error = float(np.sqrt(total / data.size))
    reach = float(stats.t.ppf((1 + confidence) / 2, freedom)) * error
    p_value = 2 * float(stats.t.sf(abs(mean) / error, freedom))
    return {"difference": mean, "lower": mean - reach, "upper": mean + reach, "p_value": min(1.0, p_value)}
