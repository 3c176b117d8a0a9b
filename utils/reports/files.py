"""The text files of a seed's report, each a function of final_results.json alone: what is written can be checked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from utils.analysis.final import FinalResults
from utils.core.names import TRAINED_KEYS
from utils.core.results import profile_note
from utils.core.text import printable
from utils.reports.model_card import model_card
from utils.reports.table import Table
from utils.reports.text import summary


def text_files(results: FinalResults, metadata: Mapping[str, Any], tables: list[Table]) -> dict[str, str]:
    """Path below the results directory -> content: summary, every table as CSV and LaTeX, the models' cards."""
    note = profile_note(metadata)
    files = {"experiment_summary.txt": summary(results, metadata, tables)}
    for table in tables:
        files[f"tables/{table.name}.csv"] = table.csv()
        files[f"tables/{table.name}.tex"] = table.tex(f"{note}." if note else "")
    files |= {f"models/{arm}/README.md": model_card(arm, results, metadata) for arm in TRAINED_KEYS}
    return {name: printable(content) for name, content in files.items()}
