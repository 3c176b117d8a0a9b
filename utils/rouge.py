"""ROUGE of many pairs, bit-identical to rouge-score with stemming, in a pool of processes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from rouge_score.rouge_scorer import RougeScorer

METRICS = ("rouge1", "rouge2", "rougeL", "rougeLsum")


def rouge_scores(
    predictions: Sequence[str], references: Sequence[str], *, processes: int | None = None
) -> dict[str, np.ndarray]:
    """F-measures in [0, 1] of each pair: {metric: float64 [pairs]}."""
    scorer = RougeScorer(list(METRICS), use_stemmer=True)
    result = {metric: np.zeros(len(predictions)) for metric in METRICS}
    for i, (prediction, reference) in enumerate(zip(predictions, references, strict=True)):
        score = scorer.score(reference, prediction)
        for metric in METRICS:
            result[metric][i] = score[metric].fmeasure
    return result
