"""Some members of the attack suite attack a sample: verification asks for that many rows of the same."""

from types import SimpleNamespace
from typing import Any

import pytest

from utils.verification.records import completeness

FULL, SAMPLE = list("abcd"), list("ab")


def problems(metric_examples: int = 2, **sections: list[str]) -> list[str]:
    """What is wrong with sections of `hotflip_records.jsonl` (name with __ for /: ids); four were drawn."""
    settings = {"TEST_DATASETS": [], "ATTACK_DATASET": "cnn_dm", "HOTFLIP_METRIC_EXAMPLES": metric_examples}
    run: Any = SimpleNamespace(
        parts={
            "data": {"results": {"prepared": {"attack_evaluate": {"rows": 4}}}},
            "evaluation": {"_metadata": {"missing_datasets": {}}},
        },
        metadata={"settings": settings, "full_test_sets": True},
        models=["baseline", "monotonic"],
    )
    ids = {name.replace("__", "/"): rows for name, rows in sections.items()}
    evidence: Any = SimpleNamespace(ids={"hotflip_records.jsonl": ids})
    return list(completeness(run, evidence))


WHOLE = {"attack__baseline": FULL, "attack__monotonic": FULL, "metric__baseline": SAMPLE, "metric__monotonic": SAMPLE}


@pytest.mark.parametrize("part", ["own_output", "metric", "word_importance", "random_metric", "protected", "typo"])
def test_a_sample_is_whole_with_as_many_rows_as_the_setting_says(part):
    sample = {f"{part}__baseline": SAMPLE, f"{part}__monotonic": SAMPLE}
    attack = {"attack__baseline": FULL, "attack__monotonic": FULL}
    assert not problems(**attack, **sample)
    assert not problems(metric_examples=500, **attack, **dict.fromkeys(sample, FULL))
    assert problems(metric_examples=0, **attack, **sample)  # 0: all of them


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"metric__monotonic": ["a"]}, "metric/monotonic has 1 rows"),
        ({"metric__baseline": ["a"], "metric__monotonic": ["a"]}, "metric/baseline has 1 rows"),
        ({"metric__monotonic": ["a", "c"]}, "metric/monotonic"),
        ({"metric__monotonic": ["a", "a"]}, "metric/monotonic a is there 2 times"),
        ({"attack__baseline": SAMPLE}, "attack/baseline has 2 rows"),
    ],
)
def test_a_row_that_is_gone_twice_there_or_of_another_example_is_named(changed, named):
    assert any(named in line for line in problems(**WHOLE | changed))
