"""A data set that could not be had: every output says so, and no figure of it is blank or zero."""

import csv
import json

import pytest

from utils.analysis.final import FinalResults
from utils.core.codec import from_json
from utils.reports.examples import Examples
from utils.reports.figures import draw_all
from utils.reports.html import page
from utils.reports.latex import long_table
from utils.reports.model_card import model_card
from utils.reports.tables import all_tables
from utils.reports.text import summary

pytestmark = pytest.mark.slow

REASONS = {"samsum": "knkarthick/samsum@main: no such repository", "highlightsum": "no success in 5 tries"}


@pytest.fixture
def partial(done) -> tuple[FinalResults, dict]:
    """The real results of a seed as they are where a test set and a training set could not be had."""
    envelope = json.loads((done.results / "final_results.json").read_text())
    results, metadata = envelope["results"], envelope["_metadata"]
    results["missing_datasets"] = results["data"]["missing"] = dict(REASONS)
    for key in REASONS:
        del results["data"]["sets"][key]
    del results["evaluation"]["samsum"], results["evaluation"]["comparisons"]["samsum"]
    del results["data"]["prepared"]["test_samsum"]
    return from_json(FinalResults, results), metadata


def test_tables_summary_report_and_cards_say_not_available(partial, tmp_path):
    results, metadata = partial
    tables = {table.name: table for table in all_tables(results)}
    for name, rows in (("rouge", 3), ("rouge_comparison", 1)):
        of_it = [row for row in csv.reader(tables[name].csv().splitlines()) if row[0].startswith("SAMSum")]
        assert len(of_it) == rows and all(cell == "not available" for row in of_it for cell in row[1:]), name
    for name in ("data", "texts"):
        of_it = [row for row in tables[name].rows if row[0] in REASONS]
        assert len(of_it) == 2 and all(cell == "not available" for row in of_it for cell in row[1:]), name
    for table in tables.values():
        assert all(cell.strip() for row in table.rows for cell in row if row[0] in REASONS or "SAMSum" in row[0])
        assert "n/a" in long_table(table) or table.name not in ("rouge", "data", "texts")
    alternative = draw_all(results, tmp_path / "figures")
    assert "SAMSum: not available" in alternative["rouge"] and "samsum: not available" in alternative["lengths"]
    text = " ".join(summary(results, metadata, list(tables.values())).split())
    html = page(results, metadata, list(tables.values()), tmp_path / "figures", alternative, Examples())
    for key, reason in REASONS.items():
        assert f"Missing data set: {key} ({reason})." in text and f"Missing data set: {key} ({reason})." in html
        assert f"{key}: not available, this run went without it" in model_card("baseline", results, metadata)
    assert "ROUGE-L on SAMSum: not available" in model_card("monotonic", results, metadata)


def test_in_domain_sets_odd_counts_and_every_reason_stand_in_the_report(done):
    results = json.loads((done.results / "final_results.json").read_text())["results"]
    results["data"]["sets"]["samsum"]["in_domain"] = ["highlightsum"]
    results["data"]["sets"]["dialogsum"]["in_domain"] = ["dialogsum"]
    results["data"]["warnings"] = ["xsum/test: 11 rows have text, 12 are expected"]
    facts = results["data"]["sets"]["dialogsum"]["splits"]["train"]
    facts["removed"] = {"too_short": 4, "duplicate": 7, "overlap:samsum/test": 1}
    results["data"]["duplicates"] = [{"of": "dialogsum/train", "with": "dialogsum/train", "rows": 7}]
    metadata = json.loads((done.results / "final_results.json").read_text())["_metadata"]
    final = from_json(FinalResults, results)
    tables = {table.name: table for table in all_tables(final)}
    text = " ".join(summary(final, metadata, list(tables.values())).split())
    assert "SAMSum is in-domain: its training part is inside HighlightSum, which was trained on." in text
    assert "DialogSum is in-domain: its training part was trained on." in text
    assert "Data: xsum/test: 11 rows have text, 12 are expected." in text
    why = {row[:2]: row[2] for row in tables["removed"].rows}
    assert why["dialogsum/train", "too short"] == "4" and why["dialogsum/train", "repeats dialogsum/train"] == "7"
    results["data"]["deduplicate_training"] = False
    kept = next(table for table in all_tables(from_json(FinalResults, results)) if table.name == "removed")
    assert "Repeats that were kept: dialogsum/train 7 of dialogsum/train." in kept.note
