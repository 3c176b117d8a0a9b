"""What did it? How much of the difference between baseline and monotonic each control arm reproduces. Torch-free.

Success, ROUGE-L drop and loss rise are those of the worst case (utils/analysis/hotflip_summary.py), on the examples
that can be attacked on all three models; ROUGE-L is that of the unattacked summaries of the same data set.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import numpy as np
from numpy.typing import NDArray

from utils.analysis.bootstrap import Resampling
from utils.analysis.claims import Measure
from utils.analysis.comparisons import PairedTest, SuccessTest
from utils.analysis.measures import reaches_threshold
from utils.analysis.records import HotFlipRecord, attackable, given
from utils.analysis.statistics import compare_models, corrected, mcnemar
from utils.core.codec import Inline, Keys
from utils.core.files import read_jsonl
from utils.core.names import BASELINE, CONTROLS, MONOTONIC

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Reproduced:
    """A share of monotonic's difference from baseline, 1 for all of it and 0 for nothing, with its interval.

    Of a control arm: (arm - baseline) / (monotonic - baseline). Of one seed the interval is a percentile bootstrap over
    examples, of several Fieller's, with seeds and examples crossed.
    """

    share: float
    lower: float
    upper: float


@dataclass(frozen=True, kw_only=True)
class ArmAttribution:
    """One control arm (b) against each model of the pair (a); Holm over all tests of all arms, one family."""

    success_vs_baseline: SuccessTest
    success_vs_monotonic: SuccessTest
    rougeL_vs_baseline: PairedTest
    rougeL_vs_monotonic: PairedTest
    success_reproduced: Annotated[
        Reproduced | None, "of worst-case success; null where no test shows the pair's difference"
    ]
    drop_reproduced: Annotated[
        Reproduced | None, "of the worst case's mean ROUGE-L drop; null where no test shows the pair's difference"
    ]
    loss_reproduced: Annotated[
        Reproduced | None, "of the worst case's mean loss rise; null where no test shows the pair's difference"
    ]

    def reproduced(self, measure: Measure) -> Reproduced | None:
        """The share of a pre-named measure."""
        of: dict[Measure, Reproduced | None] = {
            "success": self.success_reproduced,
            "relative_drop": self.drop_reproduced,
            "loss_increase": self.loss_reproduced,
        }
        return of[measure]


@dataclass(frozen=True, kw_only=True)
class AttributionResults:
    """The attribution, by control arm."""

    arms: Annotated[dict[str, ArmAttribution], Inline, Keys(CONTROLS)]


def attribution(
    worst: Mapping[str, Sequence[HotFlipRecord]],
    rouge: Mapping[str, Mapping[str, float]],
    *,
    threshold: float,
    ci: Resampling,
) -> dict[str, ArmAttribution]:
    """The attribution of every arm in `worst` but the pair.

    worst: by model, the worst case's record of each example; rouge: by model and example id, clean ROUGE-L.
    """
    usable = {model: {record.id: record for record in attackable(records)} for model, records in worst.items()}
    made, alpha = {}, 1 - ci["confidence"]
    for arm in worst:
        if arm in (BASELINE, MONOTONIC):
            continue
        trio = (BASELINE, MONOTONIC, arm)
        common = sorted(set.intersection(*(set(usable[model]) for model in trio)))
        kept = {model: [usable[model][name] for name in common] for model in trio}
        drop = {model: np.array([given(one.relative_drop) for one in kept[model]], dtype=np.float64) for model in trio}
        rise = {model: np.array([given(one.loss_increase) for one in kept[model]], dtype=np.float64) for model in trio}
        success = {model: reaches_threshold(values, threshold) for model, values in drop.items()}
        scored = sorted(set.intersection(*(set(rouge[model]) for model in trio)))
        score = {model: [rouge[model][name] for name in scored] for model in trio}
        made[arm] = ArmAttribution(
            success_vs_baseline=mcnemar(success[BASELINE], success[arm], confidence=ci["confidence"]),
            success_vs_monotonic=mcnemar(success[MONOTONIC], success[arm], confidence=ci["confidence"]),
            rougeL_vs_baseline=compare_models(score[BASELINE], score[arm], **ci),
            rougeL_vs_monotonic=compare_models(score[MONOTONIC], score[arm], **ci),
            success_reproduced=reproduced(*(success[model].astype(np.float64) for model in trio), ci=ci)
            if mcnemar(success[BASELINE], success[MONOTONIC], confidence=ci["confidence"]).p_value < alpha
            else None,
            drop_reproduced=_of_mean(*(drop[model] for model in trio), ci=ci),
            loss_reproduced=_of_mean(*(rise[model] for model in trio), ci=ci),
        )
    return _one_family(made, ci["confidence"])


def _of_mean(baseline: Floats, monotonic: Floats, arm: Floats, *, ci: Resampling) -> Reproduced | None:
    shown = compare_models(baseline, monotonic, **ci).p_value < 1 - ci["confidence"]
    return reproduced(baseline, monotonic, arm, ci=ci) if shown else None


def reproduced(baseline: Floats, monotonic: Floats, arm: Floats, *, ci: Resampling) -> Reproduced | None:
    """The share of monotonic's difference that an arm reproduces, from paired values [examples].

    None where the interval of the difference itself has 0 in it: a share of nothing says nothing, and the ratio of two
    means is unstable there (Fieller 1954).
    """
    n = len(baseline)
    if not n:
        return None
    counts = np.random.default_rng(ci["seed"]).multinomial(n, np.full(n, 1 / n), size=ci["samples"])
    whole, part = counts @ (monotonic - baseline) / n, counts @ (arm - baseline) / n  # float64 [samples]
    ends = [(1 - ci["confidence"]) / 2, (1 + ci["confidence"]) / 2]
    low, high = np.quantile(whole, ends)
    if low <= 0 <= high:
        return None
    shares = part[whole != 0] / whole[whole != 0]
    lower, upper = np.quantile(shares, ends)
    mean = float(np.mean(arm - baseline) / np.mean(monotonic - baseline))
    return Reproduced(share=mean, lower=float(lower), upper=float(upper))


TESTS = ("success_vs_baseline", "success_vs_monotonic", "rougeL_vs_baseline", "rougeL_vs_monotonic")


def _one_family(made: Mapping[str, ArmAttribution], confidence: float) -> dict[str, ArmAttribution]:
    tests = {(arm, name): getattr(one, name) for arm, one in made.items() for name in TESTS}
    adjusted = corrected(tests, confidence)
    return {arm: replace(one, **{name: adjusted[arm, name] for name in TESTS}) for arm, one in made.items()}


def rouge_by_id(predictions: Path, dataset: str) -> dict[str, dict[str, float]]:
    """ROUGE-L of every model's summary on a data set, by model and example id, from predictions.jsonl."""
    scores: dict[str, dict[str, float]] = {}
    for row in read_jsonl(predictions):
        if row["dataset"] == dataset:
            scores.setdefault(row["model"], {})[row["id"]] = row["rougeL"]
    return scores
