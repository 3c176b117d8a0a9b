"""All tables of a seed's report, in its order."""

from __future__ import annotations

from collections.abc import Callable

from utils.analysis.final import FinalResults
from utils.reports import cause_tables, data_tables, experiment_tables, paper_tables, result_tables
from utils.reports.table import Table


def all_tables(results: FinalResults) -> list[Table]:
    """Every table, made from the `results` of final_results.json; control arms get one only where there are any."""
    makers: tuple[Callable[[FinalResults], Table], ...] = (
        paper_tables.main,
        paper_tables.attack,
        experiment_tables.fairness,
        experiment_tables.constraint,
        result_tables.quality,
        result_tables.comparisons,
        result_tables.against_standard,
        experiment_tables.expected,
        cause_tables.mechanism,
        result_tables.hotflip,
        result_tables.hotflip_controls,
        result_tables.checks,
        result_tables.hotflip_budget,
        result_tables.hotflip_transfer,
        result_tables.triggers,
        result_tables.trigger_controls,
        result_tables.attack_tests,
        result_tables.trigger_transfer,
        data_tables.rows,
        data_tables.removed,
        data_tables.texts,
        experiment_tables.costs,
    )
    tables = [make(results) for make in makers]
    if any(panel.order is not None for panel in results.mechanism.values()):
        tables.append(cause_tables.order(results))
    if results.matched.num_examples:
        tables.append(cause_tables.quality_curve(results))
    return [*tables, cause_tables.attribution(results)] if results.attribution else tables
