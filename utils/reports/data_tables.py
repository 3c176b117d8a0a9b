"""What the experiment was made from: rows and why some were removed, lengths, novelty, the copying yardstick."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from utils.analysis.final import FinalResults
from utils.analysis.records import given
from utils.core.text import printable
from utils.data.records import DataStatistics, SplitFacts
from utils.reports.table import NOT_AVAILABLE, Table, percent

LINES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 3)))  # no meaning hangs on colour
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000", "#E69F00")  # Okabe and Ito's


def doubts(results: FinalResults) -> list[str]:
    """What a reader must know of the data before any figure: sets that are missing, and what is not as expected."""
    lines = [f"Missing data set: {key} ({reason})." for key, reason in results.missing_datasets.items()]
    lines += [f"Data: {warning}." for warning in results.data.warnings]
    return lines + [f"{sentence}." for sentence in in_domain(results)]


def in_domain(results: FinalResults) -> list[str]:
    """Test sets whose own training part was trained on."""
    sets = results.data.sets
    return [
        f"{entry.title} is in-domain: its training part {_inside(entry.title, [sets[key].title for key in inside])}"
        for entry in sets.values()
        if (inside := entry.in_domain)
    ]


def _inside(title: str, trained_on: Sequence[str]) -> str:
    """A set that was trained on itself is not inside another one."""
    return "was trained on" if title in trained_on else f"is inside {' and '.join(trained_on)}, which was trained on"


def rows(results: FinalResults) -> Table:
    """A row for every split that was read; sets that could not be had say so."""
    statistics = results.data
    cells: list[tuple[str, ...]] = [
        (name, f"{facts.raw:,}", f"{facts.usable:,}", f"{facts.kept:,}") for name, facts in _splits(statistics)
    ]
    cells += [(key, *(NOT_AVAILABLE,) * 3) for key in statistics.missing]
    used = ", ".join(f"{name} {entry.rows:,}" for name, entry in sorted(statistics.prepared.items()))
    note = "usable: rows with text; kept: those that repeat nothing and overlap nothing held out."
    note = " ".join([note, f"Used: {used}.", *(f"{sentence}." for sentence in in_domain(results))])
    return Table("data", "Examples", ("set, split", "raw", "usable", "kept"), cells, note)


def removed(results: FinalResults) -> Table:
    """Why rows were removed: what would have leaked from one part into another, and what stood there twice."""
    statistics = results.data
    cells = [(o["of"], f"{o['kind']} copy of {o['with']}", f"{o['rows']:,}") for o in statistics.overlap]
    repeats = statistics.duplicates
    gone = [d for d in repeats if statistics.deduplicate_training and not d["of"].endswith("/test")]
    cells += [(d["of"], f"repeats {d['with']}", f"{d['rows']:,}") for d in gone]
    for key, entry in statistics.sets.items():
        for split, facts in entry.splits.items():
            cells += [
                (f"{key}/{split}", reason.replace("_", " "), f"{count:,}")
                for reason, count in sorted(facts.removed.items())
                if not reason.startswith("overlap:") and reason != "duplicate"
            ]
    method = statistics.overlap_method
    note = (
        "Copies of test examples leave training and validation; a near copy shares at least "
        f"{100 * method['threshold']:.0f} % of the shorter text's {method['ngram']}-word sequences. Every row by its "
        "id: removed_examples.jsonl."
    )
    kept = [f"{d['of']} {d['rows']:,} of {d['with']}" for d in repeats if d not in gone]
    note += f" Repeats that were kept: {', '.join(kept)}." if kept else ""
    return Table("removed", "Removed rows", ("from", "why", "rows"), cells or [("-", "nothing removed", "0")], note)


def texts(results: FinalResults) -> Table:
    """Lengths, compression, novelty and what copying the first three sentences earns, for every split."""
    statistics = results.data
    cells: list[tuple[str, ...]] = []
    for name, facts in _splits(statistics):
        if not facts.kept:
            cells.append((name, *("-",) * 8))
            continue
        sample, document, summary = given(facts.sampled), given(facts.document), given(facts.summary)
        cells.append(
            (
                name,
                f"{document.words['mean']:,.0f}",
                percent(document.share_truncated),
                f"{summary.words['mean']:,.0f}",
                percent(summary.share_truncated),
                f"{facts.compression:.1f}",
                *(_share(sample["novel_ngrams"][n]) for n in ("1", "2")),
                f"{sample['lead3']['rougeL']:.3f}",
            )
        )
    cells += [(key, *(NOT_AVAILABLE,) * 8) for key in statistics.missing]
    limits = next((facts for _, facts in _splits(statistics) if facts.kept), None)
    cut = f"{given(limits.document).token_limit} and {given(limits.summary).token_limit}" if limits else "the limit of"
    note = (
        f"Mean words; cut, s. cut: documents and summaries longer than {cut} tokens; ratio: words of the document per "
        "word of summary; new: n-grams of the summary that are not in the document; lead-3: ROUGE-L of the first three "
        "sentences (new and lead-3 on up to 1,000 rows)."
    )
    header = ("set, split", "words", "cut", "summary", "s. cut", "ratio", "new 1", "new 2", "lead-3")
    return Table("texts", "Texts", header, cells, note)


def lengths(results: FinalResults) -> tuple[Figure, str]:
    """Share of rows by length: words and tokens, of documents and of summaries; a line for every set."""
    figure, panels = plt.subplots(2, 2, figsize=(8, 5))
    shown = [(n, f) for n, f in _splits(results.data) if f.kept and not n.endswith("validation")]
    for row, side in zip(panels, ("document", "summary"), strict=True):
        for axes, unit in zip(row, ("words", "tokens"), strict=True):
            for number, (name, facts) in enumerate(shown):
                lengths_of = getattr(facts, side)
                histogram = getattr(lengths_of, unit)["histogram"]
                share = [count / facts.kept for count in histogram["rows"]]
                style = {"linestyle": LINES[number % 6], "color": COLOURS[number % 6], "linewidth": 1.2}
                axes.plot(range(len(share)), share, marker=".", label=name, **style)
            edges = [f"{edge:,}" for edge in histogram["from"]] if shown else []
            if unit == "tokens" and edges:
                edges[-1] = f"> {lengths_of.token_limit}"
            axes.set_xticks(range(len(edges)), edges, rotation=60, fontsize=7)
            axes.set_xlabel(f"{unit} of the {side}, from")
            axes.set_ylim(bottom=0)
        row[0].set_ylabel("share of rows")
    handles, names = panels[0][0].get_legend_handles_labels()
    figure.legend(handles, names, frameon=False, fontsize=8, ncols=3, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    figure.tight_layout()
    medians = [
        f"{name}: median {given(facts.document).words['median']:,} and {given(facts.summary).words['median']:,} words"
        for name, facts in shown
    ]
    missing = "".join(f"; {key}: {NOT_AVAILABLE}" for key in results.missing_datasets)
    return figure, f"Lengths of documents and summaries, share of rows. {'; '.join(medians)}{missing}."


def _splits(statistics: DataStatistics) -> Iterator[tuple[str, SplitFacts]]:
    """(title and split, its facts) of every split that was read."""
    for entry in statistics.sets.values():
        for split, facts in entry.splits.items():
            yield printable(f"{entry.title} {split}"), facts


def _share(value: float | None) -> str:
    return NOT_AVAILABLE if value is None else f"{100 * value:.0f} %"
