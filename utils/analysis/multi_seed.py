"""Several seeds of the experiment together: are they what they claim to be, and what do they say jointly?

The spread over seeds is the training's; intervals over seeds use Student's t on the seeds' means. The headline also
gets a hierarchical bootstrap: seeds are drawn with replacement, then examples within each (Davison and Hinkley 1997,
section 3.8).
"""

from __future__ import annotations

import functools
import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from utils.analysis.measures import reaches_threshold
from utils.analysis.statistics import holm
from utils.core.errors import InputError, UsageError
from utils.core.files import read_jsonl
from utils.core.paths import Paths
from utils.core.results import read_result
from utils.reports.table import p_value, signed

DATASETS = ("cnn_dm", "xsum", "samsum")
METRICS = ("rouge1", "rouge2", "rougeL", "rougeLsum")
PAIR = ("baseline", "monotonic")
IGNORED = {"seed"}  # settings that may differ between seeds


@dataclass(frozen=True)
class SeedRun:
    """What permanent storage holds of one seed: final results, metadata, and paths of its per-example files."""

    seed: int
    directory: Path
    results: dict[str, Any]
    metadata: dict[str, Any]


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
        runs.append(SeedRun(seed, paths.final(seed), envelope["results"], envelope["_metadata"]))
    return runs


def check_independent(runs: Sequence[SeedRun]) -> None:
    """UsageError if two seeds are one run counted twice: the same weights, or the same results."""
    for left, right in itertools.combinations(runs, 2):
        pair = f"seeds {left.seed} and {right.seed}"
        for model in PAIR:
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
        if run.results["data"]["prepared"] != first.results["data"]["prepared"]:
            found.append(f"{pair}: other prepared data")
        if run.metadata["checkpoints"]["standard"] != first.metadata["checkpoints"]["standard"]:
            found.append(f"{pair}: another pretrained model")
        if run.metadata["code"] != first.metadata["code"]:
            commits = [item.metadata["code"]["commit"][:10] for item in (first, run)]
            found.append(f"{pair}: code revision {commits[0]} and {commits[1]}")
        if run.results["missing_datasets"] != first.results["missing_datasets"]:
            found.append(f"{pair}: other data sets are missing")
    return found


def aggregate(runs: Sequence[SeedRun], *, samples: int, seed: int, confidence: float = 0.95) -> dict[str, Any]:
    """Means, spreads, intervals and paired tests over seeds, and the hierarchical bootstrap of the headline."""
    datasets = [key for key in DATASETS if all(key in run.results["evaluation"] for run in runs)]
    models = ("standard", *PAIR)
    kinds = [
        kind
        for kind, cell in runs[0].results["uat"]["baseline"].items()
        if "trigger_ids" in cell and all(kind in run.results["uat"]["baseline"] for run in runs)
    ]
    budgets = range(min(len(run.results["hotflip"][m].get("budget_curve", ())) for run in runs for m in models))

    def figure(*path: str | int) -> dict[str, Any]:
        """One figure of final_results.json, by its path there, over seeds."""
        return over_seeds(
            [functools.reduce(lambda part, key: part[key], path, run.results) for run in runs], confidence
        )

    quality = {
        key: {model: {name: figure("evaluation", key, model, name, "mean") for name in METRICS} for model in models}
        for key in datasets
    }
    attack: dict[str, Any] = {
        model: {
            **{
                name: figure("hotflip", model, name)
                for name in ("success_rate", "mean_degradation", "mean_loss_increase")
            },
            "worst_case_success_rate": figure("hotflip", model, "worst_case", "success_rate"),
            "budget_curve": [figure("hotflip", model, "budget_curve", k, "success_rate") for k in budgets],
            "controls": {
                name: figure("hotflip", model, "controls", name, "success_rate")
                for name in runs[0].results["hotflip"][model]["controls"]
                if all(name in run.results["hotflip"][model]["controls"] for run in runs)
            },
        }
        for model in models
    }
    triggers = {
        model: {
            kind: {n: figure("uat", model, kind, n) for n in ("delta_rougeL", "nll_increase", "success_rate")}
            for kind in kinds
        }
        for model in models
    }
    training = {
        arm: {n: figure(f"{arm}_training", n) for n in ("best_validation_loss", "total_seconds")} for arm in PAIR
    }
    compared = {f"{key} rougeL": _paired([quality[key][model]["rougeL"] for model in PAIR]) for key in datasets}
    compared["HotFlip success"] = _paired([attack[model]["success_rate"] for model in PAIR])
    compared["HotFlip NLL rise"] = _paired([attack[model]["mean_loss_increase"] for model in PAIR])
    compared |= {f"trigger {kind} rougeL": _paired([triggers[m][kind]["delta_rougeL"] for m in PAIR]) for kind in kinds}
    tested = {name: test for name, test in compared.items() if test["p_value_t"] is not None}
    for name, adjusted in holm({name: test["p_value_t"] for name, test in tested.items()}).items():
        tested[name] |= {"p_value_holm": adjusted, "family_size": len(tested)}
    pairs = {
        "cnn_dm rougeL": [_rouge_pairs(run, "cnn_dm") for run in runs] if "cnn_dm" in datasets else [],
        "HotFlip success": [_success_pairs(run) for run in runs],
    }
    headline = {
        name: hierarchical_bootstrap(values, samples=samples, seed=seed, confidence=confidence)
        for name, values in pairs.items()
        if values
    }
    return {
        "seeds": [run.seed for run in runs],
        "confidence": confidence,
        "verdict": _verdict(attack, compared["HotFlip success"], headline["HotFlip success"], 1 - confidence),
        "training": training,
        "evaluation": quality,
        "hotflip": attack,
        "uat": triggers,
        "monotonic_minus_baseline": compared,
        "hierarchical_bootstrap": headline,
        "flags": {str(run.seed): run.results["flags"] for run in runs},
        "missing_datasets": {key: why for run in runs for key, why in run.results["missing_datasets"].items()},
        "sources": {
            str(run.seed): {key: run.metadata[key] for key in ("run_id", "config_fingerprint", "checkpoints", "code")}
            for run in runs
        },
    }


