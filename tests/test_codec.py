"""Records to JSON and back: what is unknown, missing or out of bounds is named."""

import copy
import json
from dataclasses import dataclass
from typing import Annotated, Literal

import pytest

from utils.analysis.comparisons import PairedTest
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
        "sd": 0.0, "cohens_dz": 0.0, "minimum_detectable_difference": None,
    })))[:2] == ["p_value", "n"]  # fmt: skip
