"""Verification of a seed's results directory: its numbers, and what the report makes of them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from utils.analysis.aggregate import findings, read_sections
from utils.analysis.final import FinalResults
from utils.analysis.verification import FINAL, Check, checks_of_numbers, text_of, unequal
from utils.core.codec import RecordError, from_json, to_json
from utils.core.provenance import code_revision
from utils.core.results import read_result
from utils.reports.files import text_files
from utils.reports.tables import all_tables
from utils.reports.template import escaped, render_table
from utils.reports.verdict import final_results


def verify(directory: Path) -> Iterator[Check]:
    """Every check of a results directory, from data to page; InputError if a result file is missing or damaged."""
    yield from checks_of_numbers(directory)
    final = read_result(directory / FINAL)
    yield Check(f"verdict in {FINAL} from its parts", list(_verdict(directory, final["results"])))
    yield Check(f"tables, summary, cards and report from {FINAL}", list(_written(directory, final)))


def _verdict(directory: Path, written: dict[str, Any]) -> Iterator[str]:
    parts = read_sections(directory)
    try:
        made = to_json(final_results(findings(parts, written["quality_margin"])))
    except RecordError as error:
        yield str(error)
        return
    for name in ("verdict", "limits"):
        yield from unequal(made[name], written[name], name)


def _written(directory: Path, final: dict[str, Any]) -> Iterator[str]:
    """Files of the report that are not what the numbers in final_results.json give."""
    results = from_json(FinalResults, final["results"], FINAL)
    tables = all_tables(results)
    made, now = final["_metadata"]["code"]["commit"], code_revision()["commit"]
    note = "" if made == now else f" (written by code revision {made[:10]}, this is {now[:10]}: check with that one)"
    for name, text in text_files(results, final["_metadata"], tables).items():
        if text_of(directory / name) != text:
            yield f"{name} differs{note}"
    page = text_of(directory / "report.html")
    shown = {table.name: render_table(table) for table in tables}
    shown |= {f"verdict: {name}": escaped(getattr(results.verdict, name)) for name in ("attack", "triggers", "cost")}
    yield from (f"report.html does not show {name}{note}" for name, part in shown.items() if part not in page)
