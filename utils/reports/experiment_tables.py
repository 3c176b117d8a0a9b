"""How the experiment was made, as tables: equal settings, expected values, costs."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from utils.analysis.final import FinalResults
from utils.core.names import BASELINE, MODEL_KEYS, MONOTONIC, STANDARD, TRAINED_KEYS
from utils.reports.table import NOT_AVAILABLE, Table, interval, percent, plain

# What earlier runs of this recipe with T5-small found (the guide's figures): reference lines, never used for tuning.
EXPECTED_ROUGE = {STANDARD: "0.268 [0.251, 0.284]", BASELINE: "0.258 [0.243, 0.273]", MONOTONIC: "0.254 to 0.257"}
EXPECTED_SUCCESS = {BASELINE: "61.0 %", MONOTONIC: "23 to 28 %"}
EXPECTED_DROP = {BASELINE: "16.4 %", MONOTONIC: "7 to 9 %"}
T5_SMALL = 60_506_624  # parameters


def fairness(results: FinalResults) -> Table:
    baseline, monotonic = (training.settings for training in (results.baseline_training, results.monotonic_training))
    names = sorted(baseline.keys() | monotonic.keys())
    differing = [baseline.get(name) != monotonic.get(name) for name in names]
    rows: list[tuple[str, ...]] = [
        (name, plain(baseline.get(name)), plain(monotonic.get(name)), _difference(name) if differs else "")
        for name, differs in zip(names, differing, strict=True)
    ]
    return Table(
        "fairness",
        "Training settings of both models",
        ("setting", *TRAINED_KEYS, ""),
        rows,
        "The warm-up is meant to differ, and nothing else.",
        frozenset(number for number, differs in enumerate(differing) if differs),
    )


def _difference(name: str) -> str:
    return "differs, as it should" if name == "warmup_ratio" else "DIFFERS"


def constraint(results: FinalResults) -> Table:
    """What the constraint promises, measured on the exported models."""
    audit = results.monotonic_training.audit
    rows: list[tuple[str, ...]] = [
        (f"smallest feed-forward weight, {arm}", f"{training.min_ffn_weight:.3g}")
        for arm, training in results.trainings.items()
    ]
    if audit:
        rows += [
            ("negative feed-forward weights, monotonic", percent(audit.negative_weight_share)),
            ("outputs that fell though an input rose", f"{audit.violations:,} of {audit.comparisons:,}"),
        ]
    for arm, training in results.trainings.items():
        promises = (training.audit.promises if training.audit else None) or {}
        if promises:
            kept = ", ".join(f"{name}: {'yes' if fine else 'NO'}" for name, fine in promises.items())
            rows.append((f"promises of {arm} kept", kept))
    return Table(
        "constraint",
        "The constraint, measured",
        ("figure", "measured"),
        rows,
        f"{audit.tried.capitalize()}. Scope: {audit.scope}." if audit else "",
    )


def expected(results: FinalResults) -> Table:
    """The guide's figures beside this run's; they compare only where model and data are those of the guide."""
    cells = results.evaluation.datasets.get("cnn_dm", {})
    rows: list[tuple[str, ...]] = [
        (f"CNN/DM ROUGE-L {model}", EXPECTED_ROUGE[model], interval(cells[model].rougeL) if cells else NOT_AVAILABLE)
        for model in MODEL_KEYS
    ]
    attacked = {arm: results.hotflip.models[arm] for arm in TRAINED_KEYS}
    rows += [(f"HotFlip success {arm}", EXPECTED_SUCCESS[arm], percent(attacked[arm].success_rate)) for arm in attacked]
    rows += [
        (f"HotFlip ROUGE-L drop {arm}", EXPECTED_DROP[arm], percent(attacked[arm].mean_degradation)) for arm in attacked
    ]
    same = results.setup.model.parameters == T5_SMALL
    note = "Expected: from an earlier pipeline with this recipe, whose HotFlip was weaker (one gradient, unverified)."
    if not same:
        note += " Not comparable: this run's model is not T5-small."
    if results.data.attack_dataset != "cnn_dm":
        note += " Not comparable: attacked were other texts than CNN/DM."
    return Table("expected", "Beside the figures of earlier work", ("figure", "expected", "this run"), rows, note)


def costs(results: FinalResults) -> Table:
    rows: list[tuple[str, ...]] = []
    for arm, training in results.trainings.items():
        last = training.epochs[-1]
        rate, memory = last.examples_per_second, last.peak_memory_mb
        rows.append(
            (
                f"training {arm}",
                _time(training.total_seconds),
                f"{rate:.1f} examples/s" if rate else "",
                f"{memory:,.0f} MB" if memory else "",
            )
        )
    for model in MODEL_KEYS:
        seconds, count = _generation(results, model)
        if seconds is not None:
            each = f"{1000 * seconds / count:.1f} ms each" if count else ""
            rows.append((f"summaries {model}", _time(seconds), each, ""))
    stages = {name: source.seconds or 0.0 for name, source in results.sources.items()}
    stages |= {f"{arm}_training": training.total_seconds for arm, training in results.trainings.items()}
    rows += [
        (f"{title}, whole stage", _time(stages[name]), "", "")
        for name, title in (("uat", "universal triggers"), ("hotflip", "HotFlip"))
    ]
    # A stage that writes several files tells its seconds in each, as of then: the last one has them all.
    runs: dict[str, float] = {}
    on_gpu: set[str] = set()
    for name, source in results.sources.items():
        runs[source.run_id] = max(runs.get(source.run_id, 0.0), stages[name])
        on_gpu |= set() if str(source.device).startswith("CPU") else {source.run_id}
    gpu = sum(runs[run_id] for run_id in on_gpu)
    rows += [("all stages", _time(sum(runs.values())), "", ""), ("of these on a GPU", _time(gpu), "", "")]
    return Table("costs", "Costs", ("part", "time", "rate", "memory"), rows, _overhead(results))


def _generation(results: FinalResults, model: str) -> tuple[float | None, int]:
    """Seconds of generation over all test sets (None: not timed), and the number of summaries."""
    cells = [cells[model] for cells in results.evaluation.datasets.values() if model in cells]
    timed = [cell.seconds for cell in cells if cell.seconds is not None]
    return sum(timed) if cells and len(timed) == len(cells) else None, sum(cell.num_examples for cell in cells)


def _overhead(results: FinalResults) -> str:
    """What the constraint costs: monotonic beside baseline, where the clock can tell them apart."""
    both = (results.baseline_training, results.monotonic_training)
    hosts = sorted({str(session.get("host")) for training in both for session in training.sessions})
    seconds = [[epoch.seconds for epoch in training.epochs if epoch.seconds is not None] for training in both]
    memory = [training.epochs[-1].peak_memory_mb for training in both]
    parts = [f"training: {overhead_of_training(seconds[0], seconds[1], hosts)}"]
    if all(memory):
        parts.append(f"{memory[1] / memory[0]:.2f} times the memory")
    sets = results.evaluation.datasets.values()
    each = [[cells[arm].seconds_per_summary for cells in sets] for arm in TRAINED_KEYS]
    ratios = [second / first for first, second in zip(*each, strict=True) if first and second]
    if ratios:
        parts.append(f"generation: {overhead_of_generation(ratios)}")
    return (
        f"Overhead of the constraint, {'; '.join(parts)}. Once exported, monotonic is an ordinary T5 of the same size."
    )


def overhead_of_training(baseline: Sequence[float], monotonic: Sequence[float], hosts: Sequence[str]) -> str:
    """Seconds of the epochs of both arms in words: a ratio only where it exceeds what the machine's load does."""
    if not baseline or not monotonic:
        return "not timed"
    middle = [statistics.median(arm) for arm in (baseline, monotonic)]
    spread = [max(arm) - min(arm) for arm in (baseline, monotonic)]
    words = ", ".join(
        f"{name} {value:.1f} s an epoch [{min(arm):.1f}, {max(arm):.1f}]"
        for name, value, arm in zip(TRAINED_KEYS, middle, (baseline, monotonic), strict=True)
    )
    if len(hosts) > 1:
        return f"{words} (median, range): not comparable, on different machines ({', '.join(hosts)})"
    if max(spread) >= abs(middle[1] - middle[0]):
        return f"{words} (median, range): not comparable, the epochs of one arm differ by as much as the arms do"
    return f"{words} (median, range): {middle[1] / middle[0]:.2f} times as long"


def overhead_of_generation(ratios: Sequence[float]) -> str:
    """Seconds a summary, monotonic over baseline, of every test set in words."""
    words = f"{min(ratios):.2f} to {max(ratios):.2f} times as long over {len(ratios)} test sets"
    return words if min(ratios) > 1 or max(ratios) < 1 else f"{words}: not comparable, on both sides of 1"


def _time(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.2f} h"
