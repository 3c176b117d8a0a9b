"""The files of a seed's report: stage 7 writes them, verification makes them again, so what is added is verified."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from utils.analysis.final import FinalResults
from utils.core.files import write_text
from utils.core.names import BASELINE
from utils.core.results import profile_note
from utils.core.text import printable
from utils.reports.examples import attacked_examples
from utils.reports.figures import draw_all
from utils.reports.html import page
from utils.reports.latex import supplement, tex
from utils.reports.model_card import model_card
from utils.reports.table import Table
from utils.reports.tables import all_tables
from utils.reports.text import summary

PAGE = "report.html"


def write_report(results: FinalResults, metadata: Mapping[str, Any], source: Path, target: Path) -> None:
    """Write everything that a reader sees into `target`.

    source: the results directory whose records and exported tokenizer the page quotes; the same as `target` in stage 7.
    metadata: that of final_results.json; nothing that is only known later (`seconds`, `files`) may be shown.
    """
    tables = all_tables(results)
    for name, text in text_files(results, metadata, tables).items():
        write_text(target / name, text)
    alternative = draw_all(results, target / "figures")
    tokenizer = source / "models" / BASELINE / "tokenizer.json"  # of all models; beside the records wherever they go
    examples = attacked_examples(source, results, metadata["settings"]["TASK_PREFIX"], tokenizer)
    write_text(target / PAGE, page(results, metadata, tables, target / "figures", alternative, examples))


def text_files(results: FinalResults, metadata: Mapping[str, Any], tables: list[Table]) -> dict[str, str]:
    """Path below the results directory -> content: summary, tables as CSV and LaTeX, the models' cards.

    The tables of a paper's text are LaTeX files of their own, all others one supplement.
    """
    note = profile_note(metadata)
    warning = f"{note}." if note else ""
    long = [table for table in tables if not table.one_column]
    files = {"experiment_summary.txt": summary(results, metadata, tables)}
    files["tables/supplement.tex"] = supplement(long, f"mono-s2s, seed {metadata['seed']}: supplement", warning)
    for table in tables:
        files[f"tables/{table.name}.csv"] = table.csv()
        if table.one_column:
            files[f"tables/{table.name}.tex"] = tex(table, warning)
    files |= {f"models/{arm}/README.md": model_card(arm, results, metadata) for arm in results.trainings}
    return {name: printable(content) for name, content in files.items()}
