"""Figures of several seeds: every seed a small point or thin line, the mean a large or thick one."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from utils.core.names import MODEL_KEYS
from utils.reports.figures import COLOURS, LINES, MARKERS, save_all
from utils.reports.table import seed_titles


def draw_all(results: dict[str, Any], directory: Path) -> dict[str, str]:
    """Write every figure as `<name>.svg` and `<name>.pdf`; returns name -> alternative text."""
    makers = {"rouge": rouge, "trade_off": trade_off, "hotflip_curves": hotflip_curves}
    return save_all({name: partial(make, results) for name, make in makers.items()}, directory)


def rouge(results: dict[str, Any]) -> tuple[Figure, str]:
    """ROUGE-L of every seed, and the mean with its t interval."""
    figure, axes = plt.subplots(figsize=(5.5, 2.8))
    sets, titles = results["evaluation"], seed_titles(results)
    for offset, model in enumerate(MODEL_KEYS):
        for place, cells in enumerate(sets.values()):
            cell, x = cells[model]["rougeL"], place + (offset - 1) * 0.24
            label = "" if place else model  # once in the legend
            untrained = cell["std"] is None  # one model: no interval over trainings
            error = None if untrained else [[cell["mean"] - cell["lower"]], [cell["upper"] - cell["mean"]]]
            axes.errorbar(x, cell["mean"], error, fmt=MARKERS[model], capsize=3, color=COLOURS[model], label=label)
            axes.plot([x + 0.08] * cell["n"], cell["values"], MARKERS[model], color=COLOURS[model], markersize=2.5)
    axes.set_xticks(range(len(sets)), [titles[key] for key in sets])
    axes.set_ylabel("ROUGE-L")
    axes.legend(frameon=False, ncols=3, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    words = "; ".join(
        f"{titles[key]}: " + ", ".join(f"{model} {cells[model]['rougeL']['mean']:.3f}" for model in MODEL_KEYS)
        for key, cells in sets.items()
    )
    return figure, f"ROUGE-L, mean over seeds with its t interval; small marks: the seeds. {words}."


def trade_off(results: dict[str, Any]) -> tuple[Figure, str]:
    """Quality against robustness: up and left is better."""
    figure, axes = plt.subplots(figsize=(4, 3))
    words = []
    attacked = results["attack_dataset"]
    for model in MODEL_KEYS:
        attack, quality = results["hotflip"][model]["success_rate"], results["evaluation"][attacked][model]["rougeL"]
        if attack["mean"] is None:
            continue
        rates = [100 * value for value in attack["values"]]
        axes.plot(rates, quality["values"], MARKERS[model], color=COLOURS[model], markersize=3)
        mean = (100 * attack["mean"], quality["mean"])
        axes.plot(*mean, MARKERS[model], color=COLOURS[model], markersize=8, label=model)
        words.append(f"{model}: ROUGE-L {quality['mean']:.3f}, HotFlip success {100 * attack['mean']:.0f} %")
    if words:
        axes.legend(frameon=False, ncols=3, loc="lower center", bbox_to_anchor=(0.5, 1.0), fontsize=8)
    axes.set_xlabel("HotFlip success, % (less is more robust)")
    axes.set_ylabel(f"ROUGE-L on {seed_titles(results)[attacked]}")
    points = "; ".join(words) or "No model could be attacked"
    return figure, f"Quality against robustness, means over seeds and (small) the seeds. {points}."


def hotflip_curves(results: dict[str, Any]) -> tuple[Figure, str]:
    """Success by number of flips: a thin line for each seed, a thick one for their mean."""
    figure, axes = plt.subplots(figsize=(4, 2.8))
    for model in MODEL_KEYS:
        curve = [point for point in results["hotflip"][model]["budget_curve"] if point["mean"] is not None]
        flips = range(1, len(curve) + 1)
        for number in range(len(results["seeds"])):
            values = [100 * point["values"][number] for point in curve]
            axes.plot(flips, values, LINES[model], color=COLOURS[model], linewidth=0.6, alpha=0.8)
        means = [100 * point["mean"] for point in curve]
        axes.plot(flips, means, LINES[model], marker=MARKERS[model], color=COLOURS[model], label=model)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_ylim(-4, 104)
    axes.set_xlabel("flips")
    axes.set_ylabel("success, %")
    axes.legend(frameon=False)
    return figure, "HotFlip success by number of flips; thin: the seeds, thick: their mean."
