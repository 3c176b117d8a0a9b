"""The tables that a paper prints in its text: quality, and attacks with what the field states first."""

from __future__ import annotations

from collections.abc import Callable

from utils.analysis.final import FinalResults
from utils.analysis.measures import GRADIENT_COST
from utils.analysis.records import given
from utils.analysis.results import HotFlipCell, ModelTriggers, TriggerCell
from utils.core.names import MODEL_KEYS, STANDARD
from utils.core.text import printable
from utils.reports.result_tables import lead3, level
from utils.reports.table import NOT_AVAILABLE, Table, interval, percent, set_titles, signed


def main(results: FinalResults) -> Table:
    """ROUGE-L of every model on every test set."""
    titles = set_titles(results)
    rows: list[tuple[str, ...]] = []
    for model in MODEL_KEYS:
        cells = [results.evaluation.datasets.get(key, {}).get(model) for key in titles]
        rows.append((model, *(interval(cell.rougeL) if cell else NOT_AVAILABLE for cell in cells)))
    measured = results.evaluation.datasets
    leads = [f"{lead3(results, key)['rougeL']:.3f}" if key in measured else NOT_AVAILABLE for key in titles]
    sizes = [f"{titles[key]} {cells[STANDARD].num_examples:,}" for key, cells in measured.items() if key in titles]
    return Table(
        "main",
        "ROUGE-L of every model on every test set",
        ("model", *titles.values()),
        [*rows, ("lead-3", *leads)],
        f"ROUGE-L F with {level(results)} bootstrap intervals over the test examples ({', '.join(sizes)}), one "
        "training of each model. lead-3: the first three sentences of the text.",
        one_column=True,
    )


def attack(results: FinalResults) -> Table:
    """HotFlip and the worst universal trigger on every model, on the same examples."""
    hotflip = [results.hotflip.models[model] for model in MODEL_KEYS]
    of_hotflip: tuple[tuple[str, Callable[[HotFlipCell], str]], ...] = (
        ("attacked examples", lambda cell: f"{cell.num_attackable:,}"),
        ("ROUGE-L, clean", lambda cell: _score(cell.clean_rougeL)),
        ("ROUGE-L, attacked", lambda cell: _score(cell.attacked_rougeL)),
        ("success", lambda cell: percent(cell.success_rate, cell.success_rate_ci)),
        ("success, worst case", lambda cell: percent(cell.worst_case.success_rate)),
        ("success, random", lambda cell: percent(_random_rate(cell))),
        ("ROUGE-L drop", lambda cell: percent(cell.mean_degradation, cell.mean_degradation_ci)),
        ("NLL rise, nats", lambda cell: signed(cell.mean_loss_increase)),
        ("queries", _queries),
        ("tokens changed", lambda cell: percent(cell.perturbed_token_share)),
        ("typable", lambda cell: percent(typable_share(cell))),
    )
    rows: list[tuple[str, ...]] = [(name, *map(shown, hotflip)) for name, shown in of_hotflip]
    worst = [_worst_trigger(results.uat.models[model]) for model in MODEL_KEYS]
    of_trigger: tuple[tuple[str, Callable[[TriggerCell], str]], ...] = (
        ("trigger: clean", lambda cell: _score(given(cell.clean).rougeL.mean if cell.clean else None)),
        ("trigger: attacked", lambda cell: _score(given(cell.attacked).rougeL.mean if cell.attacked else None)),
        ("trigger: success", lambda cell: percent(cell.success_rate, cell.success_rate_ci)),
    )
    rows += [(name, *(shown(cell) if cell else NOT_AVAILABLE for cell in worst)) for name, shown in of_trigger]
    title = printable(results.data.sets[results.data.attack_dataset].title)
    threshold = results.hotflip.models[MODEL_KEYS[0]].threshold
    return Table(
        "attack",
        f"Attacks on {title}",
        ("HotFlip", *MODEL_KEYS),
        rows,
        f"Success: relative ROUGE-L drop of at least {100 * threshold:g} %, with {level(results)} intervals. Worst "
        "case: the strongest of all attacks, example by example; random: of random flips with the same budget. "
        f"Queries: forward passes per example, a gradient counted as {GRADIENT_COST}. Typable: attacked texts that the "
        "model reads as attacked when they are typed. Trigger: the worst universal trigger of each model, ROUGE-L and "
        "success.",
        one_column=True,
    )


def _score(value: float | None) -> str:
    return NOT_AVAILABLE if value is None else f"{value:.3f}"


def _random_rate(cell: HotFlipCell) -> float | None:
    return cell.controls["random"].success_rate if "random" in cell.controls else None


def _queries(cell: HotFlipCell) -> str:
    """Forward passes per example: exact scores of candidates, and gradients by their cost."""
    if cell.mean_queries is None or cell.mean_gradients is None:
        return NOT_AVAILABLE
    return f"{cell.mean_queries + GRADIENT_COST * cell.mean_gradients:,.0f}"


def typable_share(cell: HotFlipCell) -> float | None:
    """Share of the attacked texts that are read as attacked when typed; None where there are none."""
    return cell.typable_count / cell.num_attackable if cell.num_attackable and cell.typable_count is not None else None


def _worst_trigger(triggers: ModelTriggers) -> TriggerCell | None:
    return triggers.types[triggers.worst.worst_type] if triggers.worst.worst_type else None
