"""Bootstrap of means: intervals and paired tests from one vectorised set of resamples.

Source: Efron and Tibshirani, An Introduction to the Bootstrap (1993), chapters 13 (percentile), 14 (BCa), 16 (tests).

Degenerate inputs have defined results, never NaN: no values give mean, lower and upper 0.0 and p-value 1.0; a single
value, or values that are all equal, give lower = upper = mean.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]

# Resamples drawn at once. A constant, because the random stream is cut by it: changing it changes the draws.
CHUNK = 50


def bootstrap_means(matrix: ArrayLike, *, samples: int = 1000, seed: int = 0) -> Floats:
    """Means of `samples` resamples of the rows of `matrix` [n, k]: float64 [samples, k].

    All k columns see the same resamples, so that differences of columns are paired by construction.
    """
    values = np.ascontiguousarray(matrix, dtype=np.float64)
    if values.ndim != 2:
        raise ValueError(f"bootstrap_means: expected a matrix [n, k], got shape {values.shape}")
    n, columns = values.shape
    if n == 0:
        return np.zeros((samples, columns))
    rng = np.random.default_rng(seed)
    means = np.empty((samples, columns))
    weights = np.empty((min(CHUNK, samples), n))  # how often each row was drawn
    for start in range(0, samples, CHUNK):
        rows = min(CHUNK, samples - start)
        draws = rng.integers(0, n, size=(rows, n))
        for sample in range(rows):  # one at a time: its counts stay in the processor's cache
            weights[sample] = np.bincount(draws[sample], minlength=n)
        means[start : start + rows] = weights[:rows] @ values
    return means / n


def bootstrap_ci(
    values: ArrayLike, *, samples: int = 1000, seed: int = 0, confidence: float = 0.95, method: str = "percentile"
) -> tuple[float, float, float]:
    """(mean, lower, upper) of the mean of `values` [n] by the percentile or the "bca" bootstrap."""
    data = _vector(values)
    return bootstrap_cis(data[:, None], samples=samples, seed=seed, confidence=confidence, method=method)[0]


def bootstrap_cis(
    matrix: ArrayLike, *, samples: int = 1000, seed: int = 0, confidence: float = 0.95, method: str = "percentile"
) -> list[tuple[float, float, float]]:
    """`bootstrap_ci` of every column of `matrix` [n, k], all from the same resamples."""
    means = bootstrap_means(matrix, samples=samples, seed=seed)
    columns = np.asarray(matrix, dtype=np.float64).T
    return [
        interval(column, means[:, k], confidence=confidence, method=method)
        for k, column in enumerate(np.ascontiguousarray(columns))
    ]


def interval(data: Floats, means: Floats, *, confidence: float, method: str) -> tuple[float, float, float]:
    """(mean, lower, upper) of `data` [n] from bootstrap `means` [samples] of it."""
    if method not in ("percentile", "bca"):
        raise ValueError(f"bootstrap method {method!r}: expected percentile or bca")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence {confidence}: expected a number between 0 and 1")
    if len(data) == 0:
        return 0.0, 0.0, 0.0
    mean = float(data.mean())
    if np.all(data == data[0]):
        return float(data[0]), float(data[0]), float(data[0])
    tails = np.array([(1 - confidence) / 2, (1 + confidence) / 2])
    if method == "bca":
        tails = _bca_tails(data, means, mean, tails)
    lower, upper = np.quantile(means, tails)
    return mean, float(lower), float(upper)


def _bca_tails(data: Floats, means: Floats, mean: float, tails: Floats) -> Floats:
    """Bias-corrected and accelerated quantile levels: Efron and Tibshirani, eq. 14.9 to 14.15."""
    from scipy.special import ndtr, ndtri

    # Ties count half; the clip keeps the bias finite where every resampled mean lies on one side.
    below = (np.sum(means < mean) + 0.5 * np.sum(means == mean)) / len(means)
    bias = ndtri(np.clip(below, 0.5 / len(means), 1 - 0.5 / len(means)))
    # For a mean the jackknife deviations are (x - mean) / (n - 1); their common factor cancels in eq. 14.15.
    deviations = data - mean
    acceleration = np.sum(deviations**3) / (6 * np.sum(deviations**2) ** 1.5)
    z = ndtri(tails)
    return ndtr(bias + (bias + z) / (1 - acceleration * (bias + z)))


def paired_bootstrap(
    a: ArrayLike, b: ArrayLike, *, samples: int = 1000, seed: int = 0, confidence: float = 0.95
) -> dict[str, float]:
    """Difference of paired means, b − a, with a percentile interval and a two-sided p-value.

    The p-value is the one that the interval inverts: 2 × the smaller share of resampled differences on one side of
    0, with 1 added to both counts (so that it is never 0; the smallest possible value is 2 / (samples + 1)).
    """
    difference = paired_difference(a, b)
    if len(difference) == 0:
        return {"difference": 0.0, "lower": 0.0, "upper": 0.0, "p_value": 1.0}
    means = bootstrap_means(difference[:, None], samples=samples, seed=seed)[:, 0]
    mean, lower, upper = interval(difference, means, confidence=confidence, method="percentile")
    return {"difference": mean, "lower": lower, "upper": upper, "p_value": two_sided_p(means)}


def two_sided_p(means: Floats) -> float:
    """Two-sided bootstrap p-value of "the mean is 0" from resampled means [samples]."""
    tail = min(int(np.sum(means <= 0)), int(np.sum(means >= 0)))
    return float(min(1.0, 2 * (tail + 1) / (len(means) + 1)))


def paired_difference(a: ArrayLike, b: ArrayLike) -> Floats:
    """b − a as float64 [n]; ValueError for unequal lengths or values that are not finite."""
    first, second = _vector(a), _vector(b)
    if len(first) != len(second):
        raise ValueError(f"paired values of unequal number: {len(first)} and {len(second)}")
    return second - first


def _vector(values: ArrayLike | Sequence[Any]) -> Floats:
    data = np.asarray(values, dtype=np.float64)
    if data.ndim != 1:
        raise ValueError(f"expected a list of numbers, got shape {data.shape}")
    if not np.all(np.isfinite(data)):
        raise ValueError("a value is NaN or infinite")
    return data
