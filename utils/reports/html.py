"""report.html: one page that needs nothing else, readable on paper, on a phone, in light and dark."""

from __future__ import annotations

import html
import re
from pathlib import Path
from typing import Any

from utils.core.results import profile_note
from utils.reports.data_tables import doubts
from utils.reports.examples import AttackedExample, Mark
from utils.reports.table import Table

CSS = """
:root { color-scheme: light dark; --ink: #1a1a1a; --paper: #fff; --soft: #f3f4f6; --line: #c9ccd1; --warn: #8a3b00;
  --mark: #ffe08a; --link: #0b5394; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e8e8e8; --paper: #16181b; --soft: #22262b; --line: #4a4f57; --warn: #ffb27a; --mark: #6b5200;
    --link: #8ab8ff; } }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); margin: auto;
  max-width: 60rem; padding: 1rem; overflow-wrap: break-word; }
h1 { font-size: 1.5rem } h2 { font-size: 1.25rem; margin-top: 2.5rem; border-bottom: 1px solid var(--line) }
h3 { font-size: 1rem; margin: 1.5rem 0 .3rem } a { color: var(--link) }
nav { font-size: .9rem; display: flex; flex-wrap: wrap; gap: .2rem 1rem; margin-top: 1rem }
.verdict { background: var(--soft); padding: .2rem 1rem; border-left: 4px solid var(--ink) }
.verdict p:first-child { font-size: 1.15rem; font-weight: 600 }
.warn { color: var(--warn); font-weight: 600 } .note { font-size: .9rem; margin: .3rem 0 1.5rem }
.scroll { overflow-x: auto } table { border-collapse: collapse; margin: 0 0 .8rem; font-size: .9rem;
  font-variant-numeric: tabular-nums }
.title { font-weight: 600; margin: 1.5rem 0 .3rem; font-size: .9rem } th, td { padding: .2rem .6rem;
  border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap }
th[scope=row], .words { text-align: left } thead th { vertical-align: bottom }
th[scope=row] { font-weight: 400 } tr.marked > * { font-weight: 700; background: var(--soft) }
tr.apart > * { border-top: 2px solid var(--line) }
.figures { display: flex; flex-wrap: wrap; gap: 1rem; align-items: flex-end }
figure { margin: .5rem 0; max-width: 33rem; flex: 1 1 24rem; overflow-x: auto } figure:only-child { max-width: 100% }
figure svg { display: block; max-width: 100%; height: auto; color: var(--ink) } figure svg text { fill: currentColor }
figcaption { font-size: .85rem }
mark { background: var(--mark); color: inherit; padding: 0 .15em } mark ins { text-decoration: none; font-weight: 700 }
.sides { display: grid; grid-template-columns: 1fr 1fr; gap: .2rem 1rem; margin: .4rem 0 }
.sides > div { border-left: 3px solid var(--line); padding-left: .8rem } .sides h4 { margin: 0; font-size: .85rem }
.sides p, .example .note { margin: .1rem 0 }
@media (max-width: 40rem) { .sides { grid-template-columns: 1fr } figure svg { max-width: none; min-width: 30rem }
  figure svg.small { min-width: 0; max-width: 100% } th, td { padding: .2rem .35rem } }
@media print { body { max-width: none; font-size: 11pt } nav { display: none } h2, .title { break-after: avoid }
  figure, tr, .example { break-inside: avoid } .scroll { overflow: visible } table { font-size: .75rem } }
"""
NARROW = 300  # points: figures up to this width need no scrolling on a phone
# Title, what a reader needs to know before looking, then figures and tables.
SECTIONS = (
    ("Quality", "ROUGE against the reference summaries, over every test example.",
     ("rouge", "trade_off"), ("rouge", "rouge_comparison", "rouge_against_standard", "expected")),
    ("HotFlip", "Single tokens of the text are exchanged, guided by gradients, until the summary suffers.",
     ("hotflip_curves",), ("hotflip", "hotflip_controls", "hotflip_checks", "hotflip_budget")),
    ("HotFlip across models", "Flips found on one model, read by another.",
     ("hotflip_transfer",), ("hotflip_transfer",)),
    ("Universal triggers", "The same few tokens put into every text; found on validation, measured on test examples.",
     ("trigger_learning",), ("triggers", "trigger_controls")),
    ("Universal triggers across models", "Triggers found on one model, read by another.",
     ("trigger_transfer",), ("trigger_transfer",)),
    ("Tests of the attacks", "Whether monotonic and baseline differ, on examples that both can lose something on.",
     (), ("attack_tests",)),
    ("Attribution", "", (), ("attribution",)),
    ("Fairness and training", "Both start from the same pretrained weights (monotonic from the absolute values in its "
     "feed-forward layers) and see the same examples in the same order.",
     ("training",), ("fairness", "constraint")),
    ("Data", "", ("lengths",), ("data", "removed", "texts")),
    ("Costs", "", (), ("costs",)),
)  # fmt: skip


