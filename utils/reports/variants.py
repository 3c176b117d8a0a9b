"""One page about several experiments: what each model of each variant is worth and how hard it is to attack."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from utils.analysis.multi_seed import SeedRun, over_seeds
from utils.core.errors import InputError
from utils.core.names import HEADLINE_METRIC
from utils.core.results import profile_note
from utils.reports.figures import COLOURS, MARKERS, save_all
from utils.reports.html import figure
from utils.reports.table import NOT_AVAILABLE, Table
from utils.reports.template import Section, render_page

Cells = Mapping[str, Sequence[SeedRun]]  # the finished seeds of each variant


def table(cells: Cells) -> Table:
    """A row for each model of each variant: quality and success of attacks, mean over seeds and the range of seeds."""
    rows = []
    for name, runs in cells.items():
        for model in _models(runs):
            having = _with(runs, model)
            quality, hotflip, worst = _figures(having, model)
            words = (_over(values, factor, form) for values, factor, form in (quality, hotflip, worst))
            rows.append((name, model, *words, ", ".join(str(run.seed) for run in having)))
    header = ("variant", "model", "ROUGE-L", "HotFlip success, %", "worst case, %", "seeds")
    note = "On the attacked set: mean over seeds [smallest, largest]. Higher ROUGE-L and lower success are better."
    return Table("variants", "Quality against robustness", header, rows, note)


def page(cells: Cells, missing: Sequence[str], directory: Path) -> str:
    """Draw the figure into `directory` and return the page; `missing`: cells without results, in words."""
    if not any(cells.values()):
        raise InputError(f"no variant has final results yet: {', '.join(missing)}")
    texts = save_all({"variants": lambda: _drawn(cells)}, directory)
    shown = table(cells)
    (directory.parent / "variants.csv").write_text(shown.csv(), encoding="utf-8")
    notes = {profile_note(run.metadata) for runs in cells.values() for run in runs} - {""}
    sources = [
        f"{name}, seed {run.seed}: run {run.metadata['run_id']}, settings {run.metadata['config_fingerprint']}"
        for name, runs in cells.items()
        for run in runs
    ]
    sections = [
        Section(
            "Quality against robustness",
            figures=[figure(directory / "variants.svg", "variants", texts["variants"])],
            tables=[shown],
        ),
        Section("Provenance", lines=sources),
    ]
    verdict = ["Variants differ in their settings: read each one's own report before you compare two of them."]
    warnings = [f"Not finished: {cell}." for cell in missing]
    return render_page("mono-s2s, variants", verdict, warnings, sections, banner=" ".join(sorted(notes)))


def _models(runs: Sequence[SeedRun]) -> list[str]:
    return list(dict.fromkeys(model for run in runs for model in run.results.hotflip.models))


def _with(runs: Sequence[SeedRun], model: str) -> list[SeedRun]:
    """The seeds that have the model: a control arm may have been trained in some alone."""
    return [run for run in runs if model in run.results.hotflip.models]


def _figures(runs: Sequence[SeedRun], model: str) -> list[tuple[list[float | None], int, str]]:
    """ROUGE-L, HotFlip success and worst case by seed, each with the factor and the form it is shown in."""
    results = [run.results for run in runs]
    rouge = [getattr(r.evaluation.datasets[r.data.attack_dataset][model], HEADLINE_METRIC).mean for r in results]
    attacks = [r.hotflip.models[model] for r in results]
    return [
        (rouge, 1, ".4f"),
        ([cell.success_rate for cell in attacks], 100, ".1f"),
        ([cell.worst_case.success_rate for cell in attacks], 100, ".1f"),
    ]


def _over(values: list[float | None], factor: int, form: str) -> str:
    there = [factor * value for value in values if value is not None]
    if not there:
        return NOT_AVAILABLE
    mean = over_seeds(there).mean if len(there) > 1 else there[0]
    return f"{mean:{form}} [{min(there):{form}}, {max(there):{form}}]"


def _drawn(cells: Cells) -> tuple[Figure, str]:
    """A point for each seed of each model and variant: success of attacks across, ROUGE-L up."""
    drawn, axes = plt.subplots(figsize=(5, 3.4))
    words, models = [], []
    for number, (name, runs) in enumerate(cells.items(), start=1):
        for model in _models(runs):
            (quality, *_), _, (success, *_) = _figures(_with(runs, model), model)
            points = [(100 * x, y) for x, y in zip(success, quality, strict=True) if x is not None and y is not None]
            for x, y in points:
                label = "" if model in models else model
                models.append(model)
                colour, marker = COLOURS.get(model, "grey"), MARKERS.get(model, "x")
                axes.plot([x], [y], linestyle="", markersize=6, color=colour, marker=marker, label=label)
                axes.annotate(str(number), (x, y), xytext=(4, 3), textcoords="offset points", fontsize=7)
                words.append(f"{number} {name}, {model}: ROUGE-L {y:.3f}, worst case {x:.0f} %")
    axes.set_xlabel("worst-case success of attacks, %")
    axes.set_ylabel("ROUGE-L")
    if models:
        axes.legend(frameon=False, ncols=3, loc="lower center", bbox_to_anchor=(0.5, 1.0), fontsize=8)
    return drawn, "Up and left is better; a number is a variant. " + "; ".join(words) + "."
