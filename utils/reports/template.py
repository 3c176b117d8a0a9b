"""The one template of every page, report.html.jinja: autoescaped, so no text of data or models is ever markup."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from utils.core.text import printable
from utils.reports.examples import AttackedExample
from utils.reports.latex import tex
from utils.reports.next_steps import Step
from utils.reports.table import Table

CSS = Path(__file__).with_name("report.css").read_text(encoding="utf-8")
SCRIPT = Path(__file__).with_name("report.js").read_text(encoding="utf-8")


@dataclass(frozen=True)
class Picture:
    """A figure of a page. `svg`: what follows `<svg` in its file; `small`: needs no scrolling on a phone."""

    svg: Markup
    text: str
    small: bool


@dataclass(frozen=True)
class Section:
    """A section of a page: a paragraph, figures, tables, attacked examples, steps, links and a list, in this order.

    `browser`: the place of the browser of all attacked examples; `links`: paths of files by the name of their group.
    """

    title: str
    intro: str = ""
    figures: Sequence[Picture] = ()
    tables: Sequence[Table] = ()
    browser: bool = False
    examples: Sequence[AttackedExample] = ()
    steps: Sequence[Step] = ()
    links: Mapping[str, Sequence[str]] = field(default_factory=dict)
    lines: Sequence[str] = ()

    @property
    def anchor(self) -> str:
        return self.title.lower().replace(" ", "-")


def render_page(
    title: str,
    verdict: Sequence[str],
    warnings: Sequence[str],
    sections: Sequence[Section],
    *,
    banner: str = "",
    doubts: Section | None = None,
    examples: Mapping[str, Any] | None = None,
) -> str:
    """A whole page.

    `banner`: what a reader must know before the verdict; `doubts`: the section that the top links to; `examples`: data
    for the browser of attacked examples.
    """
    copies = {
        table.name: {"Markdown": table.markdown(), "CSV": table.csv(), "LaTeX": tex(table, banner and f"{banner}.")}
        for section in sections
        for table in section.tables
    }
    digest = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
    return (
        _environment()
        .get_template("report.html.jinja")
        .render(
            title=title,
            banner=banner,
            verdict=verdict,
            warnings=warnings,
            doubts=doubts,
            sections=sections,
            css=Markup(CSS),
            script=Markup(SCRIPT),
            script_hash=Markup(f"sha256-{digest}"),
            copies=_inline_json(copies),
            data=_inline_json(examples) if examples else "",
        )
    )


def _inline_json(value: Any) -> Markup:
    """JSON that can stand in a script element: nothing in it ends the element."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return Markup(printable(text).replace("<", "\\u003c"))


def render_table(table: Table) -> str:
    """Title, table and note. The title is no caption: it would scroll away with a wide table on a phone."""
    macros: Any = _environment().get_template("pieces.html.jinja").module
    return str(macros.table(table))


def escaped(text: str) -> str:
    """A text as every page has it."""
    return str(escape(printable(text)))


@cache
def _environment() -> Environment:
    return Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,  # a misspelt name is an error, not an empty place on the page
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        finalize=_finalize,
    )


def _finalize(value: Any) -> Any:
    """What every `{{ value }}` passes before it is escaped; markup was made here and is left alone."""
    return value if isinstance(value, Markup) or not isinstance(value, str) else printable(value)
