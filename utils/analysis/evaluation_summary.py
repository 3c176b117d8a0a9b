"""From the rows of predictions.jsonl to evaluation_results.json. Torch-free."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from utils.analysis.bootstrap import Resampling, bootstrap_cis
from utils.analysis.comparisons import Interval, PairedTest
from utils.analysis.records import Prediction
from utils.analysis.results import EvaluationResults, Lengths, MeanLength, RougeCell, RougeComparison
from utils.analysis.statistics import compare_models, corrected
from utils.analysis.summary_shape import loops, sameness
from utils.core.names import BASELINE, METRICS, MONOTONIC, STANDARD, TRAINED_KEYS

Cells = Mapping[tuple[str, str], Sequence[Prediction]]  # by data set and model
Place = tuple[str, str]  # data set and metric


def evaluation_results(
    rows: Iterable[Prediction],
    datasets: Sequence[str],
    *,
    samples: int,
    seed: int,
    confidence: float = 0.95,
    seconds: Mapping[tuple[str, str], float] | None = None,
) -> EvaluationResults:
    """The results of stage 4 from its rows: every model on every one of `datasets`.

    seconds: what generating took for each (data set, model), to be reported; None: not reported.
    """
    ci: Resampling = {"samples": samples, "seed": seed, "confidence": confidence}
    cells: dict[tuple[str, str], list[Prediction]] = {}
    for row in rows:
        cells.setdefault((row.dataset, row.model), []).append(row)
    models = list(dict.fromkeys(model for _, model in cells))
    for key in datasets:
        _align(cells, key, models)
    found = {key: _rouge_cells({model: cells[key, model] for model in models}, ci) for key in datasets}
    for (key, model), taken in (seconds or {}).items():
        each = round(taken / found[key][model].num_examples, 6)
        found[key][model] = replace(found[key][model], seconds=round(taken, 3), seconds_per_summary=each)
    return EvaluationResults(
        datasets=found,
        comparisons=_comparisons(cells, datasets, ci),
    )


def _align(cells: dict[tuple[str, str], list[Prediction]], dataset: str, models: Sequence[str]) -> None:
    """Bring the rows of every model into the order of the first one's: tests compare models example by example.

    ValueError where an example is missing or there twice: then nothing is paired.
    """
    order = [row.id for row in cells.get((dataset, models[0]), [])]
    for model in models:
        by_id = {row.id: row for row in cells.get((dataset, model), [])}
        if len(by_id) < len(cells.get((dataset, model), [])) or by_id.keys() != set(order):
            raise ValueError(f"{dataset}: the summaries of {model} are not of the examples of {models[0]}, each once")
        cells[dataset, model] = [by_id[name] for name in order]


def _rouge_cells(rows_of: Mapping[str, Sequence[Prediction]], ci: Resampling) -> dict[str, RougeCell]:
    """All models on one test set; every metric of every model is bootstrapped on the same resamples."""
    columns = [(model, metric) for model in rows_of for metric in METRICS]
    matrix = np.stack([_values(rows_of[model], metric) for model, metric in columns], axis=1)
    intervals: dict[str, dict[str, Interval]] = {model: {} for model in rows_of}
    for (model, metric), (mean, lower, upper) in zip(columns, bootstrap_cis(matrix, **ci), strict=True):
        intervals[model][metric] = Interval(mean=mean, lower=lower, upper=upper)
    return {model: _rouge_cell(rows, intervals[model]) for model, rows in rows_of.items()}


def _rouge_cell(rows: Sequence[Prediction], rouge: Mapping[str, Interval]) -> RougeCell:
    words = np.array([len(row.prediction.split()) for row in rows], dtype=float)
    target = np.array([len(row.reference.split()) for row in rows], dtype=float)
    return RougeCell(
        rouge1=rouge["rouge1"],
        rouge2=rouge["rouge2"],
        rougeL=rouge["rougeL"],
        rougeLsum=rouge["rougeLsum"],
        num_examples=len(rows),
        length=Lengths(mean=float(words.mean()), min=int(words.min()), max=int(words.max())),
        reference_length=MeanLength(mean=float(target.mean())),
        brevity=float(words.sum() / max(target.sum(), 1)),
        empty_summaries=int((words == 0).sum()),
        looping_summaries=sum(loops(row.prediction) for row in rows),
        sameness=sameness([row.prediction for row in rows], [row.reference for row in rows]),
    )


def _comparisons(cells: Cells, datasets: Sequence[str], ci: Resampling) -> dict[str, dict[str, RougeComparison]]:
    """Paired tests by data set and metric: monotonic minus baseline, and in `against_standard` both minus standard.

    p-values are Holm-corrected over two families: all tests of the first kind, and all of the second. A metric whose
    scores equal another's on every example (ROUGE-Lsum of summaries of one sentence is ROUGE-L) is the same test again:
    it gets the other's p-value and does not count.
    """

    def compared(key: str, metric: str, first: str, second: str) -> PairedTest:
        return compare_models(_values(cells[key, first], metric), _values(cells[key, second], metric), **ci)

    places = [(key, metric) for key in datasets for metric in METRICS]
    between = corrected(
        {place: compared(*place, BASELINE, MONOTONIC) for place in places},
        ci["confidence"],
        _repeats(cells, places, (BASELINE, MONOTONIC)),
    )
    repeats = {
        (place, model): (other, model)
        for model in TRAINED_KEYS
        for place, other in _repeats(cells, places, (STANDARD, model)).items()
    }
    against = corrected(
        {(place, model): compared(*place, STANDARD, model) for place in places for model in TRAINED_KEYS},
        ci["confidence"],
        repeats,
    )
    return {
        key: {
            metric: RougeComparison(
                **vars(between[key, metric]),
                against_standard={model: against[(key, metric), model] for model in TRAINED_KEYS},
            )
            for metric in METRICS
        }
        for key in datasets
    }


def _repeats(cells: Cells, places: Sequence[Place], models: tuple[str, str]) -> dict[Place, Place]:
    """Places whose scores of both models are those of an earlier metric, and that metric's place."""
    first: dict[tuple[str, bytes], Place] = {}
    found = {}
    for key, metric in places:
        scores = np.stack([_values(cells[key, model], metric) for model in models])
        earlier = first.setdefault((key, scores.tobytes()), (key, metric))
        if earlier != (key, metric):
            found[key, metric] = earlier
    return found


def _values(rows: Sequence[Prediction], metric: str) -> NDArray[np.float64]:
    return np.array([getattr(row, metric) for row in rows], dtype=np.float64)
