"""The figures of the report: drawn once with matplotlib, kept as SVG (for the page) and PDF (for a paper)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from utils.reports.tables import MODELS, TITLES

# Okabe and Ito's colours, with markers and line styles so that no meaning hangs on colour.
COLOURS = {"standard": "#7f7f7f", "baseline": "#0072B2", "monotonic": "#D55E00"}
MARKERS = {"standard": "s", "baseline": "o", "monotonic": "^"}
LINES = {"standard": ":", "baseline": "-", "monotonic": "--"}
STYLE = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "svg.fonttype": "none",
    "pdf.fonttype": 42,
    "svg.hashsalt": "mono-s2s",
}


def draw_all(results: dict[str, Any], directory: Path) -> dict[str, str]:
    """Write every figure as `<name>.svg` and `<name>.pdf`; returns name -> alternative text."""
    directory.mkdir(parents=True, exist_ok=True)
    makers: dict[str, Callable[[dict[str, Any]], tuple[Figure, str]]] = {
        "rouge": rouge,
        "trade_off": trade_off,
        "training": training,
        "hotflip_curves": hotflip_curves,
    }
    texts = {}
    with plt.rc_context(STYLE):
        for name, make in makers.items():
            figure, texts[name] = make(results)
            for kind in ("svg", "pdf"):
                stable = {"Date": None} if kind == "svg" else {"CreationDate": None}
                figure.savefig(directory / f"{name}.{kind}", bbox_inches="tight", metadata=stable)
            plt.close(figure)
    return texts


def rouge(results: dict[str, Any]) -> tuple[Figure, str]:
    """ROUGE-L of every model on every set, with intervals."""
    figure, axes = plt.subplots(figsize=(5.5, 2.8))
    keys = [key for key in TITLES if key in results["evaluation"]]
    for offset, model in enumerate(MODELS):
        cells = [results["evaluation"][key][model]["rougeL"] for key in keys]
        means = [cell["mean"] for cell in cells]
        errors = [[c["mean"] - c["lower"] for c in cells], [c["upper"] - c["mean"] for c in cells]]
        places = [i + (offset - 1) * 0.2 for i in range(len(keys))]
        axes.errorbar(places, means, errors, fmt=MARKERS[model], color=COLOURS[model], capsize=3, label=model)
    axes.set_xticks(range(len(keys)), [TITLES[key] for key in keys])
    axes.set_ylabel("ROUGE-L")
    axes.legend(frameon=False)
    words = "; ".join(
        f"{TITLES[k]}: " + ", ".join(f"{m} {results['evaluation'][k][m]['rougeL']['mean']:.3f}" for m in MODELS)
        for k in keys
    )
    return figure, f"ROUGE-L with 95 % intervals. {words}."


def trade_off(results: dict[str, Any]) -> tuple[Figure, str]:
    """Quality against robustness: up and left is better."""
    figure, axes = plt.subplots(figsize=(4, 3))
    words = []
    for model in MODELS:
        attack, quality = results["hotflip"][model], results["evaluation"]["cnn_dm"][model]["rougeL"]
        if attack["success_rate"] is None:
            continue
        x, y, (low, high) = 100 * attack["success_rate"], quality["mean"], attack["success_rate_ci"]
        axes.errorbar(
            x,
            y,
            xerr=[[max(x - 100 * low, 0)], [max(100 * high - x, 0)]],
            yerr=[[y - quality["lower"]], [quality["upper"] - y]],
            fmt=MARKERS[model],
            color=COLOURS[model],
            capsize=3,
        )
        axes.annotate(model, (x, y), xytext=(6, 6), textcoords="offset points")
        words.append(f"{model}: ROUGE-L {y:.3f}, HotFlip success {x:.0f} %")
    axes.set_xlabel("HotFlip success, % (less is more robust)")
    axes.set_ylabel("ROUGE-L on CNN/DM")
    return figure, f"Quality against robustness. {'; '.join(words)}."


def training(results: dict[str, Any]) -> tuple[Figure, str]:
    """Training and validation loss by epoch."""
    figure, axes = plt.subplots(figsize=(4, 2.8))
    words = []
    for arm in ("baseline", "monotonic"):
        epochs = results[f"{arm}_training"]["epochs"]
        numbers = [epoch["epoch"] for epoch in epochs]
        axes.plot(
            numbers,
            [e["validation_loss"] for e in epochs],
            LINES[arm],
            marker=MARKERS[arm],
            color=COLOURS[arm],
            label=f"{arm}, validation",
        )
        axes.plot(
            numbers,
            [e["train_loss"] for e in epochs],
            LINES[arm],
            color=COLOURS[arm],
            alpha=0.5,
            label=f"{arm}, training",
        )
        words.append(f"{arm} {epochs[0]['validation_loss']:.2f} to {epochs[-1]['validation_loss']:.2f}")
    axes.set_xlabel("epoch")
    axes.set_ylabel("loss, nats per token")
    axes.legend(frameon=False, fontsize=7)
    return figure, f"Training curves; validation loss {'; '.join(words)}."


def hotflip_curves(results: dict[str, Any]) -> tuple[Figure, str]:
    """Success against the number of flips, and against the threshold."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(6.5, 2.8), sharey=True)
    for model in MODELS:
        cell = results["hotflip"][model]
        curve = [point for point in cell["budget_curve"] if point["success_rate"] is not None]
        style = {"color": COLOURS[model], "marker": MARKERS[model], "linestyle": LINES[model], "label": model}
        left.plot([p["flips"] for p in curve], [100 * p["success_rate"] for p in curve], **style)
        sweep = {float(t): 100 * rate for t, rate in cell["success_by_threshold"].items() if rate is not None}
        right.plot([100 * t for t in sweep], list(sweep.values()), **style)
    left.set_xlabel("flips")
    left.set_ylabel("success, %")
    right.set_xlabel("threshold: relative ROUGE-L drop, %")
    right.legend(frameon=False)
    return figure, "HotFlip success by number of flips, and by the threshold that counts as success."
