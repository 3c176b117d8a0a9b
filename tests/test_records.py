"""Records to JSON and back; the published schemas are those of the records, and a real run is as they say."""

import copy
import json
from dataclasses import dataclass
from typing import Annotated, Literal

import jsonschema
import pytest

from tests.pipeline_world import ROOT
from utils.analysis.final import FinalResults
from utils.analysis.records import hotflip_row, trigger_row
from utils.analysis.results import PairedTest
from utils.analysis.schema import schemas
from utils.core.codec import Inline, Keys, Range, RecordError, from_json, to_json


@dataclass(frozen=True, kw_only=True)
class Inner:
    share: Annotated[float, Range(0, 1), "a share"]
    pair: tuple[float, int]
    note: str | None = None


@dataclass(frozen=True, kw_only=True)
class Outer:
    models: Annotated[dict[str, Inner], Inline, Keys(("a", "b"), required=("a",))]
    kind: Literal["x", "y"]
    numbers: list[int | None]
    unknown: float | None


GOOD = {
    "a": {"share": 0.5, "pair": [1.5, 2]},
    "b": {"share": 1, "pair": [0.0, 0], "note": "n"},
    "kind": "x",
    "numbers": [1, None],
    "unknown": None,
}


def test_a_record_survives_json():
    record = from_json(Outer, json.loads(json.dumps(GOOD)))
    assert record == Outer(
        models={"a": Inner(share=0.5, pair=(1.5, 2)), "b": Inner(share=1, pair=(0.0, 0), note="n")},
        kind="x",
        numbers=[1, None],
        unknown=None,
    )
    assert to_json(record) == GOOD  # what is None by default is left out, what has no default is written


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        (("a", "shar"), 1, "a.shar is not a key of Inner"),
        (("a", "share"), None, "a.share: null, expected float"),
        (("a", "share"), 1.5, "a.share: 1.5, expected 0 to 1"),
        (("a", "share"), True, "a.share: True, expected float"),
        (("a", "pair"), [1.0], "a.pair: 1 entries, expected 2"),
        (("a", "note"), 3, "a.note: 3, expected str"),
        (("c",), {}, "c: unknown key, expected one of a, b"),
        (("kind",), "z", "kind: 'z', expected one of 'x', 'y'"),
        (("numbers",), [1, 2.0], "numbers[1]: 2.0, expected int"),
        (("numbers",), "12", "numbers: '12', expected a list"),
        (("b",), [], "b: [], expected an object"),
    ],
)
def test_what_is_not_as_the_record_says_is_named(path, value, words):
    data = copy.deepcopy(GOOD)
    part = data
    for name in path[:-1]:
        part = part[name]
    part[path[-1]] = value
    with pytest.raises(RecordError, match=words.replace("[", r"\[").replace("]", r"\]")):
        from_json(Outer, data)


@pytest.mark.parametrize("gone", ["a", "kind", "unknown"])
def test_a_key_that_is_missing_is_named(gone):
    with pytest.raises(RecordError, match=f"^file.{gone} is missing"):
        from_json(Outer, {name: value for name, value in GOOD.items() if name != gone}, "file")


def test_inherited_fields_come_first():
    assert list(to_json(from_json(PairedTest, {
        "n": 1, "mean_a": 0.0, "mean_b": 1.0, "difference": 1.0, "lower": 0.0, "upper": 1.0, "p_value": 0.5,
        "cohens_dz": 0.0, "minimum_detectable_difference": None,
    })))[:2] == ["p_value", "n"]  # fmt: skip


# ---- the published schemas -----------------------------------------------------------------------------------------


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
