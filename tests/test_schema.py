"""The published schemas are those of the records, and a real run is as they say."""

import json

import jsonschema
import pytest

from tests.pipeline_world import ROOT
from utils.analysis.final import FinalResults
from utils.analysis.records import hotflip_row, trigger_row
from utils.analysis.schema import schemas
from utils.core.codec import RecordError, from_json, to_json


def test_the_published_schemas_are_those_of_the_records():
    for name, text in schemas().items():
        message = f"docs/{name} is not what the records say: python -m utils.analysis.schema writes it"
        assert (ROOT / "docs" / name).read_text(encoding="utf-8") == text, message


def validator(name):
    schema = json.loads((ROOT / "docs" / f"{name}.schema.json").read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


def problems(checker, value):
    return [f"{error.json_path}: {error.message[:200]}" for error in checker.iter_errors(value)]


def test_final_results_are_as_documented_and_a_key_that_vanishes_is_noticed(done):
    final, checker = json.loads((done.final / "final_results.json").read_text()), validator("final_results")
    assert not problems(checker, final)
    assert to_json(from_json(FinalResults, final["results"])) == final["results"]
    for path in (
        "results verdict triggers",
        "results evaluation cnn_dm monotonic",
        "results evaluation cnn_dm monotonic rougeL lower",
        "results evaluation comparisons xsum rouge2 minimum_detectable_difference",
        "results evaluation comparisons xsum rouge2 against_standard baseline p_value",
        "results hotflip baseline controls random mean_loss_increase",
        "results hotflip comparisons baseline_vs_monotonic success p_value",
        "results uat monotonic lead converged",
        "results data overlap",
        "_metadata checkpoints monotonic",
    ):
        *parents, last = path.split()
        part = final
        for name in parents:
            part = part[name]
        kept = part.pop(last)
        assert not checker.is_valid(final), path
        if path.startswith("results"):
            with pytest.raises(RecordError, match=last):
                from_json(FinalResults, final["results"])
        part[last] = kept
    for part in (final["results"], final["results"]["verdict"], final["results"]["hotflip"]["baseline"]):
        part["undocumented"] = 1
        assert not checker.is_valid(final)
        with pytest.raises(RecordError, match="undocumented"):
            from_json(FinalResults, final["results"])
        del part["undocumented"]


@pytest.mark.parametrize(
    ("name", "kind", "fields"),
    [
        ("hotflip_records", hotflip_row, {"attack/": "method", "transfer/": "skipped", "long/": "id"}),
        ("uat_records", trigger_row, {"attack/": "source", "search/": "dev_gain", "free_search/": "converged"}),
    ],
)
def test_every_row_of_the_attacks_is_as_documented(done, name, kind, fields):
    rows = [json.loads(line) for line in (done.final / f"{name}.jsonl").read_text().splitlines()]
    checker, looked_at = validator(name), set()
    for row in rows:
        assert to_json(from_json(kind(row["section"]), row)) == row
        first = row["section"].partition("/")[0] + "/"
        if first in looked_at:
            continue  # one row of each kind: the validator takes its time
        looked_at.add(first)
        assert not problems(checker, row), row["section"]
        assert not checker.is_valid(row | {"undocumented": 1})
        gone = fields.get(first, "id")
        assert not checker.is_valid({key: value for key, value in row.items() if key != gone}), (first, gone)
    assert set(fields) <= looked_at


def test_fields_of_one_name_mean_the_same_in_both_files(done):
    attacks = {
        name: [json.loads(line) for line in (done.final / f"{name}_records.jsonl").read_text().splitlines()]
        for name in ("hotflip", "uat")
    }
    shared = {"section", "id", "model", "skipped", "clean_rougeL", "attacked_rougeL", "relative_drop", "success",
              "clean_loss", "attacked_loss", "loss_increase", "clean_prediction", "attacked_prediction",
              "reference", "typable"}  # fmt: skip
    for rows in attacks.values():
        row = next(row for row in rows if row["section"].startswith("attack/") and row["skipped"] is None)
        assert shared <= set(row) and isinstance(row["clean_rougeL"], float)
