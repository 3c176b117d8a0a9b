"""Bootstrap of means: percentile intervals from one vectorised set of resamples.

Source: Efron and Tibshirani, An Introduction to the Bootstrap (1993), chapter 13.

Degenerate inputs have defined results, never NaN: no values give mean, lower and upper 0.0; a single value, or values
that are all equal, give lower = upper = mean.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypedDict

import numpy as np
from numpy.typing import ArrayLike, NDArray

from utils.core.settings import Settings

Floats = NDArray[np.float64]


class Resampling(TypedDict):
    """How the intervals of a result are made, as keyword arguments: resamples, seed, confidence (0.95 = 95 %)."""

    samples: int
    seed: int
    confidence: float


def resampling(settings: Settings) -> Resampling:
    """How the settings say; every seed's intervals are made with the same draws."""
    return Resampling(samples=settings.BOOTSTRAP_SAMPLES, seed=settings.DATA_SEED, confidence=settings.CONFIDENCE)


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
    values: ArrayLike, *, samples: int = 1000, seed: int = 0, confidence: float = 0.95
) -> tuple[float, float, float]:
    """(mean, lower, upper) of the mean of `values` [n]."""
    return bootstrap_cis(_vector(values)[:, None], samples=samples, seed=seed, confidence=confidence)[0]


def bootstrap_cis(
    matrix: ArrayLike, *, samples: int = 1000, seed: int = 0, confidence: float = 0.95
) -> list[tuple[float, float, float]]:
    """`bootstrap_ci` of every column of `matrix` [n, k], all from the same resamples."""
    if not 0 < confidence < 1:
        raise ValueError(f"confidence {confidence}: expected a number between 0 and 1")
    means = bootstrap_means(matrix, samples=samples, seed=seed)
    columns = np.ascontiguousarray(np.asarray(matrix, dtype=np.float64).T)
    return [_interval(column, means[:, k], confidence) for k, column in enumerate(columns)]


def _interval(data: Floats, means: Floats, confidence: float) -> tuple[float, float, float]:
    """(mean, lower, upper) of `data` [n] from bootstrap `means` [samples] of it."""
    if len(data) == 0:
        return 0.0, 0.0, 0.0
    if np.all(data == data[0]):
        return float(data[0]), float(data[0]), float(data[0])
    lower, upper = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(data.mean()), float(lower), float(upper)


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
