"""The figures of the report: drawn once with matplotlib, kept as SVG (for the page) and PDF (for a paper)."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from utils.analysis.final import FinalResults
from utils.analysis.records import given
from utils.core.names import BASELINE, MODEL_KEYS, TRAINED_KEYS
from utils.reports import cause_figures
from utils.reports.data_tables import lengths
from utils.reports.result_tables import lead3
from utils.reports.table import NOT_AVAILABLE, set_titles

# Okabe and Ito's colours, with markers and line styles so that no meaning hangs on colour. Black and nothing else is
# taken over by the page's own colour of text (report.html in the dark), so what must stay black is INK.
COLOURS = dict(zip(MODEL_KEYS, ("#7f7f7f", "#0072B2", "#D55E00"), strict=True))
INK, WHITE = "#010101", "#fefefe"
MARKERS = dict(zip(MODEL_KEYS, "so^", strict=True))
LINES = dict(zip(MODEL_KEYS, (":", "-", "--"), strict=True))
TYPE_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#C0619A", "#000000")
TYPE_LINES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)))
STYLE: dict[Any, Any] = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "svg.fonttype": "none",
    "pdf.fonttype": 42,
    "svg.hashsalt": "mono-s2s",
    "text.parse_math": False,  # a dollar sign in the title of a data set is a dollar sign
}


def draw_all(results: FinalResults, directory: Path) -> dict[str, str]:
    """Write every figure as `<name>.svg` and `<name>.pdf`; returns name -> alternative text."""
    makers: dict[str, Callable[[FinalResults], tuple[Figure, str]]] = {
        "rouge": rouge,
        "trade_off": trade_off,
        "training": training,
        "lengths": lengths,
        "hotflip_curves": hotflip_curves,
        "hotflip_transfer": hotflip_transfer,
        "trigger_learning": trigger_learning,
        "trigger_transfer": trigger_transfer,
    }
    if results.matched.num_examples:
        makers["quality_curve"] = cause_figures.quality_curve
    if results.attribution:
        makers["dose_response"] = cause_figures.dose_response
    return save_all({name: partial(make, results) for name, make in makers.items()}, directory)


def save_all(makers: Mapping[str, Callable[[], tuple[Figure, str]]], directory: Path) -> dict[str, str]:
    """Draw each figure and write it as SVG and PDF, byte by byte the same for the same results; returns the texts."""
    directory.mkdir(parents=True, exist_ok=True)
    texts = {}
    with plt.rc_context(STYLE):
        for name, make in makers.items():
            figure, texts[name] = make()
            for kind in ("svg", "pdf"):
                stable = {"Date": None} if kind == "svg" else {"CreationDate": None}
                figure.savefig(directory / f"{name}.{kind}", bbox_inches="tight", transparent=True, metadata=stable)
            plt.close(figure)
    return texts


def rouge(results: FinalResults) -> tuple[Figure, str]:
    """ROUGE-L of every model on every set, with intervals, beside the first three sentences of the text."""
    figure, axes = plt.subplots(figsize=(5.5, 2.8))
    titles = set_titles(results)
    keys = [key for key in titles if key in results.evaluation.datasets]
    for offset, model in enumerate(MODEL_KEYS):
        cells = [results.evaluation.datasets[key][model].rougeL for key in keys]
        means = [cell.mean for cell in cells]
        errors = [[c.mean - c.lower for c in cells], [c.upper - c.mean for c in cells]]
        places = [i + (offset - 1) * 0.2 for i in range(len(keys))]
        axes.errorbar(places, means, errors, fmt=MARKERS[model], color=COLOURS[model], capsize=3, label=model)
    lead = [lead3(results, key)["rougeL"] for key in keys]
    axes.hlines(lead, [i - 0.35 for i in range(len(keys))], [i + 0.35 for i in range(len(keys))], "#000000", ":",
                label="lead-3")  # fmt: skip
    axes.set_xticks(range(len(keys)), [titles[key] for key in keys])
    axes.set_ylabel("ROUGE-L")
    axes.legend(frameon=False, ncols=4, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    values_shown = "; ".join(
        f"{titles[key]}: "
        + ", ".join(f"{m} {results.evaluation.datasets[key][m].rougeL.mean:.3f}" for m in MODEL_KEYS)
        + f", lead-3 {value:.3f}"
        for key, value in zip(keys, lead, strict=True)
    )
    missing = "".join(f"; {title}: {NOT_AVAILABLE}" for key, title in titles.items() if key not in keys)
    return figure, f"ROUGE-L with intervals. {values_shown}{missing}."


def trade_off(results: FinalResults) -> tuple[Figure, str]:
    """Quality against robustness: up and left is better."""
    figure, axes = plt.subplots(figsize=(4, 3))
    points = []
    for model in MODEL_KEYS:
        attack, quality = (
            results.hotflip.models[model],
            results.evaluation.datasets[results.data.attack_dataset][model].rougeL,
        )
        if attack.success_rate is None:
            continue
        x, y, (low, high) = 100 * attack.success_rate, quality.mean, given(attack.success_rate_ci)
        axes.errorbar(
            x,
            y,
            xerr=[[max(x - 100 * low, 0)], [max(100 * high - x, 0)]],
            yerr=[[y - quality.lower], [quality.upper - y]],
            fmt=MARKERS[model],
            color=COLOURS[model],
            capsize=3,
            label=model,
        )
        points.append(f"{model}: ROUGE-L {y:.3f}, HotFlip success {x:.0f} %")
    if points:
        axes.legend(frameon=False, ncols=3, loc="lower center", bbox_to_anchor=(0.5, 1.0), fontsize=8)
    axes.set_xlabel("HotFlip success, % (less is more robust)")
    axes.set_ylabel(f"ROUGE-L on {set_titles(results)[results.data.attack_dataset]}")
    return figure, f"Quality against robustness. {'; '.join(points) or 'No model could be attacked'}."


def training(results: FinalResults) -> tuple[Figure, str]:
    """Training and validation loss by epoch."""
    figure, axes = plt.subplots(figsize=(4, 2.8))
    losses = []
    for arm, history in ((arm, results.trainings[arm]) for arm in TRAINED_KEYS):
        epochs = history.epochs
        numbers = [epoch.epoch for epoch in epochs]
        axes.plot(
            numbers,
            [e.validation_loss for e in epochs],
            LINES[arm],
            marker=MARKERS[arm],
            color=COLOURS[arm],
            label=f"{arm}, validation",
        )
        axes.plot(
            numbers,
            [e.train_loss for e in epochs],
            LINES[arm],
            color=COLOURS[arm],
            alpha=0.5,
            label=f"{arm}, training",
        )
        losses.append(f"{arm} {epochs[0].validation_loss:.2f} to {epochs[-1].validation_loss:.2f}")
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_ylabel("loss, nats per token")
    axes.legend(frameon=False, fontsize=7, ncols=2, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    return figure, f"Training curves; validation loss {'; '.join(losses)}."


def hotflip_curves(results: FinalResults) -> tuple[Figure, str]:
    """Success against the number of flips, and against the threshold."""
    longer = any(results.hotflip.models[model].long_budget_curve for model in MODEL_KEYS)
    figure, (left, right, *beyond) = plt.subplots(1, 2 + longer, figsize=(6.5 + 3 * longer, 2.8), sharey=True)
    for model in MODEL_KEYS:
        cell = results.hotflip.models[model]
        curve = cell.budget_curve or []  # none where nothing was attackable
        style = {"color": COLOURS[model], "marker": MARKERS[model], "linestyle": LINES[model], "label": model}
        left.plot([p.flips for p in curve], [100 * p.success_rate for p in curve], **style)
        more = cell.long_budget_curve or ()
        if more:
            names = ["all" if point.flips is None else str(point.flips) for point in more]
            beyond[0].plot(names, [100 * point.success_rate for point in more], **style)
            beyond[0].set_xlabel("flips beyond the budget")
        sweep = {float(t): 100 * rate for t, rate in (cell.success_by_threshold or {}).items()}
        right.plot([100 * t for t in sweep], list(sweep.values()), **style)
    right.axvline(100 * results.hotflip.models[BASELINE].threshold, color="#000000", linewidth=0.8, linestyle=":")
    left.xaxis.set_major_locator(MaxNLocator(integer=True))
    left.set_xlabel("flips")
    left.set_ylabel("success, %")
    right.set_xlabel("threshold: relative ROUGE-L drop, %")
    right.legend(frameon=False)
    left.set_ylim(-4, 104)
    return figure, (
        "HotFlip success by number of flips, and by the relative ROUGE-L drop that counts as success (dotted: the "
        "threshold of the tables)."
    )


def hotflip_transfer(results: FinalResults) -> tuple[Figure, str]:
    """Success of the flips found on one model (row) on every other (column), in percent."""
    matrix = results.hotflip.transfer_matrix
    rates = [[matrix[source][target].success_rate for target in MODEL_KEYS] for source in MODEL_KEYS]
    figure, axes = plt.subplots(figsize=(3.4, 2.8))
    cells = [[float("nan") if rate is None else 100 * rate for rate in row] for row in rates]
    _heat_map(axes, cells, "{:.0f}", (0.0, 100.0))
    axes.set_title("HotFlip success, %", fontsize=9)
    return figure, "HotFlip success in percent: flips found on the model of the row, read by that of the column."


def trigger_transfer(results: FinalResults) -> tuple[Figure, str]:
    """NLL rise by the triggers found on one model (row) on every other (column), one square per type."""
    matrix = results.uat.transfer_matrix
    rises = {
        kind: [[cells[source][target].nll_increase for target in MODEL_KEYS] for source in MODEL_KEYS]
        for kind, cells in matrix.items()
    }
    known = [abs(value) for rows in rises.values() for row in rows for value in row if value is not None]
    reach = max(known, default=0.0) or 1.0
    values = {
        kind: [[float("nan") if value is None else value for value in row] for row in rows]
        for kind, rows in rises.items()
    }
    columns = max(1, min(3, len(values)))  # without any type one empty square
    lines = max(1, -(-len(values) // columns))
    figure, grid = plt.subplots(lines, columns, figsize=(2.6 * columns, 2.5 * lines), squeeze=False)
    for axes in grid.flat[len(values) :]:
        axes.set_visible(False)
    for axes, (kind, cells) in zip(grid.flat, values.items(), strict=False):
        _heat_map(axes, cells, "{:+.2f}", (-reach, reach))
        axes.set_title(kind, fontsize=9)
    figure.tight_layout()
    return figure, "NLL rise by triggers: found on the model of the row, read by that of the column; a square per type."


def trigger_learning(results: FinalResults) -> tuple[Figure, str]:
    """What the triggers gain on held-out examples while they are searched for: the best restart so far."""
    figure, grid = plt.subplots(1, len(MODEL_KEYS), figsize=(2.6 * len(MODEL_KEYS), 2.6), squeeze=False)
    for axes, model in zip(grid.flat, MODEL_KEYS, strict=True):
        searches = [(kind, cell) for kind, cell in results.uat.models[model].types.items() if cell.curve]
        for number, (kind, cell) in enumerate(searches):
            # Held-out examples are scored every few iterations, and a restart that rests has no score.
            gains = [[gain for gain in point.dev_gain or () if gain is not None] for point in cell.curve]
            steps = [point.iteration for point, values in zip(cell.curve, gains, strict=True) if values]
            best = list(itertools.accumulate((max(values) for values in gains if values), max))
            style = {"color": TYPE_COLOURS[number % 5], "linestyle": TYPE_LINES[number % 5]}
            axes.plot(steps, best, label=kind, **style)
        axes.set_title(model, fontsize=9)
        axes.set_xlabel("iteration")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    grid[0, 0].set_ylabel("NLL rise, held out")
    figure.tight_layout()
    handles, names = grid[0, 0].get_legend_handles_labels()
    if names:
        figure.legend(handles, names, frameon=False, fontsize=8, ncols=5, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    return figure, "Learning curves of the universal triggers: best of the restarts on held-out examples, by iteration."


def _heat_map(axes: Axes, cells: list[list[float]], form: str, limits: tuple[float, float]) -> None:
    """A square of source x target with its numbers written in, so that nothing hangs on the colour."""
    low, high = limits
    axes.pcolormesh(cells, cmap="cividis", vmin=low, vmax=high, edgecolors="white", linewidth=1)
    axes.invert_yaxis()
    axes.set_aspect("equal")
    centres = [number + 0.5 for number in range(len(MODEL_KEYS))]
    axes.set_xticks(centres, MODEL_KEYS, rotation=30, ha="right", fontsize=7)
    axes.set_yticks(centres, MODEL_KEYS, fontsize=7)
    axes.tick_params(length=0)
    for row, values in enumerate(cells):
        for column, value in enumerate(values):
            dark = value != value or value < (low + high) / 2
            text = "-" if value != value else form.format(round(value, 2) + 0.0)  # no -0.00
            axes.text(column + 0.5, row + 0.5, text, ha="center", va="center", fontsize=8, color=WHITE if dark else INK)
    axes.spines[:].set_visible(False)
