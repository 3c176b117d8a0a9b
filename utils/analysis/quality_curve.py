"""Attack success at equal clean quality, from snapshots of each training. Torch-free.

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
from utils.analysis.records import Count, Score, Share
from utils.core.codec import Keys, Range
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
    """Success of an arm minus baseline's where both have the same clean ROUGE-L; bootstrap over examples."""

    quality: Annotated[Score, "the highest clean ROUGE-L that both reach"]
    baseline: Annotated[Share, "success there, interpolated"]
    arm: Annotated[Share, "success there, interpolated"]
    difference: Annotated[float, Range(-1, 1), "arm minus baseline"]
    lower: float
    upper: float
    left_of_final: Annotated[
        Reproduced | None,
        "difference at equal quality over that of the final snapshots; null where the latter's interval has 0 in it",
    ] = None


@dataclass(frozen=True, kw_only=True)
class Matched:
    """The quality curves, and differences at equal quality."""

    num_examples: Annotated[Count, "attacked on every snapshot; 0: QUALITY_CURVE_EXAMPLES switches the curve off"]
    candidates: Annotated[Count, "flips scored exactly at each step of the small attack"]
    curves: Annotated[dict[str, list[QualityPoint]], Keys(ARMS), "by arm, in the order of the steps"]
    against_baseline: Annotated[
        dict[str, MatchedDifference | None], Keys(ARMS), "by arm; null where the curves share no quality"
    ]
    missing: Annotated[list[str], "snapshots that were gone, in words"]


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
    tables = {arm: _table([dict(steps[step]) for step in sorted(steps)], ids) for arm, steps in by_arm.items()}
    curves = {}
    for arm, steps in by_arm.items():
        ones = np.ones(len(ids))
        quality, success = _curve(tables[arm], ones)
        curves[arm] = [
            QualityPoint(
                step=step,
                epoch=next(iter(steps[step].values())).epoch,
                clean_rougeL=float(quality[n]),
                num_attackable=int(tables[arm][1][n].sum()),
                success_rate=None if np.isnan(success[n]) else float(success[n]),
            )
            for n, step in enumerate(sorted(steps))
        ]
    found: dict[str, MatchedDifference | None] = {}
    if BASELINE in tables:
        draws = np.random.default_rng(seed).multinomial(len(ids), np.full(len(ids), 1 / len(ids)), size=samples)
        found = {
            arm: _difference(tables[BASELINE], tables[arm], draws, confidence) for arm in tables if arm != BASELINE
        }
    return Matched(
        num_examples=len(ids), candidates=candidates, curves=curves, against_baseline=found, missing=list(missing)
    )


# Of one arm: clean ROUGE-L, attackable and success, float64 [snapshots, examples]; what is not measured is 0.
_Table = tuple[Floats, Floats, Floats]


def _table(snapshots: Sequence[Mapping[str, QualityRow]], ids: Sequence[str]) -> _Table:
    rows = [[snapshot[name] for name in ids] for snapshot in snapshots]
    clean = np.array([[row.clean_rougeL or 0.0 for row in line] for line in rows])
    attackable = np.array([[row.success is not None for row in line] for line in rows], dtype=np.float64)
    return clean, attackable, np.array([[bool(row.success) for row in line] for line in rows], dtype=np.float64)


def _curve(table: _Table, weights: Floats) -> tuple[Floats, Floats]:
    """Clean ROUGE-L and success rate of each snapshot, float64 [snapshots], with examples [n] counted `weights` times.

    The rate is NaN where nothing was attackable.
    """
    clean, attackable, success = (part @ weights for part in table)
    with np.errstate(invalid="ignore", divide="ignore"):
        return clean / weights.sum(), success / attackable


def _at(table: _Table, weights: Floats, quality: float | None = None) -> tuple[Floats, Floats]:
    """Points of the curve with a success rate, by rising quality."""
    x, y = _curve(table, weights)
    order = np.argsort(x, kind="stable")
    order = order[~np.isnan(y[order])]
    return x[order], y[order]


def _both(first: _Table, second: _Table, weights: Floats) -> tuple[float, float, float] | None:
    """The highest quality that both reach, and the two success rates there; None where the curves share none."""
    (x, y), (u, v) = _at(first, weights), _at(second, weights)
    if not len(x) or not len(u):
        return None
    quality = float(min(x[-1], u[-1]))
    if quality < max(x[0], u[0]):
        return None
    return quality, float(np.interp(quality, x, y)), float(np.interp(quality, u, v))


def _difference(baseline: _Table, arm: _Table, draws: NDArray[np.int64], confidence: float) -> MatchedDifference | None:
    found = _both(baseline, arm, np.ones(draws.shape[1]))
    if found is None:
        return None
    again = [(_both(baseline, arm, draw), _final(arm, draw) - _final(baseline, draw)) for draw in map(_float, draws)]
    pairs = [(one[2] - one[1], final) for one, final in again if one is not None]
    if not pairs:
        return None
    ends = [(1 - confidence) / 2, (1 + confidence) / 2]
    lower, upper = np.quantile([change for change, _ in pairs], ends)
    quality, first, second = found
    whole, ones = np.array([final for _, final in pairs]), np.ones(draws.shape[1])
    low, high = np.quantile(whole, ends)  # NaN, so neither above nor below 0, where nothing was attackable
    left = None
    if low > 0 or high < 0:
        shares = np.array([change for change, _ in pairs]) / np.where(whole == 0, np.nan, whole)
        bounds = np.nanquantile(shares, ends)
        point = (second - first) / (_final(arm, ones) - _final(baseline, ones))
        left = Reproduced(share=float(point), lower=float(bounds[0]), upper=float(bounds[1]))
    return MatchedDifference(
        quality=quality,
        baseline=first,
        arm=second,
        difference=second - first,
        lower=float(lower),
        upper=float(upper),
        left_of_final=left,
    )


def _float(draw: NDArray[np.int64]) -> Floats:
    return draw.astype(np.float64)


def _final(table: _Table, weights: Floats) -> float:
    """The success rate of the last snapshot; NaN where nothing was attackable."""
    return float(_curve(table, weights)[1][-1])
