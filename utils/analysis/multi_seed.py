"""Several seeds of the experiment together: are they what they claim to be, and what do they say jointly?

Figures of one model over seeds have the spread of its trainings (Student's t on the seeds' means). What is compared is
tested example by example, with seeds and examples crossed: seed_differences.py.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from scipy import stats

from utils.analysis.attribution import Reproduced
from utils.analysis.claims import Measure, measure_read
from utils.analysis.comparisons import AttackWarning, P
from utils.analysis.final import FinalResults
from utils.analysis.records import given
from utils.analysis.results import HotFlipCell, TriggerCell
from utils.analysis.seed_differences import (
    LOSSES,
    PRIMARY,
    WORST,
    SeedTest,
    crossed_share,
    crossed_test,
    in_families,
    in_one_family,
    of_set,
    outcomes_over_seeds,
    scores_of,
)
from utils.core.codec import from_json
from utils.core.errors import InputError, UsageError
from utils.core.names import BASELINE, CONTROLS, HEADLINE_METRIC, METRICS, MODEL_KEYS, MONOTONIC, STANDARD, TRAINED_KEYS
from utils.core.paths import Paths
from utils.core.results import read_result

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
    """One figure over seeds; mean, standard deviation (n - 1) and t interval are null where a seed has none.

    Standard is one untrained model however many seeds there are: it has no spread over trainings, and no interval.
    """

    values: list[float | None]
    n: int
    mean: float | None
    std: float | None
    lower: float | None
    upper: float | None


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
class SeedFound:
    """The share of the best choice's loss rise that an attack found, on CEILING_EXAMPLES texts a seed.

    Seed by seed, without crossing: a seed deals its own held-out texts to the triggers.
    """

    models: dict[str, SeedFigure]
    difference: Annotated[SeedFigure, "monotonic minus baseline, of each seed on the texts that both models have"]


@dataclass(frozen=True, kw_only=True)
class SeedTraining:
    """The trainings of one model over seeds."""

    best_validation_loss: SeedFigure
    total_seconds: SeedFigure


@dataclass(frozen=True, kw_only=True)
class SeedAttribution:
    """One control arm over the seeds, all of which trained it."""

    worst_case_success: SeedFigure
    rougeL: Annotated[SeedFigure, "on the attack data set"]
    success_vs_baseline: Annotated[
        SeedTest, "the arm (b) against a model of the pair (a); Holm over the four tests of every arm"
    ]
    success_vs_monotonic: SeedTest
    rougeL_vs_baseline: SeedTest
    rougeL_vs_monotonic: SeedTest
    reproduced: Annotated[
        Reproduced | None, "share of the pair's difference in `measure`; null unless that difference is shown"
    ]


@dataclass(frozen=True, kw_only=True)
class SeedResults:
    """What several seeds say together."""

    seeds: list[int]
    confidence: float
    training: dict[str, SeedTraining]
    evaluation: dict[str, dict[str, dict[str, SeedFigure]]]
    hotflip: dict[str, SeedAttack]
    uat: dict[str, dict[str, SeedTrigger]]
    found_of_possible: Annotated[
        dict[str, SeedFound], "hotflip: by the first flip; uat: by triggers, of the best token in their last slot"
    ]
    titles: Annotated[dict[str, str], "test sets by key, as their owners call them"]
    attack_dataset: str
    monotonic_minus_baseline: Annotated[dict[str, SeedTest], "by measure; the primary one first"]
    measure: Annotated[Measure | None, "that the answer and the shares of the arms read; null: nothing is comparable"]
    attribution: Annotated[dict[str, SeedAttribution], "by control arm"]
    arms_left_out: Annotated[list[str], "arms that some seeds lack, in words"]
    quality_margin: Annotated[float, "QUALITY_MARGIN"]
    non_inferiority_p: Annotated[P | None, "one-sided: a loss of at least the margin on the attack data set"]
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
    return [load_run(seed, paths.final(seed)) for seed in seeds]


def load_run(seed: int, directory: Path) -> SeedRun:
    """What `directory` holds of a seed; UsageError where that is another one."""
    envelope = read_result(directory / "final_results.json")
    if envelope["_metadata"]["seed"] != seed:
        raise UsageError(f"{directory} holds the results of seed {envelope['_metadata']['seed']}.")
    results = from_json(FinalResults, envelope["results"], f"seed {seed}, final_results.json")
    return SeedRun(seed, directory, results, envelope["_metadata"])


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
        if run.metadata["checkpoints"][STANDARD] != first.metadata["checkpoints"][STANDARD]:
            found.append(f"{pair}: another pretrained model")
        if run.metadata["code"] != first.metadata["code"]:
            commits = [item.metadata["code"]["commit"][:10] for item in (first, run)]
            found.append(f"{pair}: code revision {commits[0]} and {commits[1]}")
        if run.results.missing_datasets != first.results.missing_datasets:
            found.append(f"{pair}: other data sets are missing")
    return found


def aggregate(runs: Sequence[SeedRun], *, confidence: float = 0.95) -> SeedResults:
    """Means and spreads over seeds, and the differences of the two models tested over seeds and examples."""
    all_results = [run.results for run in runs]
    datasets = [k for k in all_results[0].evaluation.datasets if all(k in r.evaluation.datasets for r in all_results)]
    attacked = all_results[0].data.attack_dataset
    attacks = [r.hotflip.models for r in all_results]
    controls = list(attacks[0][BASELINE].controls)
    first_triggers = all_results[0].uat.models[BASELINE].types
    kinds = [kind for kind in first_triggers if all(kind in r.uat.models[BASELINE].types for r in all_results)]
    budgets = range(min(len(models[m].budget_curve or ()) for models in attacks for m in MODEL_KEYS))

    def figure(get: Callable[[FinalResults], float | None], model: str = "", share: bool = False) -> SeedFigure:
        """One figure of the final results over seeds."""
        values = [get(r) for r in all_results]
        return untrained(values) if model == STANDARD else over_seeds(values, confidence, share=share)

    def rouge(key: str, model: str, metric: str) -> SeedFigure:
        return figure(lambda r: getattr(r.evaluation.datasets[key][model], metric).mean, model, share=True)

    def attack(model: str) -> SeedAttack:
        def of(get: Callable[[HotFlipCell], float | None], share: bool = True) -> SeedFigure:
            return figure(lambda r: get(r.hotflip.models[model]), model, share)

        def success_at(k: int) -> SeedFigure:
            return of(lambda cell: given(cell.budget_curve)[k].success_rate)

        def control(name: str) -> SeedFigure:
            return of(lambda cell: cell.controls[name].success_rate)

        return SeedAttack(
            success_rate=of(lambda cell: cell.success_rate),
            mean_degradation=of(lambda cell: cell.mean_degradation, share=False),
            mean_loss_increase=of(lambda cell: cell.mean_loss_increase, share=False),
            worst_case_success_rate=of(lambda cell: cell.worst_case.success_rate),
            budget_curve=[success_at(k) for k in budgets],
            controls={
                name: control(name) for name in controls if all(name in models[model].controls for models in attacks)
            },
        )

    def trigger(model: str, kind: str) -> SeedTrigger:
        def of(get: Callable[[TriggerCell], float | None], share: bool = False) -> SeedFigure:
            return figure(lambda r: get(r.uat.models[model].types[kind]), model, share)

        return SeedTrigger(
            delta_rougeL=of(lambda cell: cell.delta_rougeL),
            nll_increase=of(lambda cell: cell.nll_increase),
            success_rate=of(lambda cell: cell.success_rate, share=True),
        )

    def found(attack: str) -> SeedFound:
        def share(model: str, r: FinalResults) -> float | None:
            of = r.hotflip.models[model].found_of_possible
            interval = of and of.by_loss if attack == "hotflip" else r.uat.models[model].found_of_possible
            return interval.mean if interval else None

        def difference(r: FinalResults) -> float | None:
            both = r.hotflip.comparisons if attack == "hotflip" else r.uat
            test = both.found_of_possible_baseline_vs_monotonic
            return test.difference if test else None

        shares = {model: figure(partial(share, model), model) for model in MODEL_KEYS}
        return SeedFound(models=shares, difference=figure(difference))

    def training(arm: str) -> SeedTraining:
        return SeedTraining(
            best_validation_loss=figure(lambda r: getattr(r, f"{arm}_training").best_validation_loss),
            total_seconds=figure(lambda r: getattr(r, f"{arm}_training").total_seconds),
        )

    quality = {key: {model: {m: rouge(key, model, m) for m in METRICS} for model in MODEL_KEYS} for key in datasets}
    hotflip = {model: attack(model) for model in MODEL_KEYS}
    triggers = {model: {kind: trigger(model, kind) for kind in kinds} for model in MODEL_KEYS}
    scores = [scores_of(run.directory, run.results) for run in runs]
    shared = [name for name in scores[0] if all(name in each for each in scores)]
    order = [PRIMARY, *(name for name in shared if name != PRIMARY)]
    bounds = {name: np.inf if name in LOSSES else 1.0 for name in order}
    compared = {
        name: crossed_test([each[name] for each in scores], confidence=confidence, bound=bounds[name]) for name in order
    }
    compared = in_families(compared)
    worst = outcomes_over_seeds(compared)
    measure = measure_read(worst) if worst else None
    shown = measure is not None and worst[measure].shown(1 - confidence)
    trained = {arm: [run.seed for run in runs if arm in run.results.attribution] for arm in CONTROLS}
    complete = [arm for arm, seeds in trained.items() if len(seeds) == len(runs)]
    tests = {
        (arm, name, key): crossed_test([each[measure] for each in scores], (key, arm), confidence=confidence, bound=1.0)
        for arm in complete
        for name, measure in (("success", PRIMARY), ("rougeL", of_set(attacked)))
        for key in TRAINED_KEYS
    }
    adjusted = in_one_family(tests)

    def cause(arm: str) -> SeedAttribution:
        return SeedAttribution(
            worst_case_success=attack_figure(arm),
            rougeL=rouge(attacked, arm, HEADLINE_METRIC),
            success_vs_baseline=adjusted[arm, "success", BASELINE],
            success_vs_monotonic=adjusted[arm, "success", MONOTONIC],
            rougeL_vs_baseline=adjusted[arm, "rougeL", BASELINE],
            rougeL_vs_monotonic=adjusted[arm, "rougeL", MONOTONIC],
            reproduced=crossed_share([each[WORST[measure]] for each in scores], arm, confidence=confidence)
            if measure is not None and shown
            else None,
        )

    def attack_figure(arm: str) -> SeedFigure:
        return figure(lambda r: r.hotflip.models[arm].worst_case.success_rate, arm, share=True)

    margin = all_results[0].quality_margin
    shifted = crossed_test([each[of_set(attacked)] for each in scores], confidence=confidence, shift=margin)
    return SeedResults(
        seeds=[run.seed for run in runs],
        confidence=confidence,
        training={arm: training(arm) for arm in TRAINED_KEYS},
        evaluation=quality,
        hotflip=hotflip,
        uat=triggers,
        found_of_possible={attack: found(attack) for attack in ("hotflip", "uat")},
        titles={key: entry.title for key, entry in all_results[0].data.sets.items() if entry.role == "test"},
        attack_dataset=attacked,
        monotonic_minus_baseline=compared,
        measure=measure,
        attribution={arm: cause(arm) for arm in complete},
        arms_left_out=[
            f"{arm} was trained in seed {', '.join(map(str, seeds))} alone: no figure over seeds has it"
            for arm, seeds in trained.items()
            if 0 < len(seeds) < len(runs)
        ],
        quality_margin=margin,
        non_inferiority_p=_one_sided(shifted),
        warnings={str(run.seed): run.results.warnings for run in runs},
        missing_datasets={key: why for r in all_results for key, why in r.missing_datasets.items()},
        sources={
            str(run.seed): {key: run.metadata[key] for key in ("run_id", "config_fingerprint", "checkpoints", "code")}
            for run in runs
        },
    )


def _one_sided(test: SeedTest) -> float | None:
    """p-value of "the difference is at most 0" from the two-sided one."""
    if test.p_value is None:
        return None
    return test.p_value / 2 if given(test.difference) > 0 else 1 - test.p_value / 2


def over_seeds(values: Sequence[float | None], confidence: float = 0.95, *, share: bool = False) -> SeedFigure:
    """Mean, standard deviation (n - 1) and t interval of one figure over seeds; None where a seed has none.

    share: the figure is from 0 to 1, and so is its interval.
    """
    present = np.array([value for value in values if value is not None], dtype=float)
    if len(present) < len(values) or len(present) < 2:
        return SeedFigure(values=list(values), n=len(present), mean=None, std=None, lower=None, upper=None)
    mean, std = float(present.mean()), float(present.std(ddof=1))
    reach = float(stats.t.ppf((1 + confidence) / 2, len(present) - 1)) * std / len(present) ** 0.5
    least, most = (0.0, 1.0) if share else (-np.inf, np.inf)
    lower, upper = max(mean - reach, least), min(mean + reach, most)
    return SeedFigure(values=present.tolist(), n=len(present), mean=mean, std=std, lower=lower, upper=upper)


def untrained(values: Sequence[float | None]) -> SeedFigure:
    """A figure of the model that no seed trains: its mean (attacks draw at random), and no spread over trainings."""
    present = [value for value in values if value is not None]
    mean = float(np.mean(present)) if len(present) == len(values) else None
    return SeedFigure(values=list(values), n=len(present), mean=mean, std=None, lower=None, upper=None)


def _scores(run: SeedRun) -> dict[str, dict[str, dict[str, float]]]:
    """The mean scores of a seed: two seeds that share them all are one run."""
    return {
        key: {model: {metric: getattr(cells[model], metric).mean for metric in METRICS} for model in TRAINED_KEYS}
        for key, cells in run.results.evaluation.datasets.items()
    }
