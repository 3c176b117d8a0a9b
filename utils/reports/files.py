"""The text files of a seed's report, each a function of final_results.json alone: what is written can be checked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from utils.analysis.final import FinalResults
from utils.core.results import profile_note
from utils.core.text import printable
from utils.reports.latex import supplement, tex
from utils.reports.model_card import model_card
from utils.reports.table import Table
from utils.reports.text import summary


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
