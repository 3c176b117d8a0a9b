"""experiment_summary.txt: the answer, what speaks against it, and the main tables; two screens of plain text."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from utils.analysis.final import FinalResults
from utils.core.results import profile_note
from utils.reports.data_tables import doubts
from utils.reports.table import Table

WIDTH = 80
LINES = 149  # of the whole file
SENTENCES = ("attack", "cost", "matched", "attribution", "triggers")  # of the verdict, in their order
SHOWN = ("main", "attack", "rouge_comparison", "attribution", "triggers", "hotflip_controls")  # while there is room
FIRST = 5  # doubts that are told; the report has all of them


def summary(results: FinalResults, metadata: Mapping[str, Any], tables: list[Table]) -> str:
    """The whole file as one string."""
    note = profile_note(metadata)
    code, answer = metadata["code"], results.verdict
    sentences = [getattr(answer, name) for name in SENTENCES]
    head = [f"mono-s2s, seed {metadata['seed']}, {metadata['timestamp']}", f"*** {note} ***" if note else ""]
    head += [*sentences, answer.doubt, *doubts(results)]
    tail = [listed("Doubts raised by the checks", [f"{doubt.model}: {doubt.message}" for doubt in results.warnings])]
    tail += [
        listed("Limits", results.limits),
        _wrap(
            f"code {code['commit'][:12]}{' (changed)' if code['dirty'] else ''}, settings "
            f"{metadata['config_fingerprint']}, run {metadata['run_id']}, host {metadata['host']}, {metadata['device']}"
        ),
    ]
    by_name = {table.name: table for table in tables}
    chosen = [by_name[name] for name in SHOWN if name in by_name]
    return packed(head, chosen, tail, number=len(tables))


def packed(head: Sequence[str], tables: Sequence[Table], tail: Sequence[str], number: int) -> str:
    """Sentences, the tables that fit (a line a row, while there is room), where all `number` are, and the tail."""
    parts = [_wrap(sentence) for sentence in head if sentence]
    used = 0
    for table in tables:
        text = table.text(WIDTH)
        shown = text + (f"\n{_wrap(table.note)}" if table.note else "")
        one_line_a_row = text.count("\n") == 2 + len(table.rows)  # title, rule, header
        if one_line_a_row and _length([*parts, shown, *tail]) <= LINES - 3:
            parts.append(shown)
            used += 1
    parts.append(_wrap(f"{number - used} more tables are in report.html and in tables/, as CSV and LaTeX."))
    return "\n\n".join(part for part in [*parts, *tail] if part) + "\n"


def _length(parts: Sequence[str]) -> int:
    return len("\n\n".join(part for part in parts if part).splitlines())


def listed(title: str, lines: Sequence[str]) -> str:
    """A list with a title; the first of many lines."""
    if not lines:
        return ""
    shown = [_wrap(f"- {line}", "  ") for line in lines[:FIRST]]
    rest = [f"- and {len(lines) - FIRST} more, in report.html"] if len(lines) > FIRST else []
    return "\n".join([title, *shown, *rest])


def _wrap(text: str, indent: str = "") -> str:
    return textwrap.fill(text, WIDTH, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
