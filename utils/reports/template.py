"""The one template of every page, report.html.jinja: autoescaped, so no text of data or models is ever markup."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from utils.core.text import printable
from utils.reports.examples import AttackedExample
from utils.reports.table import Table

CSS = Path(__file__).with_name("report.css").read_text(encoding="utf-8")


@dataclass(frozen=True)
class Picture:
    """A figure of a page. `svg`: what follows `<svg` in its file; `small`: needs no scrolling on a phone."""

    svg: Markup
    text: str
    small: bool


@dataclass(frozen=True)
class Section:
    """A section of a page: a paragraph, figures, tables, attacked examples and a list, in this order."""

    title: str
    intro: str = ""
    figures: Sequence[Picture] = ()
    tables: Sequence[Table] = ()
    examples: Sequence[AttackedExample] = ()
    lines: Sequence[str] = ()

    @property
    def anchor(self) -> str:
        return self.title.lower().replace(" ", "-")


def render_page(
    title: str, verdict: Sequence[str], warnings: Sequence[str], sections: Sequence[Section], banner: str = ""
) -> str:
    """A whole page. `banner`: what a reader must know before the verdict."""
    return (
        _environment()
        .get_template("report.html.jinja")
        .render(title=title, banner=banner, verdict=verdict, warnings=warnings, sections=sections, css=Markup(CSS))
    )


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
