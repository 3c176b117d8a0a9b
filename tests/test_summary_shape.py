"""A model that cannot summarise is said to be one, first of all doubts; one that can is not."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from utils.analysis.evaluation_summary import evaluation_results
from utils.analysis.records import Prediction
from utils.analysis.results import EvaluationResults
from utils.analysis.summary_shape import loops, sameness, summary_warnings
from utils.analysis.warning_texts import RANKS, ranked, warning

WORDS = [f"word{number}" for number in range(400)]
RNG = np.random.default_rng(0)
REFERENCES = [" ".join(RNG.choice(WORDS, 12, replace=False)) for _ in range(60)]


def evaluation(scores: dict[str, float], texts: dict[str, list[str]], n: int = 60) -> EvaluationResults:
    """Results of models with these mean ROUGE-L and these summaries."""
    rows = []
    for model in ("standard", "baseline", "monotonic"):
        mean = scores.get(model, 0.4)
        for number in range(n):
            value = mean + 0.02 * ((number % 5) - 2)
            text = texts.get(model, REFERENCES)[number]
            rows.append(
                Prediction(
                    dataset="cnn_dm", model=model, id=str(number), prediction=text, reference=REFERENCES[number],
                    rouge1=value, rouge2=value, rougeL=value, rougeLsum=value,
                )
            )  # fmt: skip
    return evaluation_results(rows, ["cnn_dm"], samples=200, seed=0)


def doubts(found: EvaluationResults, lead: float = 0.3) -> dict[str, str]:
    sample: dict[str, Any] = {"lead3": {"rougeL": lead}}
    entry = SimpleNamespace(title="CNN/DM", splits={"test": SimpleNamespace(sampled=sample)})
    raised = summary_warnings(found, SimpleNamespace(sets={"cnn_dm": entry}))
    assert all(doubt.warning == "cannot_summarise" and doubt.rank == 1 for doubt in raised)
    return {doubt.model: doubt.message for doubt in raised}


def test_models_that_summarise_raise_no_doubt() -> None:
    assert doubts(evaluation({}, {})) == {}
    assert doubts(evaluation({"baseline": 0.305}, {})) == {}


def test_there_is_no_margin_below_the_first_three_sentences() -> None:
    assert set(doubts(evaluation({"baseline": 0.29}, {}))) == {"baseline"}


def test_each_sign_is_seen_and_names_its_model() -> None:
    said = doubts(evaluation({"monotonic": 0.08}, {}), lead=0.2)
    assert set(said) == {"monotonic"}
    assert "ROUGE-L 0.080 on CNN/DM, 0.200 for the first three sentences of each text" in said["monotonic"]
    broken = ["the same broken words of all of them"] * 55 + REFERENCES[55:]  # a few differ: near-identical is enough
    said = doubts(evaluation({}, {"baseline": broken}))
    assert set(said) == {"baseline"} and "of different texts of CNN/DM share" in said["baseline"]
    said = doubts(evaluation({}, {"baseline": [""] * 15 + REFERENCES[15:]}))
    assert set(said) == {"baseline"} and "15 of 60 summaries of CNN/DM are empty" in said["baseline"]
    loop = [f"{text.split()[0]} of the of the of the of the" for text in REFERENCES]
    said = doubts(evaluation({}, {"monotonic": loop}))
    assert set(said) == {"monotonic"} and "60 of 60 summaries of CNN/DM repeat most of their words" in said["monotonic"]


def test_a_few_of_them_are_chance() -> None:
    """Of 60, six empty ones are a tenth, the margin; nine are not shown to be more than a tenth (P = 0.12)."""
    assert doubts(evaluation({}, {"baseline": [""] * 9 + REFERENCES[9:]})) == {}
    assert doubts(evaluation({"monotonic": 0.01}, {}, n=19)) == {}  # fewer than 20 examples say nothing


def test_sameness_by_hand() -> None:
    """Three summaries "a b", "a c", "a b": indices 1/3, 1, 1/3; of each with the others: 2/3, 1/3, 2/3. No references
    share a word."""
    found = sameness(["a b", "a c", "a b"], ["x", "y", "z"])
    assert found is not None and found.n == 3 and found.shared == pytest.approx(5 / 9)
    assert found.shared_by_references == 0 and found.sd == pytest.approx(np.std([2 / 3, 1 / 3, 2 / 3], ddof=1))
    both = sameness(["", ""], ["a", "a"])
    assert both is not None and both.shared == both.shared_by_references == 1.0  # two empty texts are the same
    assert sameness(["a"], ["b"]) is None
    assert loops("a b a b a b a") and not loops("a b c d e f a") and not loops("a a a")


def test_it_comes_before_every_other_doubt() -> None:
    kinds = {
        "possibly_masked_gradients/loss": {"rival": "x", "change": 0.1},
        "cannot_summarise": {"reasons": "x"},
        "nothing_attackable": {},
    }
    raised = [
        warning(model, text, n=30, **figures) for model in ("standard", "monotonic") for text, figures in kinds.items()
    ]
    order = [(doubt.model, doubt.warning) for doubt in ranked(raised)]
    assert order[0] == ("monotonic", "cannot_summarise") and order[3] == ("standard", "cannot_summarise")
    assert RANKS["cannot_summarise"] == 1
    surer = [dataclasses.replace(raised[0], p_value=p) for p in (0.04, 0.001)]
    assert [doubt.p_value for doubt in ranked(surer)] == [0.001, 0.04]
