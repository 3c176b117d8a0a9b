"""From trigger records to uat_results.json and learned_triggers.csv. Torch-free."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

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
from utils.analysis.attack_suite import compare_shares, interval_of, last_slot_shares
from utils.analysis.attack_warnings import doubling_matters, trigger_warnings
from utils.analysis.bootstrap import Resampling, bootstrap_ci
from utils.analysis.comparisons import AttackTests, Interval
from utils.analysis.measures import reaches_threshold, success_rate
from utils.analysis.records import TriggerRecord, TriggerSearch, attackable, column, given
from utils.analysis.results import (
    GradientFreeControl,
    ModelTriggers,
    RandomControl,
    Rouges,
    SecondHalf,
    TriggerCell,
    TriggerFigures,
    TriggerResults,
    TriggerTransfer,
    WorstPerExample,
    WorstTrigger,
)
from utils.analysis.sections import SectionKey
from utils.core.names import BASELINE, MONOTONIC


def trigger_results(
    sections: Mapping[SectionKey, Sequence[Any]],
    model_keys: Sequence[str],
    types: Sequence[str],
    *,
    threshold: float,
    samples: int,
    seed: int,
    confidence: float = 0.95,
) -> TriggerResults:
    """The results of stage 5 from the records of its sections alone.

    `search/TYPE/MODEL`, `free_search/TYPE/MODEL` (one TriggerSearch), `attack/TYPE/SOURCE/TARGET`, `random/TYPE/MODEL`,
    `free/TYPE/MODEL`, `halfway/TYPE/MODEL`, `by_loss/TYPE/MODEL` (TriggerRecord), `ceiling/TYPE/MODEL` (CeilingRecord).
    `threshold`: relative ROUGE-L drop that counts as success.
    """
    ci: Resampling = {"samples": samples, "seed": seed, "confidence": confidence}

    def figures(name: SectionKey) -> TriggerFigures:
        return summarise(sections[name], threshold=threshold, **ci)

    def own(kind: str, key: str) -> Sequence[TriggerRecord]:
        """Records of the trigger that was found on the model itself."""
        return sections[SectionKey("attack", key, kind, key)]

    def cell(kind: str, key: str) -> TriggerCell:
        found: TriggerSearch = sections[SectionKey("search", key, kind)][0]
        attack = own(kind, key)
        random = RandomControl(**vars(found.random_control) | vars(figures(SectionKey("random", key, kind))))
        free = None
        if SectionKey("free", key, kind) in sections:
            other: TriggerSearch = sections[SectionKey("free_search", key, kind)][0]
            kept = ("trigger_ids", "trigger_text", "dev_gain", "dev_rouge_change", "forward_rows")
            of_search = {name: getattr(other, name) for name in kept}
            records = sections[SectionKey("free", key, kind)]
            free = GradientFreeControl(
                **of_search | vars(figures(SectionKey("free", key, kind))),
                advantage=advantage(attack, records, threshold),
            )
        half = sections.get(SectionKey("halfway", key, kind))
        gained = gained_since(half, attack, threshold) if half else None

        def against_random(records: Sequence[TriggerRecord]) -> AttackTests:
            return compare(sections[SectionKey("random", key, kind)], records, threshold=threshold, **ci)

        whole = figures(SectionKey("attack", key, kind, key))
        apart = ("section", "random_control", "converged")
        of_search = {name: value for name, value in vars(found).items() if name not in apart}
        return TriggerCell(
            **of_search | vars(whole),
            random_control=random,
            gradient_free_control=free,
            control_comparison=against_random(attack),
            surrogate_comparison=against_random(sections.get(SectionKey("by_loss", key, kind), attack)),
            halfway=gained,
            converged=found.converged and not (gained is not None and doubling_matters(gained, whole.nll_increase)),
        )

    last_slots = {
        key: last_slot_shares({kind: sections.get(SectionKey("ceiling", key, kind), ()) for kind in types})
        for key in model_keys
    }
    models = {
        key: ModelTriggers(
            types={kind: cell(kind, key) for kind in types},
            worst=worst_types(
                {kind: own(kind, key) for kind in types},
                {kind: sections[SectionKey("search", key, kind)][0].dev_rouge_change for kind in types},
                threshold=threshold,
            ),
            found_of_possible=interval_of(last_slots[key], ci),
        )
        for key in model_keys
    }
    comparisons: dict[str, AttackTests] = {}
    of_worst = of_last_slots = None
    if {BASELINE, MONOTONIC} <= set(model_keys):
        chosen = [(models[key].worst.worst_type, key) for key in (BASELINE, MONOTONIC)]
        worst = [own(kind, key) for kind, key in chosen if kind is not None]
        if len(worst) == len(chosen):
            tests = {"": compare(*worst, threshold=threshold, **ci)}
            of_worst = corrected_tests(tests, confidence)[""]
        of_last_slots = compare_shares(last_slots[BASELINE], last_slots[MONOTONIC], ci=ci)
        pairs = {kind: [own(kind, key) for key in (BASELINE, MONOTONIC)] for kind in types}
        comparisons = corrected_tests(
            {kind: compare(*pair, threshold=threshold, **ci) for kind, pair in pairs.items()}, confidence
        )
    results = TriggerResults(
        models=models,
        transfer_matrix={
            kind: {
                source: {
                    target: replace(
                        part_of(TriggerTransfer, figures(SectionKey("attack", target, kind, source))),
                        advantage=None
                        if source == target
                        else advantage(
                            own(kind, target), sections[SectionKey("attack", target, kind, source)], threshold
                        ),
                    )
                    for target in model_keys
                }
                for source in model_keys
            }
            for kind in types
        },
        comparisons=comparisons,
        worst_comparison=of_worst,
        found_of_possible_baseline_vs_monotonic=of_last_slots,
        warnings=[],
    )
    return replace(results, warnings=trigger_warnings(results))


def learned_triggers_csv(results: TriggerResults) -> str:
    """The text of learned_triggers.csv: model, trigger_type, trigger_text, trigger_ids (ids separated by spaces)."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["model", "trigger_type", "trigger_text", "trigger_ids"])
    for key, triggers in results.models.items():
        for kind, cell in triggers.types.items():
            writer.writerow([key, kind, cell.trigger_text, " ".join(map(str, cell.trigger_ids))])
    return out.getvalue()


