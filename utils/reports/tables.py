"""The tables of the report, made once from final_results.json and written as text, CSV, LaTeX and HTML."""

from __future__ import annotations

import csv
import html
import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

MODELS = ("standard", "baseline", "monotonic")
TITLES = {"cnn_dm": "CNN/DM", "xsum": "XSum", "samsum": "SAMSum"}
NOT_AVAILABLE = "not available"


@dataclass(frozen=True)
class Table:
    """A table as words: `name` is its file name, `note` says what a reader must know to read it."""

    name: str
    title: str
    header: tuple[str, ...]
    rows: list[tuple[str, ...]]
    note: str = ""

    def text(self, width: int = 80) -> str:
        """Aligned columns for a terminal; cells are never cut."""
        widths = [max(len(row[i]) for row in (self.header, *self.rows)) for i in range(len(self.header))]
        gap = "  " if sum(widths) + 2 * len(widths) <= width else " "

        def line(row: tuple[str, ...]) -> str:
            return gap.join(
                cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
            )

        return "\n".join(
            [self.title, "-" * min(len(line(self.header)), width), line(self.header), *map(line, self.rows)]
        )

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
        head = "".join(f'<th scope="col">{html.escape(cell)}</th>' for cell in self.header)
        body = "".join(
            f'<tr><th scope="row">{html.escape(row[0])}</th>'
            + "".join(f"<td>{html.escape(cell)}</td>" for cell in row[1:])
            + "</tr>"
            for row in self.rows
        )
        note = f"<p class=note>{html.escape(self.note)}</p>" if self.note else ""
        return (
            f'<div class="scroll"><table><caption>{html.escape(self.title)}</caption>'
            f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>{note}"
        )


def all_tables(results: dict[str, Any]) -> list[Table]:
    """Every table of the report, in its order."""
    makers: tuple[Callable[[dict[str, Any]], Table], ...] = (
        fairness,
        quality,
        comparisons,
        hotflip,
        hotflip_controls,
        hotflip_transfer,
        triggers,
        trigger_transfer,
        data,
        costs,
    )
    tables = [make(results) for make in makers]
    arms = [key for key in results["hotflip"]["transfer_matrix"] if key not in MODELS]
    return [*tables, attribution(results, arms)] if arms else tables


def fairness(results: dict[str, Any]) -> Table:
    baseline, monotonic = (results[f"{arm}_training"]["settings"] for arm in ("baseline", "monotonic"))
    rows = [
        (
            name,
            _plain(baseline[name]),
            _plain(monotonic.get(name)),
            "DIFFERS" if baseline[name] != monotonic.get(name) else "",
        )
        for name in sorted(baseline)
    ]
    return Table(
        "fairness",
        "Training settings of both models",
        ("setting", "baseline", "monotonic", ""),
        rows,
        "The warm-up is meant to differ, and nothing else.",
    )


def quality(results: dict[str, Any]) -> Table:
    rows = []
    sizes = []
    for key, title in TITLES.items():
        cells = results["evaluation"].get(key)
        if cells is None:
            rows += [(f"{title} {model}", *(NOT_AVAILABLE,) * 3) for model in MODELS]
            continue
        sizes.append(f"{title} {cells['standard']['num_examples']:,}")
        for model in MODELS:
            rows.append((f"{title} {model}", *(interval(cells[model][m]) for m in ("rouge1", "rouge2", "rougeL"))))
    return Table(
        "rouge",
        "ROUGE F with 95 % bootstrap intervals",
        ("data set, model", "ROUGE-1", "ROUGE-2", "ROUGE-L"),
        rows,
        f"Intervals are over examples ({', '.join(sizes)}), for this one training.",
    )


def comparisons(results: dict[str, Any]) -> Table:
    rows = []
    for key, title in TITLES.items():
        cell = results["evaluation"]["comparisons"].get(key)
        if cell is None:
            rows.append((title, *(NOT_AVAILABLE,) * 3))
            continue
        c = cell["rougeL"]
        rows.append(
            (
                title,
                f"{c['difference']:+.4f} [{c['lower']:+.4f}, {c['upper']:+.4f}]",
                f"{c['p_value_holm']:.3g}",
                f"{c['cohens_dz']:+.2f}",
            )
        )
    return Table(
        "rouge_comparison",
        "ROUGE-L, monotonic minus baseline, paired",
        ("data set", "difference [95 %]", "p (Holm)", "d_z"),
        rows,
        "Sign-flip permutation test; Holm over data sets and metrics.",
    )


def hotflip(results: dict[str, Any]) -> Table:
    rows = []
    for model in MODELS:
        cell = results["hotflip"][model]
        rows.append(
            (
                model,
                percent(cell["success_rate"], cell.get("success_rate_ci")),
                percent(cell["mean_degradation"]),
                number(cell["mean_loss_increase"]),
                f"{cell['num_attackable']}",
                f"{cell['num_skipped']}",
            )
        )
    return Table(
        "hotflip",
        "HotFlip",
        ("model", "success [95 %]", "ROUGE-L drop", "loss + nats", "attacked", "skipped"),
        rows,
        "Success: relative ROUGE-L drop of at least the threshold. Skipped: nothing to lose, or nothing to change.",
    )


