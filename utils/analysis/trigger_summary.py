"""From trigger records to the numbers that are reported."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from utils.analysis.hotflip_summary import THRESHOLDS, attacked, column, common
from utils.analysis.measures import improved_rate, reaches_threshold, rouge_change, success_rate
from utils.analysis.statistics import bootstrap_ci, compare_models, holm, mcnemar, wilson_interval
from utils.attacks.triggers.evaluation import ROUGES

Record = Mapping[str, Any]


def summarise(
    records: Sequence[Record], *, threshold: float, samples: int, seed: int, confidence: float = 0.95
) -> dict[str, Any]:
    """One trigger on one model. ROUGE and losses are over all usable examples, success over attackable ones.

    `clean`, `attacked`: {metric: {mean, lower, upper}}; `delta_rougeL`: attacked − clean with a paired interval;
    `nll_increase` in nats per token; `success_rate` at `threshold`.
    """
    usable = [record for record in records if "loss_increase" in record and record["loss_increase"] is not None]
    live = attacked(records)
    ci = {"samples": samples, "seed": seed, "confidence": confidence}
    summary: dict[str, Any] = {
        "num_examples": len(records),
        "num_attackable": len(live),
        "num_skipped": len(records) - len(live),
        "skipped": dict(sorted(Counter(r["skipped"] for r in records if r["skipped"] is not None).items())),
        "threshold": threshold,
    }
    names = ("clean", "attacked", "delta_rougeL", "nll_increase", "success_rate", "mean_degradation")
    if not usable:
        return summary | dict.fromkeys(names)
    for side in ("clean", "attacked"):
        summary[side] = {m: _interval([r[f"{side}_rouge"][m] for r in usable], ci) for m in ROUGES}
    delta = _delta(usable)
    mean, low, high = bootstrap_ci(delta, **ci)
    increase = column(usable, "loss_increase")
    summary |= {
        "delta_rougeL": mean,
        "delta_rougeL_ci": [low, high],
        "nll_increase": float(increase.mean()),
        "nll_increase_ci": list(bootstrap_ci(increase, **ci)[1:]),
        "clean_nll": float(column(usable, "clean_loss").mean()),
        "typable_count": sum(bool(r["typable"]) for r in usable),
        "num_usable": len(usable),
        "num_one_sentence": sum(bool(r["one_sentence"]) for r in usable),
    }
    if not live:
        return summary | {"success_rate": None, "mean_degradation": None}
    drop = column(live, "relative_drop")
    rate, low, high = wilson_interval(int(reaches_threshold(drop, threshold).sum()), len(drop), confidence=confidence)
    return summary | {
        "success_rate": rate,
        "success_rate_ci": [low, high],
        "improved_rate": improved_rate(drop, threshold),
        "mean_degradation": float(drop.mean()),
        "mean_degradation_ci": list(bootstrap_ci(drop, **ci)[1:]),
        "success_by_threshold": {f"{t:.2f}": success_rate(drop, t) for t in THRESHOLDS},
    }


def compare(
    first: Sequence[Record],
    second: Sequence[Record],
    *,
    threshold: float,
    samples: int,
    seed: int,
    confidence: float = 0.95,
) -> dict[str, Any]:
    """Paired tests on common attackable examples, difference = second − first (see hotflip_summary.compare)."""
    ci = {"samples": samples, "seed": seed, "confidence": confidence}
    a, b = common(first, second)
    result: dict[str, Any] = {
        "num_common": len(a),
        "success": mcnemar(
            reaches_threshold(column(a, "relative_drop"), threshold),
            reaches_threshold(column(b, "relative_drop"), threshold),
            confidence=confidence,
        ),
        "relative_drop": compare_models(column(a, "relative_drop"), column(b, "relative_drop"), **ci),
        "delta_rougeL": compare_models(_delta(a), _delta(b), **ci),
        "nll_increase": compare_models(column(a, "loss_increase"), column(b, "loss_increase"), **ci),
    }
    return result


def gained_since(half: Sequence[Record], whole: Sequence[Record], threshold: float) -> dict[str, float | int | None]:
    """What twice the iterations added, on common examples: change of success rate (a share) and of the NLL rise."""
    a, b = common(half, whole)
    if not a:
        return {"num_common": 0, "success_change": None, "nll_change": None}
    rates = [float(reaches_threshold(column(x, "relative_drop"), threshold).mean()) for x in (a, b)]
    rises = [float(column(x, "loss_increase").mean()) for x in (a, b)]
    return {"num_common": len(a), "success_change": rates[1] - rates[0], "nll_change": rises[1] - rises[0]}


def correct_family(comparisons: Mapping[str, dict[str, Any]]) -> None:
    """Holm over every test of every trigger type at once; writes `p_value_holm` and `family_size` in place."""
    tests = ("success", "relative_drop", "delta_rougeL", "nll_increase")
    family = {(kind, test): comparisons[kind][test]["p_value"] for kind in comparisons for test in tests}
    for (kind, test), adjusted in holm(family).items():
        comparisons[kind][test] |= {"p_value_holm": adjusted, "family_size": len(family)}


def worst_types(by_type: Mapping[str, Sequence[Record]], *, threshold: float) -> dict[str, Any]:
    """One model's worst trigger type by mean ROUGE-L change, and the worst over types example by example."""
    changes: dict[str, float] = {}
    drops: dict[str, float] = {}
    deltas: dict[str, float] = {}
    for kind, records in by_type.items():
        live = attacked(records)
        if live:
            changes[kind] = float(_delta(live).mean())
        for record, delta in zip(live, _delta(live), strict=True):
            drops[record["id"]] = max(drops.get(record["id"], -np.inf), record["relative_drop"])
            deltas[record["id"]] = min(deltas.get(record["id"], np.inf), float(delta))
    values = np.array(list(drops.values()))
    return {
        "worst_type": min(changes, key=lambda kind: changes[kind]) if changes else None,
        "per_example": {
            "num_attackable": len(values),
            "success_rate": success_rate(values, threshold),
            "mean_degradation": float(values.mean()) if len(values) else None,
            "delta_rougeL": float(np.mean(list(deltas.values()))) if deltas else None,
        },
    }


def _delta(records: Sequence[Record]) -> np.ndarray:
    return np.array(
        [rouge_change(r["clean_rouge"]["rougeL"], r["attacked_rouge"]["rougeL"]) for r in records], dtype=np.float64
    )


def _interval(values: Sequence[float], ci: Mapping[str, Any]) -> dict[str, float]:
    mean, low, high = bootstrap_ci(np.asarray(values), **ci)
    return {"mean": mean, "lower": low, "upper": high}
