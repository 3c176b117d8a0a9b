"""Several seeds of the experiment together: are they what they claim to be, and what do they say jointly?

The spread over seeds is the training's; intervals over seeds use Student's t on the seeds' means. The headline also
gets a hierarchical bootstrap: seeds are drawn with replacement, then examples within each (Davison and Hinkley 1997,
section 3.8).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from utils.analysis.comparisons import AttackWarning
from utils.analysis.final import FinalResults
from utils.analysis.measures import reaches_threshold
from utils.analysis.records import HotFlipRecord, Prediction, given, hotflip_row, read_rows
from utils.analysis.results import HotFlipCell, TriggerCell
from utils.analysis.sections import SectionKey
from utils.analysis.statistics import holm
from utils.core.codec import from_json
from utils.core.errors import InputError, UsageError
from utils.core.files import read_jsonl
from utils.core.names import (
    BASELINE,
    HEADLINE_METRIC,
    METRICS,
    MODEL_KEYS,
    MONOTONIC,
    TRAINED_KEYS,
)
from utils.core.paths import Paths
from utils.core.results import read_result

HOTFLIP_SUCCESS = "HotFlip success"  # the name of the headline among the comparisons
IGNORED = {"seed"}  # settings that may differ between seeds


@dataclass(frozen=True)
class SeedRun:
    """What permanent storage holds of one seed: final results, metadata, and paths of its per-example files."""

    seed: int
    directory: Path
    results: FinalResults
    metadata: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class SeedFigure:
    """One figure over seeds; mean, standard deviation (n - 1) and t interval are null where a seed has none."""

    values: list[float | None]
    n: int
    mean: float | None
    std: float | None
    lower: float | None
    upper: float | None


@dataclass(frozen=True, kw_only=True)
class SeedTest:
    """Paired tests over seeds, monotonic minus baseline; p-values are null where seeds do not allow them."""

    n: int
    differences: list[float]
    difference: float | None
    p_value_t: float | None
    p_value_wilcoxon: float | None
    p_value_holm: float | None = None
    family_size: int | None = None


@dataclass(frozen=True, kw_only=True)
class WideInterval:
    """A difference with its interval by the hierarchical bootstrap: seeds, then examples within each."""

    difference: float
    lower: float
    upper: float
    seeds: int
    samples: int


@dataclass(frozen=True, kw_only=True)
class SeedAttack:
    """HotFlip on one model over seeds."""

    success_rate: SeedFigure
    mean_degradation: SeedFigure
    mean_loss_increase: SeedFigure
    worst_case_success_rate: SeedFigure
    budget_curve: list[SeedFigure]
    controls: dict[str, SeedFigure]


@dataclass(frozen=True, kw_only=True)
class SeedTrigger:
    """One trigger type on one model over seeds."""

    delta_rougeL: SeedFigure
    nll_increase: SeedFigure
    success_rate: SeedFigure


@dataclass(frozen=True, kw_only=True)
class SeedTraining:
    """The trainings of one model over seeds."""

    best_validation_loss: SeedFigure
    total_seconds: SeedFigure


@dataclass(frozen=True, kw_only=True)
class SeedResults:
    """What several seeds say together."""

    seeds: list[int]
    confidence: float
    training: dict[str, SeedTraining]
    evaluation: dict[str, dict[str, dict[str, SeedFigure]]]
    hotflip: dict[str, SeedAttack]
    uat: dict[str, dict[str, SeedTrigger]]
    monotonic_minus_baseline: dict[str, SeedTest]
    hierarchical_bootstrap: dict[str, WideInterval]
    warnings: dict[str, list[AttackWarning]]
    missing_datasets: dict[str, str]
    sources: dict[str, dict[str, Any]]


def load_seeds(seeds: Sequence[int], paths: Paths) -> list[SeedRun]:
    """The seeds' final results; InputError that names every seed without any."""
    missing = [seed for seed in seeds if not (paths.final(seed) / "final_results.json").exists()]
    if missing:
        names = ", ".join(map(str, missing))
        raise InputError(
            f"no final results of seed {names} in {paths.final_root}. Run what is missing: "
            f"./run_multi_seed.sh {' '.join(map(str, seeds))}"
        )
    runs = []
    for seed in seeds:
        envelope = read_result(paths.final(seed) / "final_results.json")
        if envelope["_metadata"]["seed"] != seed:
            raise UsageError(f"{paths.final(seed)} holds the results of seed {envelope['_metadata']['seed']}.")
        results = from_json(FinalResults, envelope["results"], f"seed {seed}, final_results.json")
        runs.append(SeedRun(seed, paths.final(seed), results, envelope["_metadata"]))
    return runs


