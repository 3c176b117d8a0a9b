"""Attacks at equal clean quality, from snapshots of each training: success, and the next measures. Torch-free.

A worse model is harder to hurt: what little it says right is soon said wrong, or cannot fall by 15 %. So models are
compared where their clean ROUGE-L is equal, by interpolation between neighbouring snapshots.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from numpy.typing import NDArray

from utils.analysis.attribution import Reproduced
from utils.analysis.claims import Measure
from utils.analysis.records import Count, Score, Share
from utils.core.codec import Keys
from utils.core.names import ARMS, BASELINE

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class QualityRow:
    """One example on one snapshot of an arm."""

    arm: str
    step: Annotated[Count, "optimizer steps of the snapshot"]
    epoch: Annotated[float, "the same in epochs"]
    id: str
    clean_rougeL: Annotated[Score | None, "null: the example has no text"]
    success: Annotated[bool | None, "null: not attackable"]
    relative_drop: Annotated[float | None, "of ROUGE-L, as in the worst case; null: not attackable"]
    loss_increase: Annotated[float | None, "nats per label token; null: not attackable"]

    def value(self, measure: Measure) -> float:
        """What a mean over the attackable examples is taken of; 0 where this one is not attackable."""
        of: dict[Measure, float | None] = {
            "success": self.success,
            "relative_drop": self.relative_drop,
            "loss_increase": self.loss_increase,
        }
        return float(of[measure] or 0.0)


@dataclass(frozen=True, kw_only=True)
class QualityPoint:
    """One snapshot."""

    step: Annotated[Count, "optimizer steps"]
    epoch: float
    clean_rougeL: Score
    num_attackable: Count
    success_rate: Annotated[Share | None, "null: nothing was attackable"]


@dataclass(frozen=True, kw_only=True)
class MatchedDifference:
    """An arm minus baseline in one measure, where both have the same clean ROUGE-L; bootstrap over examples."""

    quality: Annotated[Score, "the highest clean ROUGE-L that both reach"]
    baseline: Annotated[float, "the measure there, interpolated"]
    arm: Annotated[float, "the measure there, interpolated"]
    difference: Annotated[float, "arm minus baseline"]
    lower: float
    upper: float
    left_of_final: Annotated[
        Reproduced | None,
        "difference at equal quality over that of the final snapshots; null where the latter's interval has 0 in it",
    ] = None


ByArm = Annotated[dict[str, MatchedDifference | None], Keys(ARMS)]


@dataclass(frozen=True, kw_only=True)
class Matched:
    """The quality curves, and differences at equal quality, by arm; null where two curves share no quality."""

    num_examples: Annotated[Count, "attacked on every snapshot; 0: QUALITY_CURVE_EXAMPLES switches the curve off"]
    candidates: Annotated[Count, "flips scored exactly at each step of the small attack"]
    curves: Annotated[dict[str, list[QualityPoint]], Keys(ARMS), "by arm, in the order of the steps"]
    against_baseline: Annotated[ByArm, "of success"]
    drop_against_baseline: Annotated[ByArm, "of the mean relative ROUGE-L drop"]
    loss_against_baseline: Annotated[ByArm, "of the mean loss rise, nats per token"]
    missing: Annotated[list[str], "snapshots that were gone, in words"]

    def differences(self, measure: Measure) -> dict[str, MatchedDifference | None]:
        """Those of a pre-named measure."""
        found: dict[Measure, dict[str, MatchedDifference | None]] = {
            "success": self.against_baseline,
            "relative_drop": self.drop_against_baseline,
            "loss_increase": self.loss_against_baseline,
        }
        return found[measure]


def matched(
    rows: Sequence[QualityRow],
    *,
    candidates: int,
    missing: Sequence[str],
    samples: int,
    seed: int,
    confidence: float,
) -> Matched:
    """Curves and matched differences of all arms in `rows`; every snapshot has the same examples."""
    by_arm: dict[str, dict[int, dict[str, QualityRow]]] = {}
    for row in rows:
        by_arm.setdefault(row.arm, {}).setdefault(row.step, {})[row.id] = row
    ids = sorted({row.id for row in rows})
    weights = np.ones((1 + (samples if ids else 0), len(ids)))  # [1 + samples, examples]; the first row is the data
    if ids:
        weights[1:] = np.random.default_rng(seed).multinomial(len(ids), np.full(len(ids), 1 / len(ids)), size=samples)

    def curves_by(measure: Measure) -> dict[str, _Curve]:
        kept = {arm: [steps[step] for step in sorted(steps)] for arm, steps in by_arm.items()}
        return {arm: _curve(snapshots, ids, weights, measure) for arm, snapshots in kept.items()}

    def against(found: Mapping[str, _Curve]) -> dict[str, MatchedDifference | None]:
        others = [arm for arm in found if arm != BASELINE] if BASELINE in found else []
        return {arm: _difference(found[BASELINE], found[arm], confidence) for arm in others}

    success = curves_by("success")
    curves = {
        arm: [
            QualityPoint(
                step=step,
                epoch=next(iter(steps[step].values())).epoch,
                clean_rougeL=float(success[arm][0][0, n]),
                num_attackable=sum(row.success is not None for row in steps[step].values()),
                success_rate=None if np.isnan(rate := success[arm][1][0, n]) else float(rate),
            )
            for n, step in enumerate(sorted(steps))
        ]
        for arm, steps in by_arm.items()
    }
    return Matched(
        num_examples=len(ids),
        candidates=candidates,
        curves=curves,
        against_baseline=against(success),
        drop_against_baseline=against(curves_by("relative_drop")),
        loss_against_baseline=against(curves_by("loss_increase")),
        missing=list(missing),
    )


# Of one arm, by resample and snapshot: clean ROUGE-L, and the measure, NaN where nothing was attackable.
_Curve = tuple[Floats, Floats]


def _curve(
    snapshots: Sequence[Mapping[str, QualityRow]], ids: Sequence[str], weights: Floats, measure: Measure
) -> _Curve:
    """Clean ROUGE-L and the mean of a measure, float64 [resamples, snapshots]; weights: [resamples, examples]."""
    rows = [[snapshot[name] for name in ids] for snapshot in snapshots]
    clean = np.array([[row.clean_rougeL or 0.0 for row in line] for line in rows])  # [snapshots, examples]
    attackable = np.array([[row.success is not None for row in line] for line in rows], dtype=np.float64)
    values = np.array([[row.value(measure) for row in line] for line in rows])
    with np.errstate(invalid="ignore", divide="ignore"):
        return weights @ clean.T / weights.sum(1, keepdims=True), (weights @ values.T) / (weights @ attackable.T)


def _both(x: Floats, y: Floats, u: Floats, v: Floats) -> tuple[float, float, float] | None:
    """The highest quality that two curves [snapshots] reach, and their values there; None where they share none."""
    (x, y), (u, v) = _rising(x, y), _rising(u, v)
    if not len(x) or not len(u):
        return None
    quality = float(min(x[-1], u[-1]))
    if quality < max(x[0], u[0]):
        return None
    return quality, float(np.interp(quality, x, y)), float(np.interp(quality, u, v))


def _rising(x: Floats, y: Floats) -> tuple[Floats, Floats]:
    """Points of a curve that have a value, by rising quality."""
    order = np.argsort(x, kind="stable")
    order = order[~np.isnan(y[order])]
    return x[order], y[order]


def _difference(baseline: _Curve, arm: _Curve, confidence: float) -> MatchedDifference | None:
    each = [_both(*curves) for curves in zip(*baseline, *arm, strict=True)]  # by resample, the data itself first
    if each[0] is None:
        return None
    quality, first, second = each[0]
    changes = np.array([np.nan if one is None else one[2] - one[1] for one in each])
    final = arm[1][:, -1] - baseline[1][:, -1]  # of the last snapshots; NaN where nothing was attackable
    usable = ~np.isnan(changes)
    usable[0] = False
    if not usable.any():
        return None
    ends = [(1 - confidence) / 2, (1 + confidence) / 2]
    lower, upper = np.quantile(changes[usable], ends)
    low, high = np.quantile(final[usable], ends)  # NaN, so neither above nor below 0, where one is NaN
    left = None
    if low > 0 or high < 0:
        bounds = np.nanquantile(changes[usable] / np.where(final == 0, np.nan, final)[usable], ends)
        left = Reproduced(share=float(changes[0] / final[0]), lower=float(bounds[0]), upper=float(bounds[1]))
    return MatchedDifference(
        quality=quality,
        baseline=first,
        arm=second,
        difference=second - first,
        lower=float(lower),
        upper=float(upper),
        left_of_final=left,
    )
