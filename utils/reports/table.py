"""A table of the reports: text, CSV, Markdown, LaTeX (latex.py) and HTML from the same cells; and figures in words."""

from __future__ import annotations

import csv
import io
import re
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from utils.analysis.comparisons import Interval
from utils.analysis.final import FinalResults
from utils.core.text import printable

TITLES = {"cnn_dm": "CNN/DM", "xsum": "XSum", "samsum": "SAMSum"}
NOT_AVAILABLE = "not available"
INDENT = " " * 4


def set_titles(results: FinalResults) -> dict[str, str]:
    """The titles of all test sets of a run by key, also of those that are missing, in their order."""
    titles = {key: printable(entry.title) for key, entry in results.data.sets.items() if entry.role == "test"}
    return titles | {key: TITLES[key] for key in TITLES if key in results.data.missing}


def seed_titles(results: dict[str, Any]) -> dict[str, str]:
    """The titles of all test sets by key, also of those that are missing."""
    titles = {key: printable(title) for key, title in results["titles"].items()}
    return titles | {key: TITLES[key] for key in TITLES if key in results["missing_datasets"]}


@dataclass(frozen=True)
class Table:
    """A table as words: `name` is its file name, `note` what a reader must know, `marked` rows that stand out;
    `one_column`: one of the few that a paper prints in its text, made to fit a column of it.
    """

    name: str
    title: str
    header: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    note: str = ""
    marked: frozenset[int] = frozenset()
    one_column: bool = False

    def __post_init__(self) -> None:
        # Cells hold texts of users and models (titles of data sets, triggers): made safe once, for all formats.
        object.__setattr__(self, "header", tuple(map(_one_line, self.header)))
        object.__setattr__(self, "rows", [tuple(map(_one_line, row)) for row in self.rows])

    def text(self, width: int = 80) -> str:
        """Aligned columns for a terminal. Nothing is cut: where rows are too wide, a second line has the last cells."""
        rows = [tuple("n/a" if cell == NOT_AVAILABLE else cell for cell in row) for row in (self.header, *self.rows)]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        fit = next(kept for kept in range(len(widths), 0, -1) if kept == 1 or _narrowest(widths[:kept]) <= width)
        gap = "  " if sum(widths[:fit]) + 2 * fit <= width else " "
        lines = []
        for row in rows:
            words = [cell.rjust(w) if i else cell.ljust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))]
            lines.append(gap.join(words[:fit]).rstrip())
            rest = " ".join(words[fit:]) if fit < len(row) - 1 else "".join(row[fit:])  # one alone: no column of it
            lines += textwrap.wrap(rest, width, initial_indent=INDENT, subsequent_indent=INDENT, break_long_words=False)
        rule = "-" * min(max(map(len, lines)), width)
        return "\n".join([self.title, rule, *lines])

    def csv(self) -> str:
        out = io.StringIO()
        csv.writer(out, lineterminator="\n").writerows([*map(_inert, row)] for row in (self.header, *self.rows))
        return out.getvalue()

    def markdown(self) -> str:
        """As GitHub and other readers of Markdown show it."""
        aligned = ["---" if text else "---:" for text in self.is_text]
        rows = (self.header, aligned, *self.rows)
        return "".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |\n" for row in rows)

    @property
    def is_text(self) -> list[bool]:
        """Whether each column reads as words, not as figures."""
        return [True, *(_is_words([row[number] for row in self.rows]) for number in range(1, len(self.header)))]

    def row_class(self, number: int) -> str:
        """Marked rows stand out; where the first word of a long table's rows changes, a line sets them apart."""
        first = [row[0].split(" ")[0] for row in self.rows]
        grouped = len(set(first)) <= len(first) / 2
        apart = grouped and number > 0 and first[number - 1] != first[number]
        return " ".join(["marked"] * (number in self.marked) + ["apart"] * apart)


def _one_line(text: str) -> str:
    """A cell as it is shown: on one line, without control characters."""
    return re.sub(r"[\t\r\n]", " ", printable(text))


def _inert(cell: str) -> str:
    """A cell that no spreadsheet runs: an apostrophe marks as text what looks like a formula and is no figure."""
    return f"'{cell}" if re.match(r"[=@]|[+-](?!\d|$)", cell) else cell


def _is_words(column: list[str]) -> bool:
    told = [cell for cell in column if cell not in ("", "-", NOT_AVAILABLE)]
    return not all(cell.lstrip("+-<[ ")[:1].isdigit() for cell in told)


def _narrowest(widths: list[int]) -> int:
    return sum(widths) + len(widths) - 1


def interval(cell: Interval) -> str:
    return f"{cell.mean:.3f} [{cell.lower:.3f}, {cell.upper:.3f}]"


def percent(value: float | None, bounds: Sequence[float] | None = None) -> str:
    """0.25 as 25.0 %, with its interval; "not available" for None."""
    if value is None:
        return NOT_AVAILABLE
    return f"{100 * value:.1f} %" + (f" [{100 * bounds[0]:.0f}, {100 * bounds[1]:.0f}]" if bounds else "")


def signed(value: float | None, bounds: Sequence[float] | None = None, *, digits: int = 3) -> str:
    """A change with its sign and, where there is one, its interval; a rounded zero is +0.000, not -0.000."""
    if value is None:
        return NOT_AVAILABLE
    numbers = [f"{round(number, digits) + 0.0:+.{digits}f}" for number in (value, *(bounds or ()))]
    return numbers[0] + (f" [{numbers[1]}, {numbers[2]}]" if bounds else "")


def p_value(value: float | None) -> str:
    """0.0123 as 0.012; below a thousandth only that."""
    return NOT_AVAILABLE if value is None else "< 0.001" if value < 0.001 else f"{value:.3f}"


def plain(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
