"""What summaries of HotFlip and of universal triggers have in common: success, drops, paired tests. Torch-free."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from utils.analysis.bootstrap import Resampling, bootstrap_ci
from utils.analysis.comparisons import Advantage, AttackTests, PairedTest, SuccessTest
from utils.analysis.measures import improved_rate, reaches_threshold, rouge_change, success_rate
from utils.analysis.records import AttackRecord, column
from utils.analysis.statistics import compare_models, holm, in_family, mcnemar, wilson_interval

THRESHOLDS = tuple(round(0.05 * k, 2) for k in range(1, 11))  # 5 % to 50 %
Attack = TypeVar("Attack", bound=AttackRecord)
Part = TypeVar("Part")


def part_of(kind: type[Part], figures: object) -> Part:
    """The record `kind` from those fields of `figures` that it has."""
    names = [field.name for field in fields(kind) if hasattr(figures, field.name)]  # type: ignore[arg-type]
    return kind(**{name: getattr(figures, name) for name in names})


def counts(records: Sequence[AttackRecord], threshold: float) -> dict[str, Any]:
    """The fields of AttackFigures that count examples."""
    reasons = Counter(record.skipped for record in records if record.skipped is not None)
    return {
        "num_examples": len(records),
        "num_attackable": len(records) - reasons.total(),
        "num_skipped": reasons.total(),
        "skipped": dict(sorted(reasons.items())),
        "threshold": threshold,
    }


def success_figures(live: Sequence[AttackRecord], threshold: float, ci: Resampling) -> dict[str, Any]:
    """The fields of AttackFigures about drops and success, from attackable records."""
    if not live:
        return {"success_rate": None, "mean_degradation": None}
    drop = column(live, "relative_drop")
    successes = int(reaches_threshold(drop, threshold).sum())
    rate, lower, upper = wilson_interval(successes, len(drop), confidence=ci["confidence"])
    return {
        "success_rate": rate,
        "success_rate_ci": (lower, upper),
        "improved_rate": improved_rate(drop, threshold),
        "success_by_threshold": {f"{t:.2f}": success_rate(drop, t) for t in THRESHOLDS},
        "mean_degradation": float(drop.mean()),
        "mean_degradation_ci": bootstrap_ci(drop, **ci)[1:],
    }


def changes(records: Sequence[AttackRecord]) -> NDArray[np.float64]:
    """ROUGE-L after minus before, float64 [N]."""
    return rouge_change(column(records, "clean_rougeL"), column(records, "attacked_rougeL"))


def common(first: Sequence[Attack], second: Sequence[Attack]) -> tuple[list[Attack], list[Attack]]:
    """The records of examples that are attackable in both lists, paired by id."""
    other = {record.id: record for record in second if record.skipped is None}
    pairs = [(record, other[record.id]) for record in first if record.skipped is None and record.id in other]
    return [a for a, _ in pairs], [b for _, b in pairs]


def compare_success(
    a: Sequence[AttackRecord], b: Sequence[AttackRecord], threshold: float, confidence: float
) -> SuccessTest:
    """McNemar's test of success on common examples."""
    success = [reaches_threshold(column(side, "relative_drop"), threshold) for side in (a, b)]
    return mcnemar(*success, confidence=confidence)


def compare_figures(a: Sequence[AttackRecord], b: Sequence[AttackRecord], ci: Resampling) -> dict[str, PairedTest]:
    """Paired tests of drop, ROUGE-L change and loss rise on common examples, b minus a."""
    return {
        "relative_drop": compare_models(column(a, "relative_drop"), column(b, "relative_drop"), **ci),
        "delta_rougeL": compare_models(changes(a), changes(b), **ci),
        "loss_increase": compare_models(column(a, "loss_increase"), column(b, "loss_increase"), **ci),
    }


def corrected_tests(comparisons: Mapping[str, AttackTests], confidence: float) -> dict[str, AttackTests]:
    """Holm over every test of every comparison at once."""
    names = ("success", "relative_drop", "delta_rougeL", "loss_increase", "nll_increase")
    family = {(key, name): getattr(tests, name) for key, tests in comparisons.items() for name in names}
    family = {place: test for place, test in family.items() if test is not None}
    adjusted = holm({place: test.p_value for place, test in family.items()})
    return {
        key: replace(
            tests,
            **{
                name: in_family(family[key, name], adjusted[key, name], len(family), confidence)
                for name in names
                if (key, name) in family
            },
        )
        for key, tests in comparisons.items()
    }


def advantage(own: Sequence[AttackRecord], other: Sequence[AttackRecord], threshold: float) -> Advantage | None:
    """How much more the other attack does on common attackable examples; None without any."""
    a, b = common(own, other)
    if not a:
        return None
    success = [reaches_threshold(column(side, "relative_drop"), threshold).astype(float) for side in (a, b)]
    gained, rise = success[1] - success[0], column(b, "loss_increase") - column(a, "loss_increase")
    spread = [float(values.std(ddof=1)) if len(a) > 1 else 0.0 for values in (gained, rise)]
    return Advantage(
        n=len(a), success=float(gained.mean()), success_sd=spread[0], loss=float(rise.mean()), loss_sd=spread[1]
    )
