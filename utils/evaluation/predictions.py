"""Rows of predictions.jsonl: made from summaries by stage 4, read again by the attacks. Torch-free."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from utils.analysis.records import Prediction
from utils.core.errors import InputError
from utils.core.files import read_jsonl
from utils.core.names import METRICS
from utils.core.results import read_result
from utils.evaluation.decoding import input_fingerprint
from utils.scoring.rouge import rouge_scores

if TYPE_CHECKING:
    from datasets import Dataset

FILE = "predictions.jsonl"


def score_summaries(
    dataset: str,
    model: str,
    ids: Sequence[str],
    summaries: Sequence[str],
    references: Sequence[str],
    *,
    processes: int | None = None,
) -> list[Prediction]:
    """One row per example: the summary, its reference and their ROUGE F-measures; `processes` as in `rouge_scores`."""
    scores = rouge_scores(summaries, references, processes=processes)
    return [
        Prediction(
            dataset=dataset,
            model=model,
            id=id_,
            prediction=summary,
            reference=reference,
            **{metric: float(scores[metric][i]) for metric in METRICS},
        )
        for i, (id_, summary, reference) in enumerate(zip(ids, summaries, references, strict=True))
    ]


def evaluated_summaries(rows: Dataset, results: Path, weights: Mapping[str, str]) -> dict[str, dict[str, str]]:
    """What stage 4 generated for those of `rows` (a prepared set) that it summarised, so that attacks need not again.

    results: the seed's results directory. weights: the sha256 of every model's weights.
    Returns {model: {input_fingerprint: summary}}. InputError where stage 4 evaluated other weights.
    """
    evaluated = read_result(results / "evaluation_results.json")["_metadata"]["checkpoints"]
    if evaluated != weights:
        raise InputError(f"{results}: stage 4 evaluated other models than those here. Run it again.")
    keys = {
        (dataset, id_): input_fingerprint(ids)
        for dataset, id_, ids in zip(rows["dataset"], rows["id"], rows["input_ids"], strict=True)
    }
    known: dict[str, dict[str, str]] = {model: {} for model in weights}
    for row in read_jsonl(results / FILE):
        key = keys.get((row["dataset"], row["id"]))
        if key is not None:
            known[row["model"]][key] = row["prediction"]
    return known
