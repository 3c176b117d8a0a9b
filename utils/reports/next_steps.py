"""What to do next: a sentence of advice and the command for it, from what the results show to be thin."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from utils.analysis.final import FinalResults
from utils.core.names import MODEL_KEYS, TRAINED_KEYS
from utils.core.settings import for_experiment

WIDE = 0.1  # half an interval of success: what differs by less than ten points is not seen


@dataclass(frozen=True)
class Step:
    """Advice, and what to type; `command` is empty where there is nothing to type."""

    text: str
    command: str = ""


def next_steps(results: FinalResults, metadata: Mapping[str, Any]) -> list[Step]:
    """Everything worth doing, what matters most first; the last one is to check the numbers."""
    name = metadata.get("experiment", "")
    return [replace(step, command=for_experiment(step.command, name)) for step in _steps(results, metadata)]


def _steps(results: FinalResults, metadata: Mapping[str, Any]) -> list[Step]:
    check = Step("To check every number, table and figure of this page:", "python scripts/verify_results.py DIR")
    if metadata["profile"] != "full":
        return [Step("This was a small run, to try the software out. The experiment itself:", "./run_all.sh"), check]
    seed = metadata["seed"]
    return [*_of_the_run(metadata), *_of_the_models(results, seed), *_of_the_attacks(results, metadata, seed), check]


def _of_the_run(metadata: Mapping[str, Any]) -> Iterator[Step]:
    seed = metadata["seed"]
    if metadata.get("full_test_sets", True):
        yield Step(
            "One seed is one draw of the training: three or more give an interval over trainings.",
            f"./run_multi_seed.sh {seed} {seed + 1} {seed + 2}",
        )
    else:
        yield Step("Only a part of each test set was used.", f"MONO_S2S_USE_FULL_TEST_SETS=True ./run_all.sh {seed}")


def _of_the_models(results: FinalResults, seed: int) -> Iterator[Step]:
    for key, reason in results.missing_datasets.items():
        yield Step(f"{key} is missing ({reason}). docs/data.md says where to get it; then:", f"./run_all.sh {seed}")
    last = [arm for arm, training in results.trainings.items() if training.best_epoch == len(training.epochs) > 1]
    if last:
        epochs = 2 * len(results.baseline_training.epochs)
        yield Step(
            f"Not converged: the last epoch was the best of {' and '.join(last)}. Train all for longer:",
            f"MONO_S2S_NUM_EPOCHS={epochs} MONO_S2S_MONOTONIC_NUM_EPOCHS={epochs} ./run_all.sh {seed}",
        )


def _of_the_attacks(results: FinalResults, metadata: Mapping[str, Any], seed: int) -> Iterator[Step]:
    settings = metadata["settings"]
    searches = [cell for model in MODEL_KEYS for cell in results.uat.models[model].types.values()]
    unfinished = sum(not cell.converged for cell in searches)
    if unfinished:
        iterations = 2 * settings["TRIGGER_ITERATIONS"]
        yield Step(
            f"Not converged: {unfinished} of {len(searches)} trigger searches still gained in their second half. Raise "
            "TRIGGER_ITERATIONS:",
            f"MONO_S2S_TRIGGER_ITERATIONS={iterations} ./run_all.sh {seed}",
        )
    rates = [results.hotflip.models[arm].success_rate for arm in TRAINED_KEYS]
    known = [rate for rate in rates if rate is not None]
    flips = settings["HOTFLIP_NUM_FLIPS"]
    if known and min(known) > 0.9 and flips > 1:
        yield Step(
            "HotFlip succeeds on more than 90 % of both models' summaries: fewer flips tell them apart better.",
            f"MONO_S2S_HOTFLIP_NUM_FLIPS={max(1, flips // 2)} ./run_all.sh {seed}",
        )
    if known and max(known) < 0.1:
        yield Step(
            "HotFlip succeeds on less than 10 % of both models' summaries: more flips tell them apart better.",
            f"MONO_S2S_HOTFLIP_NUM_FLIPS={2 * flips} ./run_all.sh {seed}",
        )
    primary, attacked = results.verdict.primary, settings["HOTFLIP_METRIC_EXAMPLES"]
    width = (primary.upper - primary.lower) / 2
    if primary.n and width > WIDE and attacked:
        yield Step(
            f"The interval of worst-case success is {100 * width:.0f} points wide to either side: its attacks were on "
            f"{attacked} examples. Attack more of them:",
            f"MONO_S2S_HOTFLIP_METRIC_EXAMPLES={4 * attacked} ./run_all.sh {seed}",
        )
    if not known:
        least = settings["ATTACK_MIN_CLEAN_ROUGE"]
        yield Step(
            f"No example could be attacked: no summary reaches the clean ROUGE-L of {least:g} (ATTACK_MIN_CLEAN_ROUGE) "
            "that an attack needs. Look at the summaries in predictions.jsonl: the models may not summarise at all.",
        )
