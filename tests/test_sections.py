"""Keys of record sections: what is written is what is read, for every kind of section that stages 5 and 6 write."""

from __future__ import annotations

import itertools

import pytest

from utils.analysis.sections import SectionKey
from utils.core.names import ARMS, MODEL_KEYS, TRIGGER_TYPES

# The names that stand in the JSONL files, and that researchers' own scripts filter by.
WRITTEN = {
    "attack/baseline": SectionKey("attack", "baseline"),
    "all_replaced/sign_frozen": SectionKey("all_replaced", "sign_frozen"),
    "transfer/baseline/monotonic": SectionKey("transfer", "monotonic", source="baseline"),
    "search/lead/standard": SectionKey("search", "standard", "lead"),
    "free_search/infix/standard": SectionKey("free_search", "standard", "infix"),
    "random/natural/baseline": SectionKey("random", "baseline", "natural"),
    "attack/tail/baseline/monotonic": SectionKey("attack", "monotonic", "tail", "baseline"),
}


def test_sections_are_called_as_they_always_were() -> None:
    for text, key in WRITTEN.items():
        assert str(key) == text and SectionKey.parse(text) == key


def test_no_two_keys_have_the_same_text() -> None:
    models = dict.fromkeys((*MODEL_KEYS, *ARMS))
    keys = [
        SectionKey(part, model, trigger_type, source)
        for part, model, trigger_type, source in itertools.product(
            ("attack", "transfer"), models, ("", *TRIGGER_TYPES), ("", *models)
        )
    ]
    assert len({str(key) for key in keys}) == len(keys)
    assert [SectionKey.parse(str(key)) for key in keys] == keys


@pytest.mark.parametrize("text", ["", "attack", "attack/", "/baseline", "attack/lead/a/b/c", "transfer/a/b/c", "None"])
def test_what_names_no_section_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="names no section"):
        SectionKey.parse(text)