def summarise(
    records: Sequence[TriggerRecord], *, threshold: float, samples: int, seed: int, confidence: float = 0.95
) -> TriggerFigures:
    """One trigger on one model. ROUGE and losses are over all usable examples, success over attackable ones."""
    usable = [record for record in records if record.loss_increase is not None]
    ci: Resampling = {"samples": samples, "seed": seed, "confidence": confidence}
    known = counts(records, threshold) | success_figures(attackable(records), threshold, ci)
    if not usable:
        return TriggerFigures(**known, clean=None, attacked=None, delta_rougeL=None, nll_increase=None)
    delta, lower, upper = bootstrap_ci(changes(usable), **ci)
    increase = column(usable, "loss_increase")
    return TriggerFigures(
        **known,
        clean=_rouges(usable, "clean", ci),
        attacked=_rouges(usable, "attacked", ci),
        delta_rougeL=delta,
        delta_rougeL_ci=(lower, upper),
        nll_increase=float(increase.mean()),
        nll_increase_ci=bootstrap_ci(increase, **ci)[1:],
        clean_nll=float(column(usable, "clean_loss").mean()),
        typable_count=sum(bool(record.typable) for record in usable),
        num_usable=len(usable),
        num_one_sentence=sum(bool(record.one_sentence) for record in usable),
    )


def _rouges(records: Sequence[TriggerRecord], side: str, ci: Resampling) -> Rouges:
    def interval(metric: str) -> Interval:
        mean, lower, upper = bootstrap_ci(column(records, f"{side}_{metric}"), **ci)
        return Interval(mean=mean, lower=lower, upper=upper)

    return Rouges(rouge1=interval("rouge1"), rouge2=interval("rouge2"), rougeL=interval("rougeL"))


def compare(
    first: Sequence[TriggerRecord],
    second: Sequence[TriggerRecord],
    *,
    threshold: float,
    samples: int,
    seed: int,
    confidence: float = 0.95,
) -> AttackTests:
    """Paired tests on common attackable examples, difference = second − first; not corrected."""
    a, b = common(first, second)
    figures = compare_figures(a, b, {"samples": samples, "seed": seed, "confidence": confidence})
    return AttackTests(
        num_common=len(a),
        success=compare_success(a, b, threshold, confidence),
        relative_drop=figures["relative_drop"],
        delta_rougeL=figures["delta_rougeL"],
        nll_increase=figures["loss_increase"],
    )


def gained_since(half: Sequence[TriggerRecord], whole: Sequence[TriggerRecord], threshold: float) -> SecondHalf:
    """What twice the iterations added, on common examples: change of success rate (a share) and of the NLL rise."""
    a, b = common(half, whole)
    if not a:
        return SecondHalf(num_common=0, success_change=None, nll_change=None)
    rates = [float(reaches_threshold(column(side, "relative_drop"), threshold).mean()) for side in (a, b)]
    rises = [float(column(side, "loss_increase").mean()) for side in (a, b)]
    return SecondHalf(
        num_common=len(a),
        success_change=rates[1] - rates[0],
        nll_change=rises[1] - rises[0],
        advantage=advantage(half, whole, threshold),
    )


def worst_types(
    by_type: Mapping[str, Sequence[TriggerRecord]], dev_changes: Mapping[str, float], *, threshold: float
) -> WorstTrigger:
    """One model's worst trigger type, and the worst over types example by example.

    The type is chosen by its ROUGE-L change on held-out text: the worst of several on the examples that are reported
    would be worse than it is by 0.8 to 1.2 standard errors, and its interval too narrow.
    """
    drops: dict[str, float] = {}
    deltas: dict[str, float] = {}
    for records in by_type.values():
        live = attackable(records)
        for record, delta in zip(live, changes(live), strict=True):
            drops[record.id] = max(drops.get(record.id, -np.inf), given(record.relative_drop))
            deltas[record.id] = min(deltas.get(record.id, np.inf), float(delta))
    values = np.array(list(drops.values()))
    return WorstTrigger(
        worst_type=min(dev_changes, key=lambda kind: dev_changes[kind]) if dev_changes else None,
        per_example=WorstPerExample(
            num_attackable=len(values),
            success_rate=success_rate(values, threshold),
            mean_degradation=float(values.mean()) if len(values) else None,
            delta_rougeL=float(np.mean(list(deltas.values()))) if deltas else None,
        ),
    )