def hotflip_controls(results: dict[str, Any]) -> Table:
    names = list(dict.fromkeys(n for model in MODELS for n in results["hotflip"][model]["controls"]))
    rows = []
    for model in MODELS:
        cell = results["hotflip"][model]
        cells = [cell["controls"].get(name) for name in names]
        rows.append(
            (model, percent(cell["success_rate"]), *(percent(c["success_rate"]) if c else NOT_AVAILABLE for c in cells))
        )
    return Table(
        "hotflip_controls",
        "HotFlip success beside its controls",
        ("model", "attack", *names),
        rows,
        "random: strongest of several random attacks of equal budget; greedy: gradient-free search with equal queries; "
        "one_shot: one gradient, unverified; floor: every token changed.",
    )


def hotflip_transfer(results: dict[str, Any]) -> Table:
    matrix = results["hotflip"]["transfer_matrix"]
    rows = [(source, *(percent(matrix[source][target]["success_rate"]) for target in MODELS)) for source in MODELS]
    return Table(
        "hotflip_transfer", "HotFlip success, flips found on (row) and read by (column)", ("found on", *MODELS), rows
    )


def attribution(results: dict[str, Any], arms: list[str]) -> Table:
    """Control arms beside the two models they explain; they stand in no other table."""
    rows = []
    for model in ("baseline", "monotonic", *arms):
        cell = results["hotflip"][model]
        quality = [results["evaluation"].get(key, {}).get(model) for key in TITLES]
        rouge = [f"{item['rougeL']['mean']:.3f}" if item else NOT_AVAILABLE for item in quality]
        attack = (percent(cell["success_rate"], cell.get("success_rate_ci")), number(cell["mean_loss_increase"]))
        rows.append((model, *rouge, *attack))
    return Table(
        "attribution",
        "What the softplus alone does: control arms",
        ("model", *(f"ROUGE-L {title}" for title in TITLES.values()), "HotFlip success", "loss + nats"),
        rows,
        "sign_frozen: the same softplus, but the pretrained signs kept. abs_init_free: starts from |W|, unconstrained.",
    )


def triggers(results: dict[str, Any]) -> Table:
    rows = []
    for model in MODELS:
        for kind, cell in results["uat"][model].items():
            if kind == "worst":
                continue
            control = cell["random_control"]
            rows.append(
                (
                    f"{model} {kind}",
                    f"{cell['delta_rougeL']:+.4f}",
                    f"{cell['nll_increase']:+.3f}",
                    f"{control['nll_increase']:+.3f}",
                    percent(cell["success_rate"]),
                    cell["trigger_text"],
                )
            )
    return Table(
        "triggers",
        "Universal triggers",
        ("model, type", "ROUGE-L", "NLL", "NLL random", "success", "trigger"),
        rows,
        "Changes against the same inputs without trigger. NLL random: the best of several random triggers.",
    )


def trigger_transfer(results: dict[str, Any]) -> Table:
    matrix = results["uat"]["transfer_matrix"]
    rows = [
        (f"{kind}, {source}", *(f"{matrix[kind][source][target]['nll_increase']:+.3f}" for target in MODELS))
        for kind in matrix
        for source in MODELS
    ]
    return Table(
        "trigger_transfer",
        "NLL rise of triggers found on (row) and read by (column)",
        ("type, found on", *MODELS),
        rows,
    )


def data(results: dict[str, Any]) -> Table:
    statistics = results["data"]
    rows = [(name, f"{entry['rows']:,}") for name, entry in sorted(statistics["prepared"].items())]
    rows += [(f"{o['of']} removed: {o['kind']} copy of {o['with']}", f"{o['rows']:,}") for o in statistics["overlap"]]
    rows += [(f"{key}: {NOT_AVAILABLE}", reason) for key, reason in statistics["missing"].items()]
    return Table("data", "Examples, and what was taken out of training", ("what", "rows"), rows)


def costs(results: dict[str, Any]) -> Table:
    rows = []
    for arm in ("baseline", "monotonic"):
        training = results[f"{arm}_training"]
        last = training["epochs"][-1]
        rows.append(
            (
                f"training {arm}",
                f"{training['total_seconds']:.0f} s",
                f"{last.get('examples_per_second') or 0:.1f}/s",
                f"{last.get('peak_memory_mb') or 0:.0f} MB",
            )
        )
    for model in MODELS:
        cells = [results["evaluation"][k][model] for k in TITLES if model in results["evaluation"].get(k, {})]
        if cells and all("seconds" in cell for cell in cells):
            seconds, count = sum(c["seconds"] for c in cells), sum(c["num_examples"] for c in cells)
            rows.append((f"summaries {model}", f"{seconds:.0f} s", f"{count / max(seconds, 1e-9):.1f}/s", ""))
    return Table("costs", "Costs", ("what", "time", "rate", "memory"), rows)


def interval(cell: dict[str, float]) -> str:
    return f"{cell['mean']:.3f} [{cell['lower']:.3f}, {cell['upper']:.3f}]"


def percent(value: float | None, bounds: list[float] | None = None) -> str:
    """0.25 as 25.0 %, with its interval; "not available" for None."""
    if value is None:
        return NOT_AVAILABLE
    return f"{100 * value:.1f} %" + (f" [{100 * bounds[0]:.0f}, {100 * bounds[1]:.0f}]" if bounds else "")


def number(value: float | None) -> str:
    return NOT_AVAILABLE if value is None else f"{value:+.3f}"


def _plain(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _tex(text: str) -> str:
    for sign in "&%$#_{}":
        text = text.replace(sign, "\\" + sign)
    return text.replace("~", r"\textasciitilde{}").replace("<", r"\textless{}").replace(">", r"\textgreater{}")