def check_independent(runs: Sequence[SeedRun]) -> None:
    """UsageError if two seeds are one run counted twice: the same weights, or the same results."""
    for left, right in itertools.combinations(runs, 2):
        pair = f"seeds {left.seed} and {right.seed}"
        for model in TRAINED_KEYS:
            if left.metadata["checkpoints"][model] == right.metadata["checkpoints"][model]:
                raise UsageError(f"{pair} have the same {model} weights: that is one training counted twice.")
        if _scores(left) == _scores(right):
            raise UsageError(f"{pair} have identical results: that is one run counted twice.")


def differences(runs: Sequence[SeedRun]) -> list[str]:
    """In words, what besides the seed is not the same in all runs; aggregating them mixes experiments."""
    found = []
    first = runs[0]
    for run in runs[1:]:
        pair = f"seeds {first.seed} and {run.seed}"
        if run.metadata["profile"] != first.metadata["profile"]:
            found.append(f"{pair}: profile {first.metadata['profile']} and {run.metadata['profile']}")
        left, right = first.metadata["settings"], run.metadata["settings"]
        for name in sorted(left | right):
            if left.get(name) != right.get(name) and name not in IGNORED:
                found.append(f"{pair}: {name} {left.get(name)} and {right.get(name)}")
        if run.results.data.prepared != first.results.data.prepared:
            found.append(f"{pair}: other prepared data")
        if run.metadata["checkpoints"]["standard"] != first.metadata["checkpoints"]["standard"]:
            found.append(f"{pair}: another pretrained model")
        if run.metadata["code"] != first.metadata["code"]:
            commits = [item.metadata["code"]["commit"][:10] for item in (first, run)]
            found.append(f"{pair}: code revision {commits[0]} and {commits[1]}")
        if run.results.missing_datasets != first.results.missing_datasets:
            found.append(f"{pair}: other data sets are missing")
    return found


