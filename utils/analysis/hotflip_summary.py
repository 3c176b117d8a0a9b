"""From HotFlip records to hotflip_results.json: rates with intervals, curves, transfer, paired tests. Torch-free."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from scipy.stats import spearmanr

from utils.analysis.attack_figures import (
    advantage,
    changes,
    common,
    compare_figures,
    compare_success,
    corrected_tests,
    counts,
    part_of,
    success_figures,
)
from utils.analysis.attack_suite import compare_found, found_of_possible, noise_floor, strongest, suite, worst_case
from utils.analysis.attack_warnings import hotflip_warnings
from utils.analysis.bootstrap import Resampling, bootstrap_ci
from utils.analysis.comparisons import AttackTests
from utils.analysis.measures import loss_increase, success_rate
from utils.analysis.records import HotFlipRecord, LongBudgetRecord, SearchTrace, attackable, column, given
from utils.analysis.results import (
    CONTROLS,
    BudgetPoint,
    Fidelity,
    HotFlipCell,
    HotFlipComparisons,
    HotFlipFigures,
    HotFlipResults,
    HotFlipTransfer,
    LongBudgetPoint,
    Norms,
)
from utils.analysis.sections import SectionKey
from utils.analysis.statistics import corrected
from utils.core.names import BASELINE, MONOTONIC, STANDARD


def hotflip_results(
    sections: Mapping[SectionKey, Sequence[Any]],
    model_keys: Sequence[str],
    *,
    threshold: float,
    samples: int,
    seed: int,
    confidence: float = 0.95,
) -> HotFlipResults:
    """The results of stage 6 from the records of its sections alone.

    `attack/MODEL`, `CONTROL/MODEL`, `transfer/SOURCE/TARGET` (HotFlipRecord), `long/MODEL` (LongBudgetRecord),
    `ceiling/MODEL` (CeilingRecord). `threshold`: relative ROUGE-L drop that counts as success. Differences between
    models are second minus first, those between attack and control attack minus control.
    """
    ci: Resampling = {"samples": samples, "seed": seed, "confidence": confidence}
    controls = {key: [name for name in CONTROLS if SectionKey(name, key) in sections] for key in model_keys}

    def figures(key: SectionKey) -> HotFlipFigures:
        return summarise(sections[key], threshold=threshold, **ci)

    def tests(first: SectionKey, second: SectionKey) -> AttackTests:
        return compare(sections[first], sections[second], threshold=threshold, **ci)

    models = {
        key: HotFlipCell(
            **vars(figures(SectionKey("attack", key))),
            controls={name: figures(SectionKey(name, key)) for name in controls[key]},
            long_budget_curve=long_curve(sections[SectionKey("long", key)], threshold=threshold)
            if SectionKey("long", key) in sections
            else None,
            suite=suite(sections, key, model_keys, threshold=threshold),
            worst_case=worst_case(strongest(sections, key, model_keys), threshold=threshold),
            noise_floor=noise_floor(sections, key, threshold=threshold),
            found_of_possible=found_of_possible(sections[SectionKey("ceiling", key)], ci)
            if SectionKey("ceiling", key) in sections
            else None,
        )
        for key in model_keys
    }

    def replayed(key: SectionKey) -> HotFlipTransfer:
        more = advantage(sections[SectionKey("attack", key.model)], sections[key], threshold)
        return replace(part_of(HotFlipTransfer, figures(key)), advantage=more)

    pairs = ((BASELINE, MONOTONIC), (STANDARD, BASELINE), (STANDARD, MONOTONIC))
    results = HotFlipResults(
        models=models,
        transfer_matrix={
            source: {
                target: part_of(HotFlipTransfer, models[target])
                if source == target
                else replayed(SectionKey("transfer", target, source=source))
                for target in model_keys
            }
            for source in model_keys
        },
        comparisons=HotFlipComparisons(
            attack_minus_control={
                key: {name: tests(SectionKey(name, key), SectionKey("attack", key)) for name in controls[key]}
                for key in model_keys
            },
            **{
                f"{first}_vs_{second}": tests(SectionKey("attack", first), SectionKey("attack", second))
                for first, second in pairs
                if {first, second} <= set(model_keys)
            },
            found_of_possible_baseline_vs_monotonic=compare_found(
                *(sections.get(SectionKey("ceiling", key), ()) for key in (BASELINE, MONOTONIC)), ci=ci
            ),
            controls_baseline_vs_monotonic=corrected_tests(
                {
                    name: tests(SectionKey(name, BASELINE), SectionKey(name, MONOTONIC))
                    for name in CONTROLS
                    if all(name in controls.get(key, ()) for key in (BASELINE, MONOTONIC))
                },
                confidence,
            ),
            baseline_vs_monotonic_worst_case=compare_worst_cases(
                *(strongest(sections, key, model_keys) for key in (BASELINE, MONOTONIC)), threshold=threshold, **ci
            )
            if {BASELINE, MONOTONIC} <= set(model_keys)
            else None,
        ),
        warnings=[],
    )
    return replace(results, warnings=hotflip_warnings(results))


def summarise(
    records: Sequence[HotFlipRecord], *, threshold: float, samples: int, seed: int, confidence: float = 0.95
) -> HotFlipFigures:
    """One attack on one model. Degradation and success rate are shares (0.15 = 15 %), losses nats per token.

    Everything is over attackable examples. Without any, all figures are None.
    """
    live = attackable(records)
    ci: Resampling = {"samples": samples, "seed": seed, "confidence": confidence}
    known: dict[str, Any] = counts(records, threshold) | success_figures(live, threshold, ci)
    known["num_short_articles"] = sum(bool(record.short_article) for record in live)
    if not live:
        return HotFlipFigures(**known, mean_loss_increase=None)
    increase, clean_loss, change = column(live, "loss_increase"), column(live, "clean_loss"), changes(live)
    return HotFlipFigures(
        **known,
        median_degradation=float(np.median(column(live, "relative_drop"))),
        clean_rougeL=float(column(live, "clean_rougeL").mean()),
        attacked_rougeL=float(column(live, "attacked_rougeL").mean()),
        delta_rougeL=float(change.mean()),
        delta_rougeL_ci=bootstrap_ci(change, **ci)[1:],
        mean_loss_increase=float(increase.mean()),
        mean_loss_increase_ci=bootstrap_ci(increase, **ci)[1:],
        mean_clean_loss=float(clean_loss.mean()),
        relative_loss_increase=float(increase.mean() / max(clean_loss.mean(), 1e-12)),
        **_search_figures(live, threshold),
    )


def _search_figures(live: Sequence[HotFlipRecord], threshold: float) -> dict[str, Any]:
    """The fields of HotFlipFigures that only the records of a search have (a replay has none of them)."""
    searches = [record.search for record in live if record.search is not None]
    if not searches:
        return {}
    hits = [record.reference_flips for record in live if record.reference_flips is not None]
    norms = np.array([search.gradient_norm for search in searches if search.gradient_norm is not None])
    return {
        "budget_curve": _budget_curve(live, searches, threshold) if live[0].budget_drop is not None else None,
        "mean_flips": float(column(live, "num_flips").mean()),
        "perturbed_token_share": float(column(live, "perturbed_share").mean()),
        "mean_queries": float(np.mean([search.queries for search in searches])),
        "mean_gradients": float(np.mean([search.gradients for search in searches])),
        "seconds": float(np.sum([search.seconds for search in searches])),
        "gradient_norm": Norms(mean=float(norms.mean()), median=float(np.median(norms)), min=float(norms.min()))
        if len(norms)
        else None,
        "zero_gradient_count": sum(search.zero_gradient for search in searches),
        "taylor_fidelity_spearman": fidelity(searches),
        "typable_count": sum(bool(record.typable) for record in live),
        "bad_losses": sum(search.bad_losses for search in searches),
        "retried_gradients": sum(search.retried_gradients for search in searches),
        "bad_gradients": sum(search.bad_gradients for search in searches),
        "mean_generations": float(np.mean([search.generations for search in searches])),
        "reference_flip_share": float(np.sum(hits) / max(column(live, "num_flips").sum(), 1)) if len(hits) else None,
    }


def _budget_curve(
    live: Sequence[HotFlipRecord], searches: Sequence[SearchTrace], threshold: float
) -> list[BudgetPoint]:
    """Success, degradation and loss after 1, 2, ... flips."""
    drops = np.array([record.budget_drop for record in live], dtype=np.float64)  # [examples, flips]
    losses = np.array([search.losses for search in searches], dtype=np.float64)  # [examples, 1 + flips]
    rises = loss_increase(losses[:, :1], losses[:, 1:])
    return [
        BudgetPoint(
            flips=k + 1,
            success_rate=given(success_rate(drops[:, k], threshold)),
            mean_degradation=float(drops[:, k].mean()),
            mean_loss_increase=float(rises[:, k].mean()),
            success_rate_best_so_far=given(success_rate(drops[:, : k + 1].max(axis=1), threshold)),
        )
        for k in range(drops.shape[1])
    ]


def long_curve(records: Sequence[LongBudgetRecord], *, threshold: float) -> list[LongBudgetPoint]:
    """The same beyond the budget, on the examples of `records`."""
    live = attackable(records)
    if not live:
        return []
    drops = np.array([record.drops for record in live], dtype=np.float64)  # [examples, budgets]
    losses = np.array([record.losses for record in live], dtype=np.float64)  # the same; not finite: NaN
    flips = np.array([record.num_flips for record in live], dtype=np.float64)
    shares = flips / np.maximum(column(live, "tokens"), 1)[:, None]
    rises = loss_increase(column(live, "clean_loss")[:, None], losses)
    return [
        LongBudgetPoint(
            flips=budget,
            num_examples=len(live),
            perturbed_share=float(shares[:, k].mean()),
            success_rate=given(success_rate(drops[:, k], threshold)),
            mean_degradation=float(drops[:, k].mean()),
            mean_loss_increase=float(np.nanmean(rises[:, k])),
        )
        for k, budget in enumerate(given(live[0].budgets))
    ]


def fidelity(searches: Sequence[SearchTrace]) -> Fidelity:
    """How well first-order gains predict exact ones over random legal flips: pooled, and the mean over examples."""
    pairs = np.array([pair for search in searches for pair in search.fidelity_pairs]).reshape(-1, 2)
    each = [search.fidelity for search in searches if search.fidelity is not None]
    varies = len(pairs) > 3 and np.ptp(pairs[:, 0]) > 0 and np.ptp(pairs[:, 1]) > 0
    return Fidelity(
        pooled=float(spearmanr(pairs[:, 0], pairs[:, 1]).statistic) if varies else None,
        mean=float(np.mean(each)) if each else None,
        sd=float(np.std(each, ddof=1)) if len(each) > 1 else 0.0,
        examples=len(each),
        pairs=len(pairs),
    )


def compare(
    first: Sequence[HotFlipRecord],
    second: Sequence[HotFlipRecord],
    *,
    threshold: float,
    samples: int,
    seed: int,
    confidence: float = 0.95,
) -> AttackTests:
    """Paired tests of two models (or two attacks on one) on common attackable examples; difference = second − first.

    One family of four: `success` by McNemar's exact test, the figures by permutation.
    """
    a, b = common(first, second)
    figures = compare_figures(a, b, {"samples": samples, "seed": seed, "confidence": confidence})
    tests = AttackTests(num_common=len(a), success=compare_success(a, b, threshold, confidence), **figures)
    return corrected_tests({"": tests}, confidence)[""]


def compare_worst_cases(
    first: Sequence[HotFlipRecord],
    second: Sequence[HotFlipRecord],
    *,
    threshold: float,
    samples: int,
    seed: int,
    confidence: float = 0.95,
) -> AttackTests:
    """The primary comparison: `strongest` of two models; success is tested alone, Holm over the other three."""
    a, b = common(first, second)
    figures = compare_figures(a, b, {"samples": samples, "seed": seed, "confidence": confidence})
    return AttackTests(
        num_common=len(a),
        success=compare_success(a, b, threshold, confidence),
        **corrected(figures, confidence),
    )
