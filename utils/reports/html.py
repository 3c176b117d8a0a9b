"""report.html: one page that needs nothing else, readable on paper, on a phone, in light and dark."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from markupsafe import Markup

from utils.analysis.aggregate import FILES, FINAL
from utils.analysis.final import FinalResults
from utils.core.errors import StageError
from utils.core.results import profile_note
from utils.reports.data_tables import doubts
from utils.reports.examples import Examples
from utils.reports.next_steps import next_steps
from utils.reports.table import Table
from utils.reports.template import Picture, Section, render_page
from utils.reports.text import SENTENCES

NARROW = 300  # points: figures up to this width need no scrolling on a phone
# Title, what a reader needs to know before looking, then figures and tables.
SECTIONS = (
    ("Quality", "ROUGE against the reference summaries, over every test example.",
     ("rouge", "trade_off"), ("main", "rouge", "rouge_comparison", "rouge_against_standard", "expected")),
    ("HotFlip", "Single tokens of the text are exchanged, guided by gradients, until the summary suffers.",
     ("hotflip_curves",), ("attack", "hotflip", "hotflip_controls", "hotflip_checks", "hotflip_budget")),
    ("HotFlip across models", "Flips found on one model, read by another.",
     ("hotflip_transfer",), ("hotflip_transfer",)),
    ("Universal triggers", "The same few tokens put into every text; found on validation, measured on test examples.",
     ("trigger_learning",), ("triggers", "trigger_controls")),
    ("Universal triggers across models", "Triggers found on one model, read by another.",
     ("trigger_transfer",), ("trigger_transfer",)),
    ("Tests of the attacks", "Whether monotonic and baseline differ, on examples that both can lose something on.",
     (), ("attack_tests",)),
    ("What caused it", "Models where they are equally good, and arms that change one thing at a time.",
     ("quality_curve", "dose_response"), ("quality_curve", "attribution", "mechanism", "order")),
    ("Fairness and training", "Both start from the same pretrained weights (monotonic from the absolute values in its "
     "feed-forward layers) and see the same examples in the same order.",
     ("training",), ("fairness", "constraint")),
    ("Data", "", ("lengths",), ("data", "removed", "texts")),
    ("Costs", "", (), ("costs",)),
)  # fmt: skip


def page(
    results: FinalResults,
    metadata: Mapping[str, Any],
    tables: list[Table],
    figures: Path,
    alternative: dict[str, str],
    examples: Examples,
) -> str:
    """The page. `figures`: directory of the SVG files; `alternative`: their texts; `examples`: attacked examples."""
    by_name = {table.name: table for table in tables}
    sections = [Section("What to do next", steps=next_steps(results, metadata))]
    for title, intro, pictures, names in SECTIONS:
        drawn = [figure(figures / f"{name}.svg", name, alternative[name]) for name in pictures if name in alternative]
        shown = [by_name[name] for name in names if name in by_name]
        if drawn or shown:
            sections.append(Section(title, intro, figures=drawn, tables=shown))
    placed = {name for *_, names in SECTIONS for name in names}
    if further := [table for table in tables if table.name not in placed]:
        sections.append(Section("Further tables", tables=further))
    nothing = "" if examples.printed else "No example could be attacked."
    raised = [f"{doubt.model}: {doubt.message}" for doubt in results.warnings]
    doubted = Section("Doubts raised by the checks", lines=raised or ["none"])
    sections += [
        Section("Attacked examples", nothing, browser=bool(examples.texts), examples=examples.printed),
        Section("Data sets and their licences", lines=_origins(results)),
        doubted,
        Section("Limits", lines=results.limits),
        Section("Files", "Beside this page.", links=_files(results, tables, alternative)),
        _provenance(results, metadata),
    ]
    answer = results.verdict
    return render_page(
        f"mono-s2s, seed {metadata['seed']}",
        [sentence for sentence in (getattr(answer, name) for name in SENTENCES) if sentence],
        [warning for warning in (answer.doubt, *doubts(results)) if warning],
        sections,
        banner=profile_note(metadata),
        doubts=doubted if raised else None,
        examples=examples.data(),
    )


def _files(results: FinalResults, tables: list[Table], figures: Mapping[str, str]) -> dict[str, list[str]]:
    """Every file of the results directory that a reader may want, by what it is for."""
    histories = [f"{arm}_training_history.json" for arm in results.control_training]
    paper = [f"tables/{table.name}.tex" for table in tables if table.one_column]
    return {
        "The answer": ["experiment_summary.txt", FINAL],
        "Every example": [
            "predictions.jsonl",
            "hotflip_records.jsonl",
            "uat_records.jsonl",
            "quality_curve_records.jsonl",
            "learned_triggers.csv",
        ],
        "Parts": [*FILES.values(), *histories, "removed_examples.jsonl"],
        "For a paper": [*paper, "tables/supplement.tex", *(f"figures/{name}.pdf" for name in figures)],
        "Tables": [f"tables/{table.name}.csv" for table in tables],
        "Models": [f"models/{arm}/README.md" for arm in results.trainings],
    }


def figure(path: Path, name: str, text: str) -> Picture:
    """An SVG file for the page, with its alternative text."""
    svg = path.read_text(encoding="utf-8")
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") + len("<svg") :], flags=re.DOTALL)
    width = re.search(r'viewBox="0 0 ([\d.]+)', svg)
    if width is None:
        raise StageError(f"{path} is no figure of this program: it has no viewBox. Run stage 7 again.")
    # Only tags are edited, never the text between them. Several figures on one page need ids of their own.
    svg = re.sub(
        r"^[^>]*>|<[^<>]*>",
        lambda tag: (
            re.sub(r'\b(id="|href="#)', rf"\1{name}-", tag[0])
            .replace("url(#", f"url(#{name}-")
            .replace("#000000", "currentColor")
        ),
        svg,
    )
    return Picture(Markup(svg), text, small=float(width[1]) < NARROW)


def _origins(results: FinalResults) -> list[str]:
    lines = []
    for entry in results.data.sets.values():
        origin = entry.origin
        where = " at ".join(str(origin[key]) for key in ("from", "revision") if origin.get(key))
        inside = f"; in-domain: {', '.join(entry.in_domain)}" if entry.in_domain else ""
        lines.append(f"{entry.title} ({entry.role}), {where}: {entry.licence}. {entry.note}{inside}")
    return lines


def _provenance(results: FinalResults, metadata: Mapping[str, Any]) -> Section:
    rows = [
        (name, str(source.run_id), str(source.config_fingerprint), str(source.code.commit)[:12])
        for name, source in results.sources.items()
    ]
    facts = [
        f"code {metadata['code']['commit']}{' with local changes' if metadata['code']['dirty'] else ''}",
        f"settings {metadata['config_fingerprint']}, profile {metadata['profile']}, run {metadata['run_id']}",
        f"host {metadata['host']}, {metadata['device']}",
        ", ".join(f"{name} {version}" for name, version in metadata["versions"].items()),
        *(f"{model}: weights sha256 {digest}" for model, digest in metadata["checkpoints"].items()),
    ]
    table = Table("sources", "Where each part comes from", ("part", "run", "settings", "code"), rows)
    return Section("Provenance", tables=[table], lines=facts)