def aggregate(runs: Sequence[SeedRun], *, samples: int, seed: int, confidence: float = 0.95) -> SeedResults:
    """Means, spreads, intervals and paired tests over seeds, and the hierarchical bootstrap of the headline."""
    all_results = [run.results for run in runs]
    datasets = [k for k in all_results[0].evaluation.datasets if all(k in r.evaluation.datasets for r in all_results)]
    attacked = all_results[0].data.attack_dataset
    attacks = [r.hotflip.models for r in all_results]
    controls = list(attacks[0][BASELINE].controls)
    first_triggers = all_results[0].uat.models[BASELINE].types
    kinds = [kind for kind in first_triggers if all(kind in r.uat.models[BASELINE].types for r in all_results)]
    budgets = range(min(len(models[m].budget_curve or ()) for models in attacks for m in MODEL_KEYS))

    def figure(get: Callable[[FinalResults], float | None]) -> SeedFigure:
        """One figure of the final results over seeds."""
        return over_seeds([get(r) for r in all_results], confidence)

    def rouge(key: str, model: str, metric: str) -> SeedFigure:
        return figure(lambda r: getattr(r.evaluation.datasets[key][model], metric).mean)

    def attack(model: str) -> SeedAttack:
        def of(get: Callable[[HotFlipCell], float | None]) -> SeedFigure:
            return figure(lambda r: get(r.hotflip.models[model]))

        def success_at(k: int) -> SeedFigure:
            return of(lambda cell: given(cell.budget_curve)[k].success_rate)

        def control(name: str) -> SeedFigure:
            return of(lambda cell: cell.controls[name].success_rate)

        return SeedAttack(
            success_rate=of(lambda cell: cell.success_rate),
            mean_degradation=of(lambda cell: cell.mean_degradation),
            mean_loss_increase=of(lambda cell: cell.mean_loss_increase),
            worst_case_success_rate=of(lambda cell: cell.worst_case.success_rate),
            budget_curve=[success_at(k) for k in budgets],
            controls={
                name: control(name) for name in controls if all(name in models[model].controls for models in attacks)
            },
        )

    def trigger(model: str, kind: str) -> SeedTrigger:
        def of(get: Callable[[TriggerCell], float | None]) -> SeedFigure:
            return figure(lambda r: get(r.uat.models[model].types[kind]))

        return SeedTrigger(
            delta_rougeL=of(lambda cell: cell.delta_rougeL),
            nll_increase=of(lambda cell: cell.nll_increase),
            success_rate=of(lambda cell: cell.success_rate),
        )

    def training(arm: str) -> SeedTraining:
        return SeedTraining(
            best_validation_loss=figure(lambda r: getattr(r, f"{arm}_training").best_validation_loss),
            total_seconds=figure(lambda r: getattr(r, f"{arm}_training").total_seconds),
        )

    quality = {key: {model: {m: rouge(key, model, m) for m in METRICS} for model in MODEL_KEYS} for key in datasets}
    hotflip = {model: attack(model) for model in MODEL_KEYS}
    triggers = {model: {kind: trigger(model, kind) for kind in kinds} for model in MODEL_KEYS}
    compared = {
        f"{key} rougeL": paired([quality[key][model][HEADLINE_METRIC] for model in TRAINED_KEYS]) for key in datasets
    }
    compared[HOTFLIP_SUCCESS] = paired([hotflip[model].success_rate for model in TRAINED_KEYS])
    compared["HotFlip NLL rise"] = paired([hotflip[model].mean_loss_increase for model in TRAINED_KEYS])
    compared |= {
        f"trigger {kind} rougeL": paired([triggers[m][kind].delta_rougeL for m in TRAINED_KEYS]) for kind in kinds
    }
    pairs = {
        f"{attacked} rougeL": [_rouge_pairs(run, attacked) for run in runs],
        HOTFLIP_SUCCESS: [_success_pairs(run) for run in runs],
    }
    return SeedResults(
        seeds=[run.seed for run in runs],
        confidence=confidence,
        training={arm: training(arm) for arm in TRAINED_KEYS},
        evaluation=quality,
        hotflip=hotflip,
        uat=triggers,
        monotonic_minus_baseline=_corrected(compared),
        hierarchical_bootstrap={
            name: hierarchical_bootstrap(values, samples=samples, seed=seed, confidence=confidence)
            for name, values in pairs.items()
        },
        warnings={str(run.seed): run.results.warnings for run in runs},
        missing_datasets={key: why for r in all_results for key, why in r.missing_datasets.items()},
        sources={
            str(run.seed): {key: run.metadata[key] for key in ("run_id", "config_fingerprint", "checkpoints", "code")}
            for run in runs
        },
    )


def _corrected(tests: Mapping[str, SeedTest]) -> dict[str, SeedTest]:
    """Holm over every test that there is."""
    adjusted = holm({name: test.p_value_t for name, test in tests.items() if test.p_value_t is not None})
    return {
        name: replace(test, p_value_holm=adjusted[name], family_size=len(adjusted)) if name in adjusted else test
        for name, test in tests.items()
    }


