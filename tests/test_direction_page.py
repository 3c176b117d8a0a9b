"""The hand-worked world of test_direction.py on the page, in the tables and in the summary of a seed."""

from __future__ import annotations

import dataclasses
import html
import json
from pathlib import Path

import pytest

from tests.pipeline_world import Run
from tests.test_direction import CI, hotflip_of, predicted, trigger_sections, triggers_of
from utils.analysis.evaluation_summary import evaluation_results
from utils.analysis.final import FinalResults, Findings
from utils.core.codec import from_json
from utils.reports.examples import Examples
from utils.reports.figures import draw_all
from utils.reports.files import text_files
from utils.reports.html import page as html_page
from utils.reports.tables import all_tables
from utils.reports.verdict import final_results

pytestmark = pytest.mark.slow


def test_page_tables_and_summary_carry_the_hand_worked_answer(done: Run, tmp_path: Path) -> None:
    """The hand-worked figures in the place of a real run's: what a reader sees is what was worked out."""
    envelope = json.loads((done.final / "final_results.json").read_text())
    real, metadata = from_json(FinalResults, envelope["results"]), envelope["_metadata"]
    found = {field.name: getattr(real, field.name) for field in dataclasses.fields(Findings)}
    evaluation, triggers = evaluation_results(predicted(), ["cnn_dm"], **CI), triggers_of(trigger_sections())
    replaced = {"evaluation": evaluation, "hotflip": hotflip_of(copies=4), "uat": triggers, "warnings": []}
    sets = {key: entry for key, entry in real.data.sets.items() if entry.role != "test" or key == "cnn_dm"}
    data = dataclasses.replace(real.data, sets=sets)
    final = final_results(Findings(**found | replaced | {"data": data, "quality_margin": 0.01, "confidence": 0.95}))
    tables = all_tables(final)
    alternative = draw_all(final, tmp_path)
    shown = html.unescape(html_page(final, metadata, tables, tmp_path, alternative, Examples()))
    text = " ".join(text_files(final, metadata, tables)["experiment_summary.txt"].split())
    for sentence in (final.verdict.attack, final.verdict.cost, final.verdict.triggers):
        assert sentence in shown and sentence in text
    for words in (
        "0.0 % on monotonic against 100.0 % on baseline, -100.0 [-100.0, -62.6] points on 12 common examples",
        "ROUGE-L on CNN/DM is not shown to differ from baseline's: -0.2778 [",
        "ROUGE-L changes by -0.050 on monotonic (lead) and by -0.300 on baseline (lead)",
    ):
        assert words in shown and words in text
    rows = {table.name: {row[0]: row for row in table.rows} for table in tables}
    tests = rows["attack_tests"]
    assert tests["worst case success, points"][1:4] == ("-100.0 [-100.0, -62.6]", "< 0.001", "-")
    assert tests["worst case relative drop"][1].startswith("-0.350 [")
    assert tests["random success, points"][1].startswith("+0.0 [") and tests["HotFlip NLL rise"][1].startswith(
        "-1.000 ["
    )
    assert rows["rouge"]["CNN/DM baseline"][3].startswith("0.917") and rows["rouge"]["CNN/DM monotonic"][3].startswith(
        "0.639"
    )