def _verdict(attack: Mapping[str, Any], test: Mapping[str, Any], wide: Mapping[str, Any], alpha: float) -> str:
    """The answer over seeds in one sentence; only a test over seeds decides, as a seed is what was drawn anew."""
    if test["difference"] is None:
        return "HotFlip says nothing over these seeds: one of them has no example that could be attacked."
    p = test.get("p_value_holm")
    shown = p is not None and p < alpha
    answer = ("harder" if test["difference"] < 0 else "easier") if shown else "not shown to be harder or easier"
    rates = {model: 100 * attack[model]["success_rate"]["mean"] for model in PAIR}
    points = signed(100 * test["difference"], [100 * wide["lower"], 100 * wide["upper"]], digits=1)
    return (
        f"Over {test['n']} seeds monotonic is {answer} to attack than baseline: HotFlip succeeds on "
        f"{rates['monotonic']:.1f} % of its summaries and on {rates['baseline']:.1f} % of baseline's ({points} points, "
        f"hierarchical bootstrap; paired t over seeds, Holm-corrected p: {p_value(p)})."
    )


def over_seeds(values: Sequence[float | None], confidence: float = 0.95) -> dict[str, Any]:
    """Mean, standard deviation (n - 1) and t interval of one figure over seeds; None where a seed has none."""
    present = np.array([value for value in values if value is not None], dtype=float)
    if len(present) < len(values) or len(present) < 2:
        return {"values": list(values), "n": len(present), "mean": None, "std": None, "lower": None, "upper": None}
    mean, std = float(present.mean()), float(present.std(ddof=1))
    reach = float(stats.t.ppf((1 + confidence) / 2, len(present) - 1)) * std / len(present) ** 0.5
    return {
        "values": [float(value) for value in present],
        "n": len(present),
        "mean": mean,
        "std": std,
        "lower": mean - reach,
        "upper": mean + reach,
    }


def hierarchical_bootstrap(
    pairs: Sequence[np.ndarray], *, samples: int, seed: int, confidence: float = 0.95
) -> dict[str, Any]:
    """Interval of the mean difference: `pairs` holds float [examples] of differences, one array per seed.

    Each resample draws seeds with replacement and, within each drawn seed, its examples with replacement.
    """
    rng = np.random.default_rng(seed)
    means = np.empty(samples)
    for i in range(samples):
        drawn = rng.integers(len(pairs), size=len(pairs))
        means[i] = np.mean([pairs[s][rng.integers(len(pairs[s]), size=len(pairs[s]))].mean() for s in drawn])
    lower, upper = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return {
        "difference": float(np.mean([values.mean() for values in pairs])),
        "lower": float(lower),
        "upper": float(upper),
        "seeds": len(pairs),
        "samples": samples,
    }


def _paired(figures: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Paired tests over seeds of two figures, second minus first; p values are None where seeds do not allow them."""
    sides = [figure["values"] for figure in figures]
    if any(value is None for side in sides for value in side):
        return {"n": 0, "difference": None, "p_value_t": None, "p_value_wilcoxon": None}
    difference = np.array(sides[1], dtype=float) - np.array(sides[0], dtype=float)
    result: dict[str, Any] = {"n": len(difference), "differences": difference.tolist()}
    result["difference"] = float(difference.mean())
    varied = bool(np.ptp(difference) > 0)
    result["p_value_t"] = float(stats.ttest_1samp(difference, 0.0).pvalue) if varied else None
    result["p_value_wilcoxon"] = float(stats.wilcoxon(difference).pvalue) if difference.any() else None
    result["smallest_wilcoxon"] = 2.0 ** (1 - len(difference))  # what n seeds can reach at best
    return result


def _scores(run: SeedRun) -> str:
    cells = {key: {m: cell[m] for m in PAIR} for key, cell in run.results["evaluation"].items() if key != "comparisons"}
    plain = {key: {m: {x: c[m][x] for x in METRICS} for m in PAIR} for key, c in cells.items()}
    return json.dumps(plain, sort_keys=True)


def _rouge_pairs(run: SeedRun, dataset: str) -> np.ndarray:
    scores: dict[str, dict[str, float]] = {model: {} for model in PAIR}
    for row in read_jsonl(run.directory / "predictions.jsonl"):
        if row["dataset"] == dataset and row["model"] in scores:
            scores[row["model"]][row["id"]] = row["rougeL"]
    return _difference(scores)


def _success_pairs(run: SeedRun) -> np.ndarray:
    threshold = run.results["hotflip"]["baseline"]["threshold"]
    scores: dict[str, dict[str, float]] = {model: {} for model in PAIR}
    for row in read_jsonl(run.directory / "hotflip_records.jsonl"):
        model = row["section"].removeprefix("attack/")
        if model in scores and row["skipped"] is None:
            scores[model][row["id"]] = float(reaches_threshold(row["relative_drop"], threshold))
    return _difference(scores)


def _difference(scores: Mapping[str, Mapping[str, float]]) -> np.ndarray:
    common = sorted(scores["baseline"].keys() & scores["monotonic"].keys())
    if not common:
        raise InputError("the two models have no example in common: the per-example files are damaged.")
    return np.array([scores["monotonic"][name] - scores["baseline"][name] for name in common])
