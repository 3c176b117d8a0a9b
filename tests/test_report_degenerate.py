"""Reports of results with nothing in them: every table, figure, card, text and page of experiments that came to little.

The results are made by the analysis from records, not written by hand: what it gives for an empty experiment is what
the report must be able to show.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import random
from typing import Any

import pytest

from tests.test_direction import CI, MODELS, THRESHOLD, hotflip_record
from utils.analysis.final import FinalResults
from utils.analysis.hotflip_summary import hotflip_results
from utils.analysis.records import RandomTrigger, TriggerFound, TriggerRecord, TriggerSearch
from utils.analysis.sections import SectionKey
from utils.analysis.trigger_summary import trigger_results
from utils.core.codec import from_json, to_json
from utils.reports.examples import Examples
from utils.reports.figures import draw_all
from utils.reports.files import text_files
from utils.reports.html import page
from utils.reports.tables import all_tables
from utils.reports.verdict import attack_sentence, triggers_sentence

LEARNED = TriggerFound(trigger_ids=[7], trigger_text="of", dev_gain=1.0, dev_rouge_change=-0.1)
CHOSEN: dict[str, Any] = {"dev_rouge_change": -0.1, "chosen_from": "search", "by_loss": LEARNED}
RANDOM_TRIGGER = RandomTrigger(
    trigger_ids=[8], trigger_text="r", dev_gain=0, dev_rouge_change=0.0, dev_gain_mean=0, draws=1
)

pytestmark = pytest.mark.slow

DROPS = {"all": 1.0, "none": 0.0}  # every attack succeeds, no attack does


def hotflip_of(attackable: set[str], examples: int, drop: float) -> Any:
    def rows(method: str, model: str) -> list[Any]:
        records = []
        for number in range(examples):
            row = hotflip_record(model, number, relative_drop=drop, success=drop >= THRESHOLD)
            if model not in attackable:
                row = type(row)(section=f"{method}/{model}", id=row.id, model=model, method="x", skipped="no room")
            records.append(row)
        return records

    sections: dict[SectionKey, list[Any]] = {}
    for model, target in itertools.product(MODELS, MODELS):
        sections[SectionKey("attack", model)] = rows("attack", model)
        if target != model:
            sections[SectionKey("transfer", target, source=model)] = rows("transfer", target)
    return hotflip_results(sections, MODELS, threshold=THRESHOLD, **CI)


def triggers_of(attackable: set[str], examples: int, drop: float, types: list[str]) -> Any:
    def rows(kind: str, source: str, target: str) -> list[TriggerRecord]:
        known: dict[str, Any] = {"model": target, "source": source, "trigger_type": kind}
        if target not in attackable:
            return [TriggerRecord(id=str(n), skipped="no room", **known) for n in range(examples)]
        figures = {f"clean_{m}": 0.5 for m in ("rouge1", "rouge2", "rougeL")}
        figures |= {f"attacked_{m}": 0.5 * (1 - drop) for m in ("rouge1", "rouge2", "rougeL")}
        return [
            TriggerRecord(
                id=str(n), skipped=None, relative_drop=drop, success=drop >= THRESHOLD, clean_loss=1.0,
                attacked_loss=1.0 + drop, loss_increase=drop, **known, **figures,
            )
            for n in range(examples)
        ]  # fmt: skip

    sections: dict[SectionKey, list[Any]] = {}
    for kind, model in itertools.product(types, MODELS):
        sections[SectionKey("search", model, kind)] = [
            TriggerSearch(
                trigger_ids=[7], trigger_text="of", dev_gain=1.0, **CHOSEN, trigger_type=kind, source=model,
                method="gradient", restarts=[], num_dev=1, iterations=1, halfway_trigger_ids=[], curve=[],
                converged=True, forward_rows=1, gradient_rows=1, seconds=0.0, random_control=RANDOM_TRIGGER,
            )
        ]  # fmt: skip
        sections[SectionKey("random", model, kind)] = [*rows(kind, model, model)]
        for target in MODELS:
            sections[SectionKey("attack", target, kind, model)] = [*rows(kind, model, target)]
    return trigger_results(sections, MODELS, types, threshold=THRESHOLD, **CI)


NONE_OR_ONE_MISSING = [set(), *({*MODELS} - {model} for model in MODELS), {*MODELS}]
CASES = [
    (attackable, examples, drop, types, missing)
    for attackable, examples, drop in itertools.product(NONE_OR_ONE_MISSING, (1, 4), DROPS)
    for types, missing in ((["lead"], False), ([], True))
]


@pytest.mark.parametrize(("attackable", "examples", "drop", "types", "missing"), random.Random(0).sample(CASES, 14))
def test_every_piece_of_the_report_can_be_made(done, tmp_path, attackable, examples, drop, types, missing):
    envelope = json.loads((done.final / "final_results.json").read_text())
    results, metadata = envelope["results"], envelope["_metadata"]
    hotflip = hotflip_of(attackable, examples, DROPS[drop])
    triggers = triggers_of(attackable, examples, DROPS[drop], types)
    results |= {"hotflip": to_json(hotflip), "uat": to_json(triggers), "warnings": []}
    alpha = 1 - results["confidence"]
    results["verdict"] |= {
        "attack": attack_sentence(hotflip, alpha),
        "triggers": triggers_sentence(triggers, alpha),
    }
    if missing:
        results["missing_datasets"] = results["data"]["missing"] = {"samsum": "no such repository"}
        del results["data"]["sets"]["samsum"], results["evaluation"]["samsum"]
        del results["evaluation"]["comparisons"]["samsum"]
    for arm in ("baseline", "monotonic"):  # a training of one epoch without the figures of a GPU
        history = results[f"{arm}_training"]
        history["epochs"] = history["epochs"][:1]
        history.pop("audit", None)
    for model in {*MODELS} - attackable:
        for cell in (results["hotflip"][model], *(results["uat"][model][kind] for kind in types)):
            assert cell["success_rate"] is None and cell["num_attackable"] == 0
    final = from_json(FinalResults, results)
    tables = all_tables(final)
    by_name = {table.name: table for table in tables}
    rows = {row[0]: row for row in by_name["hotflip"].rows}
    for model in MODELS:
        wanted = f"{100 * DROPS[drop]:.1f} %" if model in attackable else "not available"
        assert rows[model][1].startswith(wanted) and len(rows[model]) == 6
    if not types:
        assert not by_name["triggers"].rows
    alternative = draw_all(final, tmp_path)
    files = text_files(final, metadata, tables)
    shown = page(final, metadata, tables, tmp_path, alternative, Examples())
    for arm in ("baseline", "monotonic"):
        card = files[f"models/{arm}/README.md"]
        line = next(line for line in card.splitlines() if "HotFlip on" in line)
        assert ("not available" in line) == (arm not in attackable) and "None" not in card.split("## Results")[1]
        assert ("universal trigger: not available" in card) == (not types or arm not in attackable)
    for text in (shown, *alternative.values(), *(text for name, text in files.items() if "README" not in name)):
        assert not any(word in text.replace("none", "").split() for word in ("None", "nan", "NaN", "[nan,"))
    if not attackable:
        for name in ("hotflip", "hotflip_controls", "hotflip_transfer", "hotflip_budget", "trigger_transfer"):
            assert not any("0.0 %" in cell or "100.0 %" in cell for row in by_name[name].rows for cell in row), name
        assert "The attacks say nothing" in shown and "0.0 % on monotonic" not in shown


def test_the_dimensions_are_those_of_the_records() -> None:
    """The cases differ: a generator that makes the same results each time would test nothing."""
    seen = {json.dumps(to_json(hotflip_of(a, n, DROPS[d]).models["baseline"])) for a, n, d, *_ in CASES}
    assert len(seen) >= 5
    assert {field.name for field in dataclasses.fields(hotflip_of(set(), 1, 0.0))} >= {"models", "comparisons"}
