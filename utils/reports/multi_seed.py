"""The report of several seeds: tables with every seed's figure beside mean and spread, as text, CSV, LaTeX and HTML."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from utils.analysis.combined import COMBINED, CombinedResults
from utils.analysis.multi_seed import SeedRun, aggregate
from utils.core.files import write_text
from utils.core.names import BASELINE, MODEL_KEYS, TRAINED_KEYS
from utils.core.results import profile_note
from utils.reports.html import figure
from utils.reports.latex import tex
from utils.reports.measure_words import NAMES
from utils.reports.multi_seed_figures import draw_all
from utils.reports.next_steps import Step
from utils.reports.table import NOT_AVAILABLE, Table, p_value, seed_titles, signed
from utils.reports.template import Picture, Section, render_page
from utils.reports.text import listed, packed
from utils.reports.verdict import verdict_over_seeds

LIMITS = (
    "A seed changes the order of training examples, the dropout and the random numbers of the attacks; data, attacked "
    "examples and pretrained weights are the same.",
    "Few seeds say little about a spread: intervals over three are wide.",
    "Differences are over the examples that both models could be attacked on in every seed (docs/statistics.md).",
)


def tables(results: dict[str, Any]) -> list[Table]:
    """Every table of the report, in its order."""
    titles = seed_titles(results)
    level = f"{100 * results['confidence']:g} %"
    header = ("mean", "std", f"[{level}]", *(f"seed {seed}" for seed in results["seeds"]))
    metrics = {"rouge1": "ROUGE-1", "rouge2": "ROUGE-2", "rougeL": "ROUGE-L"}
    quality: list[tuple[str, ...]] = [
        (f"{titles[key]} {words} {model}", *_cells(cells[model][metric]))
        for key, cells in results["evaluation"].items()
        for metric, words in metrics.items()
        for model in MODEL_KEYS
    ]
    absent = [key for key in titles if key in results["missing_datasets"]]
    quality += [(f"{titles[key]} ROUGE-L {m}", *(NOT_AVAILABLE,) * len(header)) for key in absent for m in MODEL_KEYS]
    figures = {
        "success_rate": "success",
        "worst_case_success_rate": "success, worst case",
        "mean_degradation": "ROUGE-L drop",
        "mean_loss_increase": "NLL rise",
    }
    hotflip = [
        (f"{model} {words}", *_cells(results["hotflip"][model][name]))
        for model in MODEL_KEYS
        for name, words in figures.items()
    ]
    hotflip += [
        (f"{model} success, {name}", *_cells(cell))
        for model in MODEL_KEYS
        for name, cell in results["hotflip"][model]["controls"].items()
    ]
    triggers = [
        (f"{model} {kind} {words}", *_cells(cell[name]))
        for model in MODEL_KEYS
        for kind, cell in results["uat"][model].items()
        for name, words in (("delta_rougeL", "ROUGE-L"), ("nll_increase", "NLL"))
    ]
    training = [
        (f"{arm} {words}", *_cells(results["training"][arm][name]))
        for arm in results["training"]
        for name, words in (("best_validation_loss", "validation loss"), ("total_seconds", "seconds"))
    ]
    moves = {"hotflip": "first flip", "uat": "last trigger token"}
    found = [
        (f"{row} {moves[attack]}", *_cells(cell))
        for attack, cells in results["found_of_possible"].items()
        for row, cell in {**cells["models"], "monotonic - baseline": cells["difference"]}.items()
    ]
    note = (
        f"Mean over seeds, standard deviation over seeds (n - 1), {level} t interval of the mean; then each seed. "
        "-: no spread to judge by; standard is one untrained model, however many seeds."
    )
    shares = "Success and drop are shares, NLL is in nats per token; then success of the controls."
    return [
        _tests(results),
        Table("rouge", "ROUGE over seeds", ("data set, metric, model", *header), quality, note),
        Table("hotflip", "HotFlip over seeds", ("model, figure", *header), hotflip, shares),
        Table("triggers", "Changes by universal triggers over seeds", ("model, type, figure", *header), triggers),
        Table(
            "found",
            "Share of the possible loss rise that attacks found, over seeds",
            ("model, attack", *header),
            found,
            "Beside the best of all choices, on a few texts a seed (-: not tried). Where the difference is not 0, the "
            "attack itself is weaker on one of the models.",
        ),
        Table("training", "Training over seeds", ("model, figure", *header), training),
        *([_attribution(results)] if results["attribution"] else []),
    ]


def _tests(results: dict[str, Any]) -> Table:
    rows: list[tuple[str, ...]] = []
    titles = seed_titles(results)
    level, seeds = f"{100 * results['confidence']:g} %", len(results["seeds"])
    for name, test in results["monotonic_minus_baseline"].items():
        agree = "-" if test.get("difference") == 0 else f"{test['agree']} of {seeds}"
        agree = NOT_AVAILABLE if test.get("p_value") is None else agree
        rows.append((_titled(name, titles), *_tested(test), agree, str(test["num_common"])))
    rows += [(f"{titles[key]} ROUGE-L", *(NOT_AVAILABLE,) * 5) for key in titles if key in results["missing_datasets"]]
    return Table(
        "comparison",
        "Monotonic minus baseline over seeds",
        ("figure", f"difference [{level}]", "p", "p (Holm)", "sign", "n"),
        rows,
        "Interval and p: seeds and examples crossed (docs/statistics.md). Worst-case success is the primary test, in "
        "no family (-); Holm over the other two of the worst case, and over all other rows. sign: seeds whose "
        "difference points the same way; n: examples usable on both models in every seed. Of triggers: ROUGE-L change.",
    )


def _attribution(results: dict[str, Any]) -> Table:
    """Control arms against both models of the pair."""
    level = f"{100 * results['confidence']:g} %"
    read = NAMES[results["measure"] or "success"]
    measures = {"success": ("success, points", 100, 1), "rougeL": ("ROUGE-L", 1, 4)}
    rows: list[tuple[str, ...]] = []
    for arm, one in results["attribution"].items():
        for measure, (words, unit, digits) in measures.items():
            for other in TRAINED_KEYS:
                test = one[f"{measure}_vs_{other}"]
                share = one["reproduced"] if (measure, other) == ("success", BASELINE) else None
                part = "-" if share is None else f"{100 * share['share']:.0f} %"
                part += "" if share is None else f" [{100 * share['lower']:.0f}, {100 * share['upper']:.0f}]"
                rows.append((f"{arm} - {other}: {words}", *_tested(test, unit, digits), str(test["num_common"]), part))
    return Table(
        "attribution",
        "What did it? Control arms over seeds",
        ("figure", f"difference [{level}]", "p", "p (Holm)", "examples", "reproduced"),
        rows,
        "Worst-case success in points, ROUGE-L of unattacked summaries as it is; seeds and examples crossed, Holm over "
        f"this table. Reproduced: the arm's difference in {read} from baseline over monotonic's, with "
        "Fieller's interval (-: monotonic's difference is not shown).",
    )


def _tested(test: Mapping[str, Any], unit: float = 1, digits: int = 4) -> tuple[str, str, str]:
    """Difference with interval, p, and p by Holm (-: in no family) of a SeedTest."""
    if test.get("p_value") is None:
        return (NOT_AVAILABLE,) * 3
    ends, corrected = [unit * test["lower"], unit * test["upper"]], test.get("p_value_holm")
    change = signed(unit * test["difference"], ends, digits=digits)
    return change, p_value(test["p_value"]), "-" if corrected is None else p_value(corrected)


def _titled(name: str, titles: Mapping[str, str]) -> str:
    first, _, rest = name.partition(" ")
    if first in titles:
        return f"{titles[first]} {rest.replace('rougeL', 'ROUGE-L')}"
    return name.removesuffix(" ROUGE-L change").replace("worst trigger", "each model's trigger")


def _cells(figure: Mapping[str, Any]) -> tuple[str, ...]:
    own = [NOT_AVAILABLE if value is None else f"{value:.4f}" for value in figure["values"]]
    if figure["mean"] is None:
        return (NOT_AVAILABLE, NOT_AVAILABLE, NOT_AVAILABLE, *own)
    if figure["std"] is None:  # one untrained model, however many seeds
        return (f"{figure['mean']:.4f}", "-", "-", *own)
    ends = f"[{figure['lower']:.4f}, {figure['upper']:.4f}]" if figure["std"] else "-"  # all alike: t says nothing
    return (f"{figure['mean']:.4f}", f"{figure['std']:.4f}", ends, *own)


def warnings(results: dict[str, Any], metadata: dict[str, Any]) -> list[str]:
    """What has to stand on every page."""
    found = [profile_note(metadata)] if profile_note(metadata) else []
    found += [f"MIXED: {words}" for words in results["mixed"]]
    return found + [f"Missing data set: {key} ({reason})." for key, reason in results["missing_datasets"].items()]


def doubts(results: dict[str, Any]) -> list[str]:
    """Every doubt once, with the seeds that have it, the gravest first: they are ranked within each seed."""
    seeds: dict[str, list[str]] = {}
    rank: dict[str, int] = {}
    for seed, raised in results["warnings"].items():
        names = dict.fromkeys(f"{doubt['model']}, {doubt['warning'].replace('_', ' ')}" for doubt in raised)
        for place, name in enumerate(names):
            seeds.setdefault(name, []).append(seed)
            rank[name] = min(place, rank.get(name, place))
    return [f"{name}: seed {', '.join(seeds[name])}" for name in sorted(seeds, key=lambda name: (rank[name], name))]


def text(results: dict[str, Any], metadata: dict[str, Any]) -> str:
    """The summary for a terminal."""
    seeds = ", ".join(map(str, results["seeds"]))
    head = [f"mono-s2s, seeds {seeds}, {metadata['timestamp']}"]
    head += [f"*** {words} ***" for words in warnings(results, metadata)]
    head += [*_answer(results), results["verdict"]["doubt"]]
    tail = [listed("Doubts raised by the checks", doubts(results)), listed("Limits", LIMITS)]
    every = tables(results)
    by_worth = sorted(every, key=lambda table: table.name != "attribution" and table is not every[0])
    return packed(head, by_worth, tail, number=len(every))


def page(results: dict[str, Any], metadata: dict[str, Any], figures: Path, alternative: dict[str, str]) -> str:
    """report.html of all seeds: one page that needs nothing else."""
    by_name = {table.name: table for table in tables(results)}

    def drawn(*names: str) -> list[Picture]:
        return [figure(figures / f"{name}.svg", name, alternative[name]) for name in names]

    sources = []
    for seed, source in results["sources"].items():
        sources.append(f"seed {seed}: run {source['run_id']}, settings {source['config_fingerprint']}")
        sources[-1] += f", code {source['code']['commit']}{' with local changes' if source['code']['dirty'] else ''}"
        sources += [f"seed {seed}, {model}: weights sha256 {digest}" for model, digest in source["checkpoints"].items()]
    facts = ", ".join(f"{name} {version}" for name, version in metadata["versions"].items())
    provenance = [*sources, f"aggregated {metadata['timestamp']} on {metadata['host']}; {facts}"]
    doubted = Section("Doubts raised by the checks", lines=doubts(results) or ["none"])
    check = Step("To check every number, table and figure of this page:", "python scripts/verify_results.py DIR")
    sections = [
        Section("What to do next", steps=[check]),
        Section("Monotonic minus baseline", tables=[by_name["comparison"]]),
        *([Section("What caused it", tables=[by_name["attribution"]])] if "attribution" in by_name else []),
        Section("Quality", figures=drawn("rouge", "trade_off"), tables=[by_name["rouge"]]),
        Section("HotFlip", figures=drawn("hotflip_curves"), tables=[by_name["hotflip"], by_name["found"]]),
        Section("Universal triggers", tables=[by_name["triggers"]]),
        Section("Training", tables=[by_name["training"]]),
        doubted,
        Section("Limits", lines=LIMITS),
        Section("Files", "Beside this page.", links=_files(results, alternative)),
        Section("Provenance", lines=provenance),
    ]
    title = f"mono-s2s, seeds {', '.join(map(str, results['seeds']))}"
    note = profile_note(metadata)
    others = [words for words in (results["verdict"]["doubt"], *warnings(results, metadata)) if words and words != note]
    raised = doubted if doubts(results) else None
    return render_page(title, _answer(results), others, sections, banner=note, doubts=raised)


def _files(results: dict[str, Any], figures: Mapping[str, str]) -> dict[str, list[str]]:
    names = [table.name for table in tables(results)]
    return {
        "The answer": ["multi_seed_summary.txt", COMBINED],
        "For a paper": [*(f"tables/{name}.tex" for name in names), *(f"figures/{name}.pdf" for name in figures)],
        "Tables": [f"tables/{name}.csv" for name in names],
    }


def _answer(results: dict[str, Any]) -> list[str]:
    """The sentences of the verdict in their order; those about what was not run are empty and left out."""
    names = ("attack", "cost", "matched", "attribution", "triggers")
    return [results["verdict"][name] for name in names if results["verdict"].get(name)]


def combined(runs: Sequence[SeedRun], confidence: float, mixed: Sequence[str]) -> CombinedResults:
    """What the seeds say together, with the answer in words; `mixed`: what differs between them besides the seed."""
    figures = aggregate(runs, confidence=confidence)
    return CombinedResults(**vars(figures), verdict=verdict_over_seeds(figures), mixed=list(mixed))


def write_report(results: dict[str, Any], metadata: dict[str, Any], target: Path) -> None:
    """Write everything that a reader sees into `target`: tables, figures, summary, page."""
    warning = " ".join(warnings(results, metadata))
    for table in tables(results):
        write_text(target / "tables" / f"{table.name}.csv", table.csv())
        write_text(target / "tables" / f"{table.name}.tex", tex(table, warning))
    alternative = draw_all(results, target / "figures")
    write_text(target / "multi_seed_summary.txt", text(results, metadata))
    write_text(target / "report.html", page(results, metadata, target / "figures", alternative))
