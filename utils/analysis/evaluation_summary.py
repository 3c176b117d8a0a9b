"""From the rows of predictions.jsonl to the numbers of evaluation_results.json. Torch-free."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from utils.analysis.bootstrap import bootstrap_cis
from utils.analysis.statistics import compare_models, correct_family
from utils.core.names import BASELINE, METRICS, MONOTONIC, STANDARD, TRAINED_KEYS
from utils.core.settings import Settings

Row = dict[str, Any]
Cells = dict[tuple[str, str], list[Row]]  # the rows of (data set, model)


def evaluation_results(
    rows: Sequence[Row],
    datasets: Sequence[str],
    settings: Settings,
    *,
    seconds: Mapping[tuple[str, str], float] | None = None,
) -> dict[str, Any]:
    """The `results` of evaluation_results.json.

    rows: of predictions.jsonl, every model on every one of `datasets`. seconds: what generating took for each
    (data set, model), to be reported; None: not reported.
    """
    cells: Cells = {}
    for row in rows:
        cells.setdefault((row["dataset"], row["model"]), []).append(row)
    models = list(dict.fromkeys(model for _, model in cells))
    results: dict[str, Any] = {
        key: _summaries({model: cells[key, model] for model in models}, settings) for key in datasets
    }
    for (key, model), taken in (seconds or {}).items():
        results[key][model]["seconds"] = round(taken, 3)
        results[key][model]["seconds_per_summary"] = round(taken / len(cells[key, model]), 6)
    results["comparisons"] = _comparisons(cells, datasets, settings)
    return results


def _summaries(rows_of: Mapping[str, Sequence[Row]], settings: Settings) -> dict[str, Any]:
    """All models on one test set; every metric of every model is bootstrapped on the same resamples of examples."""
    columns = [(model, metric) for model in rows_of for metric in METRICS]
    intervals = bootstrap_cis(
        np.stack([_values(rows_of[model], metric) for model, metric in columns], axis=1),  # [examples, columns]
        samples=settings.BOOTSTRAP_SAMPLES,
        seed=settings.DATA_SEED,
        confidence=settings.CONFIDENCE,
    )
    results: dict[str, dict[str, Any]] = {model: {} for model in rows_of}
    for (model, metric), (mean, lower, upper) in zip(columns, intervals, strict=True):
        results[model][metric] = {"mean": mean, "lower": lower, "upper": upper}
    return {model: cell | _lengths(rows_of[model]) for model, cell in results.items()}


def _lengths(rows: Sequence[Row]) -> dict[str, Any]:
    """Lengths in words of the summaries and their references."""
    words = np.array([len(row["prediction"].split()) for row in rows], dtype=float)
    target = np.array([len(row["reference"].split()) for row in rows], dtype=float)
    return {
        "num_examples": len(rows),
        "length": {"mean": float(words.mean()), "min": int(words.min()), "max": int(words.max())},
        "reference_length": {"mean": float(target.mean())},
        "brevity": float(words.sum() / max(target.sum(), 1)),
        "empty_summaries": int((words == 0).sum()),
    }


def _comparisons(cells: Cells, datasets: Sequence[str], settings: Settings) -> dict[str, Any]:
    """Paired tests by data set and metric: monotonic minus baseline, and in `against_standard` both minus standard.

    p-values are Holm-corrected over two families: all tests of the first kind, and all of the second.
    """

    def difference(key: str, metric: str, minus: str, model: str) -> dict[str, Any]:
        return compare_models(
            _values(cells[key, minus], metric),
            _values(cells[key, model], metric),
            samples=settings.BOOTSTRAP_SAMPLES,
            seed=settings.DATA_SEED,
            confidence=settings.CONFIDENCE,
        )

    comparisons: dict[str, Any] = {
        key: {metric: difference(key, metric, BASELINE, MONOTONIC) for metric in METRICS} for key in datasets
    }
    correct_family([cell for by_metric in comparisons.values() for cell in by_metric.values()])
    against_standard: list[dict[str, Any]] = []
    for key in datasets:
        for metric in METRICS:
            tests = {model: difference(key, metric, STANDARD, model) for model in TRAINED_KEYS}
            comparisons[key][metric]["against_standard"] = tests
            against_standard += tests.values()
    correct_family(against_standard)
    return comparisons


def _values(rows: Sequence[Row], metric: str) -> np.ndarray:
    """float64 [examples]"""
    return np.array([row[metric] for row in rows])
