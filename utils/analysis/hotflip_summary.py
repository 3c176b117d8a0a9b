"""From HotFlip records to the numbers that are reported: rates with intervals, curves, transfer, paired tests."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy.stats import spearmanr

from utils.analysis.measures import improved_rate, loss_increase, reaches_threshold, rouge_change, success_rate
from utils.analysis.statistics import bootstrap_ci, compare_models, holm, mcnemar, wilson_interval

THRESHOLDS = tuple(round(0.05 * k, 2) for k in range(1, 11))  # 5 % to 50 %
Record = Mapping[str, Any]


def attacked(records: Sequence[Record]) -> list[Record]:
    """The records of examples that could be attacked."""
    return [record for record in records if record["skipped"] is None]


def summarise(
    records: Sequence[Record], *, threshold: float, samples: int, seed: int, confidence: float = 0.95
) -> dict[str, Any]:
    """One model's HotFlip results. Degradation and success rate are shares (0.15 = 15 %), losses nats per token.

    Everything is over attackable examples; `num_skipped` counts the others and `skipped` says why. `mean_degradation`
    is the mean of (clean − attacked) / clean ROUGE-L; `improved_rate` the share whose ROUGE-L *rose* by the threshold,
    which says how much of `success_rate` is noise. Without attackable examples all figures are None.
    """
    live = attacked(records)
    counts = Counter(record["skipped"] for record in records if record["skipped"] is not None)
    summary: dict[str, Any] = {
        "num_examples": len(records),
        "num_attackable": len(live),
        "num_skipped": len(records) - len(live),
        "skipped": dict(sorted(counts.items())),
        "num_short_articles": sum(bool(record.get("short_article")) for record in live),
        "threshold": threshold,
    }
    if not live:
        return summary | dict.fromkeys(("mean_degradation", "success_rate", "mean_loss_increase"))
    drop = column(live, "relative_drop")
    increase = column(live, "loss_increase")
    clean, after = column(live, "clean_rouge"), column(live, "attacked_rouge")
    change = rouge_change(clean, after)
    rate, low, high = wilson_interval(int(reaches_threshold(drop, threshold).sum()), len(drop), confidence=confidence)
    ci = {"samples": samples, "seed": seed, "confidence": confidence}
    return summary | {
        "mean_degradation": float(drop.mean()),
        "mean_degradation_ci": list(bootstrap_ci(drop, **ci)[1:]),
        "median_degradation": float(np.median(drop)),
        "success_rate": rate,
        "success_rate_ci": [low, high],
        "improved_rate": improved_rate(drop, threshold),
        "success_by_threshold": {f"{t:.2f}": success_rate(drop, t) for t in THRESHOLDS},
        "clean_rougeL": float(clean.mean()),
        "attacked_rougeL": float(after.mean()),
        "delta_rougeL": float(change.mean()),
        "delta_rougeL_ci": list(bootstrap_ci(change, **ci)[1:]),
        "mean_loss_increase": float(increase.mean()),
        "mean_loss_increase_ci": list(bootstrap_ci(increase, **ci)[1:]),
        "mean_clean_loss": float(column(live, "clean_loss").mean()),
        "relative_loss_increase": float(increase.mean() / max(column(live, "clean_loss").mean(), 1e-12)),
        **_search_figures(live, threshold),
    }


def _search_figures(live: Sequence[Record], threshold: float) -> dict[str, Any]:
    """What only the records of a search have (a replay on another model has none of it)."""
    if "losses" not in live[0]:
        return {}
    curve = {"budget_curve": _budget_curve(live, threshold)} if "budget_drop" in live[0] else {}
    norms = np.array([r["gradient_norm"] for r in live if r["gradient_norm"] is not None])
    return {
        **curve,
        "mean_flips": float(column(live, "num_flips").mean()),
        "perturbed_token_share": float(column(live, "perturbed_share").mean()),
        "mean_queries": float(column(live, "queries").mean()),
        "mean_gradients": float(column(live, "gradients").mean()),
        "seconds": float(column(live, "seconds").sum()),
        "gradient_norm": {"mean": float(norms.mean()), "median": float(np.median(norms)), "min": float(norms.min())}
        if len(norms)
        else None,
        "zero_gradient_count": sum(bool(record["zero_gradient"]) for record in live),
        "taylor_fidelity_spearman": fidelity(live),
        "typable_count": sum(bool(record["typable"]) for record in live),
        "bad_losses": int(column(live, "bad_losses").sum()),
    }


def _budget_curve(live: Sequence[Record], threshold: float) -> list[dict[str, float | int]]:
    """Success, degradation and loss after 1, 2, ... flips; `best_so_far` lets the attacker stop at any of them."""
    drops = np.array([record["budget_drop"] for record in live])
    losses = np.array([np.subtract(record["losses"], record["losses"][0]) for record in live])
    return [
        {
            "flips": k + 1,
            "success_rate": success_rate(drops[:, k], threshold),
            "mean_degradation": float(drops[:, k].mean()),
            "mean_loss_increase": float(losses[:, k + 1].mean()),
            "success_rate_best_so_far": success_rate(drops[:, : k + 1].max(axis=1), threshold),
        }
        for k in range(drops.shape[1])
    ]


def long_curve(records: Sequence[Record], *, threshold: float) -> list[dict[str, float | int | None]]:
    """The same beyond the budget, on the examples of `records`; `flips` None: every token may change."""
    live = attacked(records)
    if not live:
        return []
    drops, losses = np.array([r["drops"] for r in live]), np.array([r["losses"] for r in live], dtype=np.float64)
    shares = np.array([np.array(r["num_flips"]) / max(r["tokens"], 1) for r in live])
    clean = column(live, "clean_loss")
    return [
        {
            "flips": live[0]["budgets"][k],
            "num_examples": len(live),
            "perturbed_share": float(shares[:, k].mean()),
            "success_rate": success_rate(drops[:, k], threshold),
            "mean_degradation": float(drops[:, k].mean()),
            "mean_loss_increase": float(np.nanmean(loss_increase(clean, losses[:, k]))),
        }
        for k in range(drops.shape[1])
    ]


def fidelity(live: Sequence[Record]) -> dict[str, float | int | None]:
    """How well first-order gains predict exact ones over random legal flips: pooled, and the mean over examples."""
    pairs = np.array([pair for record in live for pair in record["fidelity_pairs"]]).reshape(-1, 2)
    each = [record["fidelity"] for record in live if record["fidelity"] is not None]
    varies = len(pairs) > 3 and np.ptp(pairs[:, 0]) > 0 and np.ptp(pairs[:, 1]) > 0
    return {
        "pooled": float(spearmanr(pairs[:, 0], pairs[:, 1]).statistic) if varies else None,
        "mean": float(np.mean(each)) if each else None,
        "pairs": len(pairs),
    }


def column(records: Sequence[Record], name: str) -> np.ndarray:
    """float64 [N] of a field that every record has."""
    return np.array([record[name] for record in records], dtype=np.float64)


def common(first: Sequence[Record], second: Sequence[Record]) -> tuple[list[Record], list[Record]]:
    """The records of examples that are attackable in both lists, paired by id."""
    other = {record["id"]: record for record in attacked(second)}
    pairs = [(record, other[record["id"]]) for record in attacked(first) if record["id"] in other]
    return [a for a, _ in pairs], [b for _, b in pairs]


def compare(
    first: Sequence[Record],
    second: Sequence[Record],
    *,
    threshold: float,
    samples: int,
    seed: int,
    confidence: float = 0.95,
) -> dict[str, Any]:
    """Paired tests of two models (or two attacks on one) on common attackable examples; difference = second − first.

    `success`: McNemar's exact test. `relative_drop`, `loss_increase`, `delta_rougeL`: paired bootstrap, permutation,
    Wilcoxon, effect sizes. `p_value_holm` corrects over these four.
    """
    ci = {"samples": samples, "seed": seed, "confidence": confidence}
    a, b = common(first, second)
    result: dict[str, Any] = {
        "num_common": len(a),
        "success": mcnemar(
            reaches_threshold(column(a, "relative_drop"), threshold),
            reaches_threshold(column(b, "relative_drop"), threshold),
            confidence=confidence,
        ),
    }
    for name in ("relative_drop", "loss_increase"):
        result[name] = compare_models(column(a, name), column(b, name), **ci)
    changes = [rouge_change(column(x, "clean_rouge"), column(x, "attacked_rouge")) for x in (a, b)]
    result["delta_rougeL"] = compare_models(*changes, **ci)
    family = {name: result[name]["p_value"] for name in ("success", "relative_drop", "loss_increase", "delta_rougeL")}
    for name, adjusted in holm(family).items():
        result[name] |= {"p_value_holm": adjusted, "family_size": len(family)}
    return result


def worst_case(attacks: Sequence[Sequence[Record]], *, threshold: float) -> dict[str, Any]:
    """Per example the strongest of several attacks on one model (mean of the worst, not worst of the means)."""
    worst: dict[str, float] = {}
    for records in attacks:
        for record in attacked(records):
            worst[record["id"]] = max(worst.get(record["id"], -np.inf), record["relative_drop"])
    drops = np.array(list(worst.values()))
    return {
        "num_attackable": len(drops),
        "success_rate": success_rate(drops, threshold),
        "mean_degradation": float(drops.mean()) if len(drops) else None,
    }
