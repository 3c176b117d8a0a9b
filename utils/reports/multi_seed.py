"""The report of several seeds: tables with every seed's figure beside mean and spread, as text, CSV, LaTeX and HTML."""

from __future__ import annotations

import html
from typing import Any

from utils.reports.html import CSS
from utils.reports.table import MODELS, NOT_AVAILABLE, TITLES, Table
from utils.results import profile_note

NOTE = (
    "Mean over seeds, standard deviation over seeds (n - 1), 95 % t interval of the mean; then each seed's own figure."
)


def tables(results: dict[str, Any]) -> list[Table]:
    """Every table of the report, in its order."""
    seeds = [f"seed {seed}" for seed in results["seeds"]]
    header = ("mean", "std", "95 %", *seeds)
    quality = [
        (f"{TITLES[key]} {model}", *_cells(cells[model]["rougeL"]))
        for key, cells in results["evaluation"].items()
        for model in MODELS
    ]
    hotflip = [
        (f"{model} {words}", *_cells(results["hotflip"][model][name]))
        for model in MODELS
        for name, words in (("success_rate", "success"), ("mean_degradation", "drop"), ("mean_loss_increase", "nats"))
    ]
    triggers = [
        (f"{model} {kind}", *_cells(cell["delta_rougeL"]))
        for model in MODELS
        for kind, cell in results["uat"][model].items()
    ]
    return [
        Table("rouge", "ROUGE-L over seeds", ("data set, model", *header), quality, NOTE),
        Table("hotflip", "HotFlip over seeds", ("model, figure", *header), hotflip, "success and drop are shares"),
        Table("triggers", "ROUGE-L change by universal triggers over seeds", ("model, type", *header), triggers),
        _tests(results),
    ]


def _tests(results: dict[str, Any]) -> Table:
    rows = []
    for name, test in results["monotonic_minus_baseline"].items():
        wide = results["hierarchical_bootstrap"].get(name)
        interval = f"[{wide['lower']:+.4f}, {wide['upper']:+.4f}]" if wide else "-"
        p_values = [NOT_AVAILABLE if test[p] is None else f"{test[p]:.3g}" for p in ("p_value_t", "p_value_wilcoxon")]
        difference = NOT_AVAILABLE if test["difference"] is None else f"{test['difference']:+.4f}"
        rows.append((name, difference, interval, *p_values, str(test["n"])))
    best = next(iter(results["monotonic_minus_baseline"].values())).get("smallest_wilcoxon")
    note = "Interval: hierarchical bootstrap, seeds then examples. p: paired t and Wilcoxon over seeds"
    note += f"; {len(results['seeds'])} seeds cannot bring Wilcoxon's p below {best:.3g}." if best else "."
    header = ("figure", "difference", "95 %", "p (t)", "p (Wilcoxon)", "seeds")
    return Table("comparison", "Monotonic minus baseline, paired by seed", header, rows, note)


def _cells(figure: dict[str, Any]) -> tuple[str, ...]:
    own = [NOT_AVAILABLE if value is None else f"{value:.4f}" for value in figure["values"]]
    if figure["mean"] is None:
        return (NOT_AVAILABLE, NOT_AVAILABLE, NOT_AVAILABLE, *own)
    return (f"{figure['mean']:.4f}", f"{figure['std']:.4f}", f"[{figure['lower']:.4f}, {figure['upper']:.4f}]", *own)


def warnings(results: dict[str, Any], metadata: dict[str, Any]) -> list[str]:
    """What has to stand above everything else."""
    found = [profile_note(metadata)] if profile_note(metadata) else []
    return found + [f"MIXED: {words}" for words in results["mixed"]]


def text(results: dict[str, Any], metadata: dict[str, Any]) -> str:
    """The summary for a terminal."""
    seeds = ", ".join(map(str, results["seeds"]))
    blocks = [f"mono-s2s, seeds {seeds}, {metadata['timestamp']}", *warnings(results, metadata)]
    blocks += [table.text() + (f"\n{table.note}" if table.note else "") for table in tables(results)]
    return "\n\n".join(blocks) + "\n"


def page(results: dict[str, Any], metadata: dict[str, Any]) -> str:
    """report.html of all seeds: one page that needs nothing else."""
    seeds = ", ".join(map(str, results["seeds"]))
    body = [f"<h1>mono-s2s, seeds {seeds}</h1>"]
    body += [f"<p class=warn>{html.escape(words)}</p>" for words in warnings(results, metadata)]
    body += [
        f"<h2>{table.title}</h2>{points(results) if table.name == 'rouge' else ''}{table.html()}"
        for table in tables(results)
    ]
    flags = [
        f"seed {seed}, {flag['model']}: {flag['message']}" for seed, many in results["flags"].items() for flag in many
    ]
    body.append(
        "<h2>Doubts raised by the checks</h2><ul>" + "".join(f"<li>{html.escape(f)}</li>" for f in flags) + "</ul>"
    )
    body.append("<h2>Provenance</h2><ul>")
    for seed, source in results["sources"].items():
        made = f"settings {source['config_fingerprint']}, code {source['code']['commit']}"
        body.append(f"<li>seed {seed}: run {html.escape(source['run_id'])}, {html.escape(made)}</li>")
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>mono-s2s, seeds {seeds}</title><style>{CSS}</style></head>"
        f"<body><main>{''.join(body)}</ul></main></body></html>\n"
    )


def points(results: dict[str, Any]) -> str:
    """Each seed's ROUGE-L as a point, a row for each data set and model; the bar is the mean."""
    rows = [(f"{TITLES[k]} {m}", cells[m]["rougeL"]) for k, cells in results["evaluation"].items() for m in MODELS]
    shapes = {"standard": "▪", "baseline": "●", "monotonic": "▲"}
    top = max(value for _, figure in rows for value in figure["values"]) or 1.0
    parts = []
    for number, (name, figure) in enumerate(rows):
        y = 16 + 22 * number
        parts.append(f'<text x="0" y="{y}">{html.escape(name)}</text>')
        for value in figure["values"]:
            x = 160 + 420 * value / top
            parts.append(f'<text x="{x:.1f}" y="{y}" text-anchor="middle">{shapes[name.split()[-1]]}</text>')
        x = 160 + 420 * figure["mean"] / top
        parts.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{y - 14}" y2="{y + 4}" stroke="#1a1a1a"/>')
        parts.append(f'<text x="640" y="{y}" text-anchor="end">{figure["mean"]:.3f}</text>')
    words = "ROUGE-L of every seed: one mark per seed, a line at the mean"
    style = 'font-family="sans-serif" font-size="13" fill="#1a1a1a"'
    return (
        f'<figure><svg viewBox="0 0 650 {22 * len(rows) + 8}" role="img" aria-label="{words}" {style}>{"".join(parts)}'
        f"</svg><figcaption>{words}</figcaption></figure>"
    )
