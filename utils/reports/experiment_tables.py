"""How the experiment was made, as tables: equal settings, expected values, costs."""

from __future__ import annotations

from typing import Any

from utils.core.names import MODEL_KEYS, TRAINED_KEYS
from utils.reports.table import NOT_AVAILABLE, Table, interval, percent, plain, set_titles

# What earlier runs of this recipe with T5-small found (the guide's figures): reference lines, never used for tuning.
EXPECTED_ROUGE = {"standard": "0.268 [0.251, 0.284]", "baseline": "0.258 [0.243, 0.273]", "monotonic": "0.254 to 0.257"}
EXPECTED_SUCCESS = {"baseline": "61.0 %", "monotonic": "23 to 28 %"}
EXPECTED_DROP = {"baseline": "16.4 %", "monotonic": "7 to 9 %"}
T5_SMALL = 60_506_624  # parameters


def fairness(results: dict[str, Any]) -> Table:
    baseline, monotonic = (results[f"{arm}_training"]["settings"] for arm in TRAINED_KEYS)
    names = sorted(baseline.keys() | monotonic.keys())
    differing = [baseline.get(name) != monotonic.get(name) for name in names]
    rows: list[tuple[str, ...]] = [
        (name, plain(baseline.get(name)), plain(monotonic.get(name)), "DIFFERS" if differs else "")
        for name, differs in zip(names, differing, strict=True)
    ]
    return Table(
        "fairness",
        "Training settings of both models",
        ("setting", "baseline", "monotonic", ""),
        rows,
        "The warm-up is meant to differ, and nothing else.",
        frozenset(number for number, differs in enumerate(differing) if differs),
    )


def constraint(results: dict[str, Any]) -> Table:
    """What the constraint promises, measured on the exported models."""
    audit = results["monotonic_training"].get("audit")
    rows: list[tuple[str, ...]] = [
        (f"smallest feed-forward weight, {arm}", f"{results[f'{arm}_training']['min_ffn_weight']:.3g}")
        for arm in TRAINED_KEYS
    ]
    if audit:
        rows += [
            ("negative feed-forward weights, monotonic", percent(audit["negative_weight_share"])),
            ("outputs that fell though an input rose", f"{audit['violations']:,} of {audit['comparisons']:,}"),
        ]
    return Table(
        "constraint",
        "The constraint, measured",
        ("figure", "found"),
        rows,
        f"{audit['tried'].capitalize()}. Scope: {audit['scope']}." if audit else "",
    )


def expected(results: dict[str, Any]) -> Table:
    """The guide's figures beside this run's; they compare only where model and data are those of the guide."""
    cells = results["evaluation"].get("cnn_dm", {})
    rows: list[tuple[str, ...]] = [
        (f"CNN/DM ROUGE-L {model}", EXPECTED_ROUGE[model], interval(cells[model]["rougeL"]) if cells else NOT_AVAILABLE)
        for model in MODEL_KEYS
    ]
    for words, name, figures in (
        ("HotFlip success", "success_rate", EXPECTED_SUCCESS),
        ("HotFlip ROUGE-L drop", "mean_degradation", EXPECTED_DROP),
    ):
        rows += [(f"{words} {arm}", figures[arm], percent(results["hotflip"][arm][name])) for arm in TRAINED_KEYS]
    same = results["setup"]["model"]["parameters"] == T5_SMALL
    note = "Expected: from an earlier pipeline with this recipe, whose HotFlip was weaker (one gradient, unverified)."
    if not same:
        note += " Not comparable: this run's model is not T5-small."
    return Table("expected", "Beside the figures of earlier work", ("figure", "expected", "this run"), rows, note)


def costs(results: dict[str, Any]) -> Table:
    rows: list[tuple[str, ...]] = []
    for arm in TRAINED_KEYS:
        training = results[f"{arm}_training"]
        last = training["epochs"][-1]
        rate = last.get("examples_per_second")
        memory = last.get("peak_memory_mb")
        rows.append(
            (
                f"training {arm}",
                _time(training["total_seconds"]),
                f"{rate:.1f} examples/s" if rate else "",
                f"{memory:,.0f} MB" if memory else "",
            )
        )
    for model in MODEL_KEYS:
        cells = [
            results["evaluation"][k][model] for k in set_titles(results) if model in results["evaluation"].get(k, {})
        ]
        if cells and all("seconds" in cell for cell in cells):
            seconds, count = sum(c["seconds"] for c in cells), sum(c["num_examples"] for c in cells)
            each = f"{1000 * seconds / count:.1f} ms each" if count else ""
            rows.append((f"summaries {model}", _time(seconds), each, ""))
    seconds = {name: source["seconds"] or 0.0 for name, source in results["sources"].items()}
    for arm in TRAINED_KEYS:
        seconds[f"{arm}_training"] = results[f"{arm}_training"]["total_seconds"]  # of all sessions
    rows += [
        (f"{words}, whole stage", _time(seconds[name]), "", "")
        for name, words in (("uat", "universal triggers"), ("hotflip", "HotFlip"))
    ]
    on_gpu = sum(seconds[n] for n, source in results["sources"].items() if not str(source["device"]).startswith("CPU"))
    rows += [("all stages", _time(sum(seconds.values())), "", ""), ("of these on a GPU", _time(on_gpu), "", "")]
    return Table("costs", "Costs", ("what", "time", "rate", "memory"), rows, _overhead(results))


def _overhead(results: dict[str, Any]) -> str:
    """What the constraint costs: monotonic beside baseline in seconds, memory and seconds per summary."""
    both = [results[f"{arm}_training"] for arm in TRAINED_KEYS]
    pairs = {
        "the time": [history["total_seconds"] for history in both],
        "the memory": [history["epochs"][-1].get("peak_memory_mb") for history in both],
    }
    cells = [
        [results["evaluation"][key][arm] for key in set_titles(results) if key in results["evaluation"]]
        for arm in TRAINED_KEYS
    ]
    spent = [sum(cell.get("seconds", 0.0) for cell in arm) for arm in cells]
    words = [f"{second / first:.2f} times {what}" for what, (first, second) in pairs.items() if first and second]
    generation = f" and generation {spent[1] / spent[0]:.2f} times the time" if spent[0] and spent[1] else ""
    note = f"Overhead of the constraint: training takes {' and '.join(words)} of baseline{generation}"
    return f"{note}; once exported, monotonic is an ordinary T5 of the same size."


def _time(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.2f} h"