def over_seeds(values: Sequence[float | None], confidence: float = 0.95) -> SeedFigure:
    """Mean, standard deviation (n - 1) and t interval of one figure over seeds; None where a seed has none."""
    present = np.array([value for value in values if value is not None], dtype=float)
    if len(present) < len(values) or len(present) < 2:
        return SeedFigure(values=list(values), n=len(present), mean=None, std=None, lower=None, upper=None)
    mean, std = float(present.mean()), float(present.std(ddof=1))
    reach = float(stats.t.ppf((1 + confidence) / 2, len(present) - 1)) * std / len(present) ** 0.5
    return SeedFigure(
        values=present.tolist(), n=len(present), mean=mean, std=std, lower=mean - reach, upper=mean + reach
    )


def hierarchical_bootstrap(
    pairs: Sequence[np.ndarray], *, samples: int, seed: int, confidence: float = 0.95
) -> WideInterval:
    """Interval of the mean difference: `pairs` holds float [examples] of differences, one array per seed.

    Each resample draws seeds with replacement and, within each drawn seed, its examples with replacement.
    """
    rng = np.random.default_rng(seed)
    means = np.empty(samples)
    for i in range(samples):
        drawn = rng.integers(len(pairs), size=len(pairs))
        means[i] = np.mean([pairs[s][rng.integers(len(pairs[s]), size=len(pairs[s]))].mean() for s in drawn])
    lower, upper = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    difference = float(np.mean([values.mean() for values in pairs]))
    return WideInterval(
        difference=difference, lower=float(lower), upper=float(upper), seeds=len(pairs), samples=samples
    )


def paired(figures: Sequence[SeedFigure]) -> SeedTest:
    """Paired tests over seeds of two figures, second minus first."""
    first, second = (figure.values for figure in figures)
    sides = [(a, b) for a, b in zip(first, second, strict=True) if a is not None and b is not None]
    if len(sides) < len(first):
        return SeedTest(n=0, differences=[], difference=None, p_value_t=None, p_value_wilcoxon=None)
    difference = np.array([b - a for a, b in sides], dtype=float)
    varied = bool(np.ptp(difference) > 0)
    return SeedTest(
        n=len(difference),
        differences=difference.tolist(),
        difference=float(difference.mean()),
        p_value_t=float(stats.ttest_1samp(difference, 0.0).pvalue) if varied else None,
        p_value_wilcoxon=float(stats.wilcoxon(difference).pvalue) if difference.any() else None,
    )


def _scores(run: SeedRun) -> dict[str, dict[str, dict[str, float]]]:
    """The mean scores of a seed: two seeds that share them all are one run."""
    return {
        key: {model: {metric: getattr(cells[model], metric).mean for metric in METRICS} for model in TRAINED_KEYS}
        for key, cells in run.results.evaluation.datasets.items()
    }


def _rouge_pairs(run: SeedRun, dataset: str) -> np.ndarray:
    scores: dict[str, dict[str, float]] = {model: {} for model in TRAINED_KEYS}
    for row in read_jsonl(run.directory / "predictions.jsonl"):
        if row["dataset"] == dataset and row["model"] in scores:
            scores[row["model"]][row["id"]] = from_json(Prediction, row, "predictions.jsonl").rougeL
    return _difference(scores)


def _success_pairs(run: SeedRun) -> np.ndarray:
    threshold = run.results.hotflip.models[BASELINE].threshold
    scores: dict[str, dict[str, float]] = {model: {} for model in TRAINED_KEYS}
    for row in read_rows(
        run.directory / "hotflip_records.jsonl", hotflip_row, named={str(SectionKey("attack", m)) for m in scores}
    ):
        if isinstance(row, HotFlipRecord) and row.skipped is None:
            scores[row.model][row.id] = float(reaches_threshold(given(row.relative_drop), threshold))
    return _difference(scores)


def _difference(scores: Mapping[str, Mapping[str, float]]) -> np.ndarray:
    common = sorted(scores[BASELINE].keys() & scores[MONOTONIC].keys())
    if not common:
        raise InputError("the two models have no example in common: the per-example files are damaged.")
    return np.array([scores[MONOTONIC][name] - scores[BASELINE][name] for name in common])