def page(
    results: dict[str, Any],
    metadata: dict[str, Any],
    tables: list[Table],
    figures: Path,
    alternative: dict[str, str],
    examples: list[AttackedExample],
) -> str:
    """The page. `figures`: directory of the SVG files; `alternative`: their texts; `examples`: attacked examples."""
    by_name = {table.name: table for table in tables}
    sections = []
    for title, words, pictures, names in SECTIONS:
        drawn = "".join(figure(figures / f"{name}.svg", name, alternative[name]) for name in pictures)
        parts = [f'<div class="figures">{drawn}</div>'] if drawn else []
        parts += [by_name[name].html() for name in names if name in by_name]
        if parts:
            sections.append((title, (f"<p>{html.escape(words)}</p>" if words else "") + "".join(parts)))
    raised = [f"{doubt['model']}: {doubt['message']}" for doubt in results["warnings"]] or ["none"]
    sections += [
        ("Attacked examples", "".join(map(_example, examples)) or "<p>No example could be attacked.</p>"),
        ("Data sets and their licences", items(_origins(results))),
        ("Doubts raised by the checks", items(raised)),
        ("Limits", items(results["limits"])),
        ("Provenance", _provenance(results, metadata)),
    ]
    answer = results["verdict"]
    warnings = [answer["doubt"], *doubts(results)]
    warnings += [f"The checks raise {len(results['warnings'])} doubts: see below."] if results["warnings"] else []
    return document(
        f"mono-s2s, seed {metadata['seed']}",
        [answer["attack"], answer["triggers"], answer["cost"]],
        [words for words in warnings if words],
        sections,
        banner=profile_note(metadata),
    )


def document(
    title: str, verdict: list[str], warnings: list[str], sections: list[tuple[str, str]], banner: str = ""
) -> str:
    """A whole page: `sections` are (title, HTML), the rest is plain text. `banner`: what to know before the verdict."""
    links = "".join(f'<a href="#{_anchor(name)}">{html.escape(name)}</a>' for name, _ in sections)
    body = [f"<h1>{html.escape(title)}</h1>"]
    body += [f'<p class="warn">{html.escape(banner)}</p>'] if banner else []
    body += [f'<div class="verdict">{"".join(f"<p>{html.escape(words)}</p>" for words in verdict)}</div>']
    body += [f'<p class="warn">{html.escape(words)}</p>' for words in warnings]
    body += [f'<nav aria-label="Sections">{links}</nav>']
    body += [f'<section id="{_anchor(name)}"><h2>{html.escape(name)}</h2>{inner}</section>' for name, inner in sections]
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(title)}</title><style>{CSS}</style></head>"
        f"<body><main>{''.join(body)}</main></body></html>\n"
    )


def figure(path: Path, name: str, text: str) -> str:
    """An SVG file inline, with its alternative text."""
    svg = path.read_text(encoding="utf-8")
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\b(id="|href="#)', rf"\1{name}-", svg)  # several figures on one page: unique ids
    svg = svg.replace("url(#", f"url(#{name}-").replace("#000000", "currentColor")
    small = ' class="small"' if float(re.search(r'viewBox="0 0 ([\d.]+)', svg)[1]) < NARROW else ""
    svg = svg.replace("<svg", f'<svg{small} role="img" aria-label="{html.escape(text)}"', 1)
    return f"<figure>{svg}<figcaption>{html.escape(text)}</figcaption></figure>"


def items(lines: list[str]) -> str:
    """A list of plain texts."""
    return "<ul>" + "".join(f"<li>{html.escape(line)}</li>" for line in lines) + "</ul>"


def _anchor(title: str) -> str:
    return title.lower().replace(" ", "-")


def _example(row: AttackedExample) -> str:
    title = f"{row.model}, {row.kind}: {row.id}, ROUGE-L {row.clean:.3f} to {row.attacked:.3f}"
    return (
        f'<div class="example"><h3>{html.escape(title)}</h3>'
        f'<p class="note"><b>Changed:</b> {_marked(row.excerpt)}</p>'
        f'<p class="note"><b>Reference:</b> {html.escape(row.reference)}</p>'
        f'<div class="sides"><div><h4>Summary before</h4><p>{html.escape(row.clean_summary)}</p></div>'
        f"<div><h4>Summary after</h4><p>{html.escape(row.attacked_summary)}</p></div></div></div>"
    )


def _marked(excerpt: list[str | Mark]) -> str:
    parts = []
    for part in excerpt:
        if isinstance(part, Mark):
            parts.append(f"<mark><del>{html.escape(part.old)}</del> → <ins>{html.escape(part.new)}</ins></mark>")
        else:
            parts.append(html.escape(part))
    return "".join(parts)


def _origins(results: dict[str, Any]) -> list[str]:
    lines = []
    for entry in results["data"]["sets"].values():
        origin = entry["origin"]
        where = " at ".join(str(origin[key]) for key in ("from", "revision") if origin.get(key))
        inside = f"; in-domain: {', '.join(entry['in_domain'])}" if entry["in_domain"] else ""
        lines.append(f"{entry['title']} ({entry['role']}), {where}: {entry['licence']}. {entry['note']}{inside}")
    return lines


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
    return table.html() + items(facts)
