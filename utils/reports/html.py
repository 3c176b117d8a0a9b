"""report.html: one page that needs nothing else, readable on paper, on a phone, in light and dark."""

from __future__ import annotations

import html
import re
from pathlib import Path
from typing import Any

from utils.reports.tables import Table
from utils.results import profile_note

CSS = """
:root { color-scheme: light dark; --ink: #1a1a1a; --paper: #fff; --soft: #f3f4f6; --line: #c9ccd1; --warn: #8a3b00; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e8e8e8; --paper: #16181b; --soft: #22262b; --line: #4a4f57; --warn: #ffb27a; } }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); margin: auto;
  max-width: 60rem; padding: 1rem; }
h1 { font-size: 1.5rem } h2 { font-size: 1.2rem; margin-top: 2rem; border-bottom: 1px solid var(--line) }
.verdict { font-size: 1.1rem; background: var(--soft); padding: .8rem 1rem; border-left: 4px solid var(--ink) }
.warn { color: var(--warn); font-weight: 600 } .note { font-size: .9rem }
.scroll { overflow-x: auto } table { border-collapse: collapse; margin: .8rem 0; font-size: .9rem;
  font-variant-numeric: tabular-nums }
caption { text-align: left; font-weight: 600 } th, td { padding: .2rem .6rem; border-bottom: 1px solid var(--line);
  text-align: right; white-space: nowrap } th:first-child, td:last-child { text-align: left }
th[scope=row] { font-weight: 400 }
figure { margin: 1rem 0; background: #fff; color: #1a1a1a; padding: .5rem; overflow-x: auto }
figure svg { max-width: 100%; height: auto } mark { background: #ffd54d; color: #1a1a1a; padding: 0 .15em }
blockquote { margin: .4rem 0; padding: .3rem .8rem; border-left: 3px solid var(--line) }
@media print { body { max-width: none } figure, table { break-inside: avoid } }
"""
SECTIONS = (
    ("Quality", ("rouge", "trade_off"), ("rouge", "rouge_comparison")),
    ("HotFlip", ("hotflip_curves",), ("hotflip", "hotflip_controls", "hotflip_transfer")),
    ("Universal triggers", (), ("triggers", "trigger_transfer")),
    ("Fairness and training", ("training",), ("fairness",)),
    ("Data", (), ("data",)),
    ("Costs", (), ("costs",)),
)


def page(
    results: dict[str, Any],
    metadata: dict[str, Any],
    tables: list[Table],
    figures: Path,
    alternative: dict[str, str],
    examples: list[dict[str, Any]],
) -> str:
    """The page. `figures`: directory of the SVG files; `alternative`: their texts; `examples`: attacked examples."""
    by_name = {table.name: table for table in tables}
    body = [f"<h1>mono-s2s, seed {metadata['seed']}</h1>"]
    note = profile_note(metadata)
    if note:
        body.append(f"<p class=warn>{html.escape(note)}</p>")
    answer = results["verdict"]
    body.append(
        "<div class=verdict>" + "".join(f"<p>{html.escape(answer[n])}</p>" for n in ("attack", "cost")) + "</div>"
    )
    if answer["doubt"]:
        body.append(f"<p class=warn>{html.escape(answer['doubt'])}</p>")
    for key, reason in results["missing_datasets"].items():
        body.append(f"<p class=warn>Missing data set: {html.escape(key)} ({html.escape(str(reason))}).</p>")
    for title, pictures, names in SECTIONS:
        body.append(f"<h2>{title}</h2>")
        body += [_figure(figures / f"{name}.svg", name, alternative[name]) for name in pictures]
        body += [by_name[name].html() for name in names]
    body.append("<h2>Attacked examples</h2>" + "".join(map(_example, examples)))
    doubts = [f"{flag['model']}: {flag['message']}" for flag in results["flags"]] or ["none"]
    body.append("<h2>Doubts raised by the checks</h2>" + _list(doubts))
    body.append("<h2>Limits</h2>" + _list(results["limits"]))
    body.append(_provenance(results, metadata))
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>mono-s2s, seed {metadata['seed']}</title><style>{CSS}</style></head>"
        f"<body><main>{''.join(body)}</main></body></html>\n"
    )


def _figure(path: Path, name: str, text: str) -> str:
    svg = path.read_text(encoding="utf-8")
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r'\b(id|href|xlink:href)="(#?)', rf'\1="\2{name}-', svg)  # several figures on one page: unique ids
    svg = svg.replace("url(#", f"url(#{name}-").replace("<svg", f'<svg role="img" aria-label="{html.escape(text)}"', 1)
    return f"<figure>{svg}<figcaption>{html.escape(text)}</figcaption></figure>"


def _example(row: dict[str, Any]) -> str:
    title = f"{row['model']}, {row['id']}: ROUGE-L {row['clean']:.3f} to {row['attacked']:.3f}"
    flips = ", ".join(f"<mark>{html.escape(old)} → {html.escape(new)}</mark>" for old, new in row["flips"])
    return (
        f"<h3>{html.escape(title)}</h3><p class=note>Changed tokens: {flips}</p>"
        f"<blockquote>before: {html.escape(row['clean_summary'])}</blockquote>"
        f"<blockquote>after: {html.escape(row['attacked_summary'])}</blockquote>"
    )


def _list(lines: list[str]) -> str:
    return "<ul>" + "".join(f"<li>{html.escape(line)}</li>" for line in lines) + "</ul>"


def _provenance(results: dict[str, Any], metadata: dict[str, Any]) -> str:
    rows = [
        (name, str(source["run_id"]), str(source["config_fingerprint"]), str(source["code"]["commit"])[:12])
        for name, source in results["sources"].items()
    ]
    facts = [
        f"code {metadata['code']['commit']}{' with local changes' if metadata['code']['dirty'] else ''}",
        f"settings {metadata['config_fingerprint']}, profile {metadata['profile']}, run {metadata['run_id']}",
        f"host {metadata['host']}, {metadata['device']}",
        ", ".join(f"{name} {version}" for name, version in metadata["versions"].items()),
        *(f"{model}: weights sha256 {digest}" for model, digest in metadata["checkpoints"].items()),
    ]
    table = Table("sources", "Where each part comes from", ("part", "run", "settings", "code"), rows)
    return f"<h2>Provenance</h2>{table.html()}{_list(facts)}"
