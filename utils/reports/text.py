"""experiment_summary.txt: verdict, tables and doubts in plain text of 80 columns."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from typing import Any

from utils.analysis.final import FinalResults
from utils.core.results import profile_note
from utils.reports.data_tables import doubts
from utils.reports.table import Table

WIDTH = 80


def summary(results: FinalResults, metadata: Mapping[str, Any], tables: list[Table]) -> str:
    """The whole file as one string."""
    note = profile_note(metadata)
    parts = [f"mono-s2s, seed {metadata['seed']}, {metadata['timestamp']}"]
    if note:
        parts.append(_wrap(f"*** {note} ***"))
    answer = results.verdict
    parts += [_wrap(getattr(answer, name)) for name in ("attack", "triggers", "cost", "doubt") if getattr(answer, name)]
    parts += [_wrap(doubt) for doubt in doubts(results)]
    for table in tables:
        parts.append(table.text(WIDTH) + (f"\n{_wrap(table.note)}" if table.note else ""))
    if results.warnings:
        raised = [_wrap(f"- {doubt.model}: {doubt.message}", "  ") for doubt in results.warnings]
        parts.append("Doubts raised by the checks\n" + "\n".join(raised))
    parts.append("Limits\n" + "\n".join(_wrap(f"- {limit}", "  ") for limit in results.limits))
    code = metadata["code"]
    parts.append(
        _wrap(
            f"code {code['commit'][:12]}{' (changed)' if code['dirty'] else ''}, settings "
            f"{metadata['config_fingerprint']}, run {metadata['run_id']}, host {metadata['host']}, {metadata['device']}"
        )
    )
    return "\n\n".join(parts) + "\n"


def _wrap(text: str, indent: str = "") -> str:
    return textwrap.fill(text, WIDTH, subsequent_indent=indent, break_long_words=False)
