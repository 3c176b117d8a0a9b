"""Figures about causes: the quality curve of every arm, and success and quality by the dose of the constraint."""

from __future__ import annotations

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from utils.analysis.final import FinalResults
from utils.core.names import BASELINE, MONOTONIC, TRAINED_KEYS
from utils.reports.table import set_titles

STYLES = {BASELINE: ("#0072B2", "o", "-"), MONOTONIC: ("#D55E00", "^", "--")}
OTHERS = (("#009E73", "D", "-."), ("#C0619A", "v", ":"), ("#000000", "x", "-"), ("#7f7f7f", "P", "--"))


def _style(arm: str, arms: list[str]) -> tuple[str, str, str]:
    """Colour, marker and line of an arm; the pair has those of all other figures."""
    rest = [name for name in arms if name not in STYLES]
    return STYLES[arm] if arm in STYLES else OTHERS[rest.index(arm) % len(OTHERS)]


def quality_curve(results: FinalResults) -> tuple[Figure, str]:
    """Attack success against clean ROUGE-L of every snapshot, a line an arm."""
    figure, axes = plt.subplots(figsize=(4, 2.8))
    curves, words = results.matched.curves, []
    for arm, points in curves.items():
        shown = [point for point in points if point.success_rate is not None]
        colour, marker, line = _style(arm, list(curves))
        rates = [100 * (point.success_rate or 0.0) for point in shown]
        axes.plot([p.clean_rougeL for p in shown], rates, line, marker=marker, color=colour, ms=4, label=arm)
        if shown:
            words.append(f"{arm} from {shown[0].clean_rougeL:.2f}, {rates[0]:.0f} % to {shown[-1].clean_rougeL:.2f}, "
                         f"{rates[-1]:.0f} %")  # fmt: skip
    _legend(axes, bool(words))
    axes.set_xlabel("clean ROUGE-L of a snapshot")
    axes.set_ylabel("success, %")
    return (
        figure,
        f"Success of a small attack by clean ROUGE-L over training: {'; '.join(words) or 'nothing measured'}.",
    )


def dose_response(results: FinalResults) -> tuple[Figure, str]:
    """Worst-case success and ROUGE-L by the share of feed-forward weights that are at least 0."""
    title = set_titles(results)[results.data.attack_dataset]
    figure, panels = plt.subplots(1, 2, figsize=(6, 2.8))
    arms, words = [*TRAINED_KEYS, *results.attribution], []
    for arm in arms:
        audit, success = results.trainings[arm].audit, results.hotflip.models[arm].worst_case.success_rate
        if audit is None or success is None:
            continue
        dose = 100 * (1 - audit.negative_weight_share)
        rouge = results.evaluation.datasets[results.data.attack_dataset][arm].rougeL.mean
        colour, marker, _ = _style(arm, arms)
        for axes, value in zip(panels, (100 * success, rouge), strict=True):
            axes.plot([dose], [value], marker=marker, color=colour, linestyle="none", label=arm)
        words.append(f"{arm} {dose:.0f} %: success {100 * success:.0f} %, ROUGE-L {rouge:.2f}")
    for axes, label in zip(panels, ("worst-case success, %", f"ROUGE-L on {title}"), strict=True):
        axes.set_xlabel("weights >= 0, %")
        axes.set_ylabel(label)
    _legend(panels[0], bool(words))
    return (
        figure,
        f"By the share of feed-forward weights that are at least 0: {'; '.join(words) or 'nothing measured'}.",
    )


def _legend(axes: Axes, anything: bool) -> None:
    if anything:
        axes.legend(frameon=False, ncols=3, loc="lower center", bbox_to_anchor=(0.5, 1.0), fontsize=7)
