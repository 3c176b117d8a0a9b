"""A table of the reports: text, CSV, LaTeX and HTML from the same cells. And how figures are put in words."""

from __future__ import annotations

import csv
import html
import io
from dataclasses import dataclass
from typing import Any

MODELS = ("standard", "baseline", "monotonic")
TITLES = {"cnn_dm": "CNN/DM", "xsum": "XSum", "samsum": "SAMSum"}
NOT_AVAILABLE = "not available"


@dataclass(frozen=True)
class Table:
    """A table as words: `name` is its file name, `note` what a reader must know, `marked` rows that stand out."""

    name: str
    title: str
    header: tuple[str, ...]
    rows: list[tuple[str, ...]]
    note: str = ""
    marked: frozenset[int] = frozenset()

    def text(self, width: int = 80) -> str:
        """Aligned columns for a terminal. Cells are never cut: where a row is too wide, its last one gets a line."""
        rows = [self.header, *self.rows]
        own_line = _narrowest([max(map(len, column)) for column in zip(*rows, strict=True)]) > width
        shown = [row[:-1] for row in rows] if own_line else rows
        widths = [max(map(len, column)) for column in zip(*shown, strict=True)]
        gap = "  " if sum(widths) + 2 * len(widths) <= width else " "
        lines = []
        for row, whole in zip(shown, rows, strict=True):
            cells = [
                cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
            ]
            lines.append(gap.join(cells).rstrip() + (f"\n    {whole[-1]}" if own_line else ""))
        rule = "-" * min(max(len(line.split("\n")[0]) for line in lines), width)
        return "\n".join([self.title, rule, *lines])

    def csv(self) -> str:
        out = io.StringIO()
        csv.writer(out, lineterminator="\n").writerows([self.header, *self.rows])
        return out.getvalue()

    def tex(self) -> str:
        """A booktabs table."""
        columns = "l" + "r" * (len(self.header) - 1)
        body = [" & ".join(map(_tex, row)) + r" \\" for row in self.rows]
        return "\n".join(
            [
                r"\begin{table}",
                r"\centering",
                rf"\caption{{{_tex(' '.join((self.title + '.', self.note)).strip())}}}",
                rf"\begin{{tabular}}{{{columns}}}",
                r"\toprule",
                " & ".join(map(_tex, self.header)) + r" \\",
                r"\midrule",
                *body,
                r"\bottomrule",
                r"\end{tabular}",
                r"\end{table}",
                "",
            ]
        )

    def html(self) -> str:
        words = [number == 0 or _is_words(column) for number, column in enumerate(zip(*self.rows, strict=True))]

        def cells(row: tuple[str, ...], tag: str) -> str:
            return "".join(
                f"<{tag}{' class=words' if left else ''}>{html.escape(cell)}</{tag[:2]}>"
                for cell, left in zip(row[1:], words[1:], strict=True)
            )

        head = f'<th scope="col" class="words">{html.escape(self.header[0])}</th>' + cells(
            self.header, 'th scope="col"'
        )
        body = "".join(
            f'<tr{" class=marked" * (number in self.marked)}><th scope="row">{html.escape(row[0])}</th>'
            f"{cells(row, 'td')}</tr>"
            for number, row in enumerate(self.rows)
        )
        note = f"<p class='note'>{html.escape(self.note)}</p>" if self.note else ""
        return (
            f'<div class="scroll"><table><caption>{html.escape(self.title)}</caption>'
            f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>{note}"
        )


def _is_words(column: tuple[str, ...]) -> bool:
    """Whether a column reads as words, not as figures."""
    told = [cell for cell in column if cell not in ("", "-", NOT_AVAILABLE)]
    return not all(cell.lstrip("+-")[:1].isdigit() for cell in told)


def _narrowest(widths: list[int]) -> int:
    return sum(widths) + len(widths) - 1


def interval(cell: dict[str, float]) -> str:
    return f"{cell['mean']:.3f} [{cell['lower']:.3f}, {cell['upper']:.3f}]"


def percent(value: float | None, bounds: list[float] | None = None) -> str:
    """0.25 as 25.0 %, with its interval; "not available" for None."""
    if value is None:
        return NOT_AVAILABLE
    return f"{100 * value:.1f} %" + (f" [{100 * bounds[0]:.0f}, {100 * bounds[1]:.0f}]" if bounds else "")


def number(value: float | None) -> str:
    return NOT_AVAILABLE if value is None else f"{value:+.3f}"


def plain(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _tex(text: str) -> str:
    for sign in "&%$#_{}":
        text = text.replace(sign, "\\" + sign)
    return text.replace("~", r"\textasciitilde{}").replace("<", r"\textless{}").replace(">", r"\textgreater{}")
