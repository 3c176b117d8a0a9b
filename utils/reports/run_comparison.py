"""Two runs side by side as words and tables."""

from __future__ import annotations

import textwrap
from collections.abc import Callable

from utils.analysis.comparisons import SuccessTest
from utils.analysis.run_comparison import Row, RunComparison
from utils.reports.latex import long_table
from utils.reports.table import NOT_AVAILABLE, TITLES, Table, p_value, percent, signed

FORMATS: dict[str, Callable[[Table], str]] = {
    "text": lambda table: table.text() + f"\n{textwrap.fill(table.note, 80)}",
    "markdown": lambda table: f"**{table.title}**\n\n{table.markdown()}\n{table.note}",
    "latex": long_table,
}


def comparison_text(comparison: RunComparison, style: str) -> str:
    """The whole comparison in one of FORMATS."""
    names = [f"A: {comparison.names[0]}", f"B: {comparison.names[1]}"]
    lines = comparison.differences or ["nothing"]
    head = [*names, "", "What differs in how they were made:", *(f"- {line}" for line in lines)]
    mark = "% " if style == "latex" else ""
    parts = ["\n".join(mark + line for line in head)]
    return "\n\n".join([*parts, *(FORMATS[style](table) for table in tables(comparison))]) + "\n"


def tables(comparison: RunComparison) -> list[Table]:
    """Quality, then attacks."""
    level = f"{100 * comparison.confidence:g} %"
    header = ("A", "B", f"B - A [{level}]", "p", "p (Holm)", "n: both, A, B")
    note = (
        "A and B: over each run's own examples. B - A: over the examples that both have, with the same reference "
        "(n: how many both have, A, and B). Holm over all rows of both tables."
    )
    quality = [row for row in comparison.rows if row.figure == "ROUGE-L"]
    attacks = [row for row in comparison.rows if row.figure != "ROUGE-L"]
    return [
        Table("runs_quality", "ROUGE-L", ("data set, model", *header), [_cells(row) for row in quality], note),
        Table("runs_attacks", "Attacks", ("attack, model, figure", *header), [_cells(row) for row in attacks], note),
    ]


def _cells(row: Row) -> tuple[str, ...]:
    place, model = row.place
    name = f"{TITLES.get(place, place)} {model}" + ("" if row.figure == "ROUGE-L" else f" {row.figure}")
    shown = percent if row.figure == "success" else _plain
    paired = f"{row.common}, {row.sizes[0]}, {row.sizes[1]}"
    if row.test is None:
        return (name, shown(row.a), shown(row.b), NOT_AVAILABLE, "-", "-", paired)
    test, scale = row.test, 100 if isinstance(row.test, SuccessTest) else 1
    bounds = [scale * test.lower, scale * test.upper]
    change = signed(scale * test.difference, bounds, digits=1 if scale == 100 else 3)
    holm = "-" if test.p_value_holm is None else p_value(test.p_value_holm)
    return (name, shown(row.a), shown(row.b), change, p_value(test.p_value), holm, paired)


def _plain(value: float | None) -> str:
    return NOT_AVAILABLE if value is None else f"{value:.3f}"
