"""Tables as LaTeX that compiles with plain pdflatex, whatever a trigger or the title of a data set holds.

Everything is pure ASCII: letters with accents become accent commands, signs that pdflatex's standard fonts lack their
code point. Needed: booktabs, and array and longtable (parts of every LaTeX) for the supplement.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Sequence

from utils.reports.table import NOT_AVAILABLE, Table

_ESCAPED = {sign: "\\" + sign for sign in "&%$#_{}"} | {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"{\ttfamily\char34}",  # \textquotedbl is not in the standard font encoding, OT1
    "`": r"{\ttfamily\char96}",
    # Typographic signs, German and French quotation marks among them, by what OT1 has.
    "\u00a0": "~", "\u2009": r"\,", "\u202f": r"\,", "\u2013": "--", "\u2014": "---", "\u2212": "$-$",
    "\u2026": r"\ldots{}", "\u2018": "`", "\u2019": "'", "\u201c": "``", "\u201d": "''", "\u201a": ",", "\u201e": ",,",
    "\u00ab": r"$\ll$", "\u00bb": r"$\gg$", "\u00df": r"\ss{}", "\u00e6": r"\ae{}", "\u00c6": r"\AE{}",
    "\u00f8": r"\o{}", "\u00d8": r"\O{}", "\u0153": r"\oe{}", "\u0152": r"\OE{}", "\u0142": r"\l{}", "\u0141": r"\L{}",
    "\u0131": r"\i{}", "\u00a7": r"\S{}", "\u00a3": r"\pounds{}", "\u00a9": r"\copyright{}", "\u00d7": r"$\times$",
    "\u00b7": r"$\cdot$", "\u2022": r"$\bullet$", "\u2192": r"$\rightarrow$", "\u00b1": r"$\pm$",
    "\u00b0": r"$^\circ$", "\u2265": r"$\ge$", "\u2264": r"$\le$",
}  # fmt: skip
# Combining accents by code point, with their commands; comma below (Romanian) is printed as the cedilla it grew from.
_ACCENTS = {
    0x300: "`", 0x301: "'", 0x302: "^", 0x303: "~", 0x304: "=", 0x306: "u ", 0x307: ".", 0x308: '"', 0x30A: "r ",
    0x30B: "H ", 0x30C: "v ", 0x326: "c ", 0x327: "c ",
}  # fmt: skip
LONGEST = 16  # letters of a word that gets no places to break it; LaTeX hyphenates those of a text itself
NARROW = 7  # the same in the head of a narrow column
SUPPLEMENT_WIDTH = 440.0  # points: 455 lie between margins of 2.5 cm on A4, and words may be wider than average
SIGN = {"footnotesize": 4.3, "scriptsize": 3.8, "tiny": 3.1}  # points of a sign of average width


def escape(text: str, *, numbers: bool = False, longest: int = LONGEST) -> str:
    """A text as LaTeX. `numbers`: a hyphen before a digit is a minus; words above `longest` letters may be broken."""
    pieces = [_word(word, longest) for word in re.split(r"(\s+)", text)]
    escaped = "".join(pieces)
    if numbers:
        escaped = re.sub(r"(?<![\w.)])-(?=\d)", "$-$", escaped)
    # Behind the \\ of the row before, a bracket would be read as its argument, and so would an asterisk.
    return "{}" * escaped.startswith(("[", "*")) + escaped


def _word(word: str, longest: int) -> str:
    """One word; a long one gets places where it may be broken, and two hyphens or commas do not melt into one sign."""
    breaks = len(word) > longest
    out: list[str] = []
    for number, sign in enumerate(word):
        sign_out = _sign(sign)
        if out and word[number - 1] == sign and sign in "-,'?!":
            out.append("{}")
        if breaks and number and number % longest == 0:
            out.append(r"\-" if sign.isalpha() and word[number - 1].isalpha() else r"\allowbreak{}")
        out.append(sign_out)
    return "".join(out)


def _sign(sign: str) -> str:
    if sign in _ESCAPED:
        return _ESCAPED[sign]
    if sign.isascii():
        return sign
    decomposed = unicodedata.normalize("NFD", sign)
    base, commands = decomposed[0], [_ACCENTS.get(ord(accent)) for accent in decomposed[1:]]
    if base.isascii() and base.isalpha() and len(commands) == 1 and commands[0]:
        return f"\\{commands[0]}{{{base}}}"
    return rf"\allowbreak{{}}\texttt{{U+{ord(sign):04X}}}"


def tex(table: Table, warning: str = "") -> str:
    """A table on its own; `warning`: such as that of a demo run, for the table is pasted into a paper."""
    return one_column(table, warning) if table.one_column else long_table(table, warning)


def one_column(table: Table, warning: str = "") -> str:
    """A table that fits one column of a two-column paper: intervals below their figures, the note below the table."""
    lines = []
    for row in table.rows:
        parts = [("n/a" if cell == NOT_AVAILABLE else cell).partition(" [") for cell in row]
        lines.append(" & ".join(escape(part[0], numbers=number > 0) for number, part in enumerate(parts)) + r" \\")
        if any(part[2] for part in parts):
            small = [rf"{{\scriptsize [{escape(part[2], numbers=True)}}}" if part[2] else "" for part in parts]
            lines.append(" & ".join(small) + r" \\")
    heads = [escape(table.header[0]), *(_head(cell, 45) for cell in table.header[1:])]
    return "\n".join(
        [
            r"\begin{table}",
            r"\centering\footnotesize\setlength{\tabcolsep}{1pt}",
            rf"\caption{{{escape(table.title)}.}}",
            rf"\label{{tab:{table.name}}}",
            rf"\begin{{tabular*}}{{\columnwidth}}{{@{{\extracolsep{{\fill}}}}l{'r' * (len(heads) - 1)}@{{}}}}",
            r"\toprule",
            " & ".join(heads) + r" \\",
            r"\midrule",
            *lines,
            r"\bottomrule",
            r"\end{tabular*}",
            rf"\par\smallskip\parbox{{\columnwidth}}{{\footnotesize\raggedright {_note(table, warning)}}}",
            r"\end{table}",
            "",
        ]
    )


def _note(table: Table, warning: str) -> str:
    return (rf"\textbf{{{escape(warning)}}} " if warning else "") + escape(table.note, numbers=True)


def long_table(table: Table, warning: str = "") -> str:
    """A table as wide as a page and as long as it needs to be, its note below."""
    rows = [["n/a" if cell == NOT_AVAILABLE else cell for cell in row] for row in (table.header, *table.rows)]
    size, columns, heads = _columns(rows, table.is_text)
    numbers = [False, *(not text for text in table.is_text[1:])]
    body = [
        " & ".join(escape(cell, numbers=number) for cell, number in zip(row, numbers, strict=True)) + r" \\"
        for row in rows[1:]
    ]
    head = [r"\toprule", " & ".join(heads) + r" \\", r"\midrule"]
    return "\n".join(
        [
            rf"\begingroup\{size}\setlength{{\tabcolsep}}{{3pt}}\setlength{{\LTpost}}{{2pt}}",
            rf"\begin{{longtable}}{{{columns}}}",
            rf"\caption{{{escape(table.title)}.}}\label{{tab:{table.name}}}\\*",
            *head,
            r"\endfirsthead",
            *head,
            r"\endhead",
            r"\bottomrule",
            r"\endlastfoot",
            *body,
            r"\end{longtable}",
            *([rf"\noindent {{\raggedright {note}\par}}\bigskip"] if (note := _note(table, warning)) else []),
            r"\endgroup",
            "",
        ]
    )


def _head(cell: str, points: float) -> str:
    """The head of a column of figures, broken over lines where the column is narrow."""
    return rf"\parbox[b]{{{points:.0f}pt}}{{\raggedleft\hspace{{0pt}}{escape(cell, longest=NARROW)}}}"


def _columns(rows: Sequence[Sequence[str]], is_text: Sequence[bool]) -> tuple[str, str, list[str]]:
    """The largest font that fits the page, the columns, and their heads: long texts are broken over lines."""
    head, *body = rows
    bodies = [max(map(len, column), default=0) for column in (zip(*body, strict=True) if body else [()] * len(head))]
    parts = [max(map(_width, cell.split()), default=0) for cell in head]
    least = [len(cell) if text else part for cell, part, text in zip(head, parts, is_text, strict=True)]
    lengths = [max(both) for both in zip(bodies, least, strict=True)]
    wide = [text and length > 24 for text, length in zip(is_text, lengths, strict=True)]
    fixed = sum(length for length, is_wide in zip(lengths, wide, strict=True) if not is_wide)
    rooms = {size: SUPPLEMENT_WIDTH - fixed * sign - 6 * len(head) for size, sign in SIGN.items()}
    size = next((size for size, room in rooms.items() if room >= 60 * sum(wide)), "tiny")
    share = max(rooms[size] / max(sum(wide), 1), 60.0)
    kinds, heads = [], []
    for cell, is_wide, text, length in zip(head, wide, is_text, lengths, strict=True):
        paragraph = rf">{{\raggedright\arraybackslash\hspace{{0pt}}}}p{{{min(share, 4.4 * length):.0f}pt}}"
        kinds.append(paragraph if is_wide else "l" if text else "r")
        heads.append(escape(cell) if text or len(cell) <= length else _head(cell, length * SIGN[size]))
    return size, "".join(kinds), heads


def _width(word: str) -> int:
    """The width of a word in a head, in signs of average width: capitals are half as wide again."""
    return math.ceil(len(word) + sum(map(str.isupper, word)) / 2)


def supplement(tables: Sequence[Table], title: str, warning: str = "") -> str:
    """All tables as one document, as it is: `pdflatex supplement.tex`, or its body pasted into a longer one."""
    return "\n".join(
        [
            "% pdflatex, twice: column widths are settled in the second run",
            r"\documentclass[10pt,a4paper]{article}",
            r"\usepackage[margin=2.5cm]{geometry}",
            r"\usepackage{array,booktabs,longtable}",
            r"\begin{document}",
            rf"\section*{{{escape(title)}}}",
            *([rf"\textbf{{{escape(warning)}}}", ""] if warning else []),
            *(long_table(table) for table in tables),
            r"\end{document}",
            "",
        ]
    )
