"""Can a model summarise at all? What a look at its summaries tells, before any attack is worth reading.

Signs of one that cannot: ROUGE-L below the first three sentences of the text, the same words for every document, empty
summaries, loops. Each is a one-sided test with a margin, as in attack_warnings.py. Torch-free.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from utils.analysis.attack_warnings import ALPHA, ENOUGH
from utils.analysis.comparisons import AttackWarning
from utils.analysis.results import EvaluationResults, RougeCell, Sameness
from utils.analysis.statistics import exceeds, holm
from utils.analysis.warning_texts import warning
from utils.data.records import DataStatistics

COMPARED = 200  # summaries, evenly spaced, whose words are compared pair by pair
SAME_MARGIN = 0.2  # more shared words than the references of the same documents have
BROKEN_SHARE = 0.1  # of summaries that are empty or loop
FEW_WORDS = 6  # shorter summaries cannot be said to loop


def loops(summary: str) -> bool:
    """Whether more than half of the words are repeats of earlier ones."""
    words = summary.lower().split()
    return len(words) >= FEW_WORDS and len(set(words)) < len(words) / 2


def sameness(summaries: Sequence[str], references: Sequence[str]) -> Sameness | None:
    """Words that summaries of different documents share, and their references; None for fewer than two."""
    if len(summaries) < 2:
        return None
    places = np.unique(np.linspace(0, len(summaries) - 1, COMPARED).round().astype(int))
    own, other = (_shared([texts[place] for place in places]) for texts in (summaries, references))
    more = own - other
    return Sameness(
        n=len(places),
        shared=float(own.mean()),
        shared_by_references=float(other.mean()),
        sd=float(more.std(ddof=1)),
    )


def _shared(texts: Sequence[str]) -> NDArray[np.float64]:
    """Mean Jaccard index of each text's words with every other's, float64 [texts]; two empty texts are the same."""
    words = [set(text.lower().split()) for text in texts]
    place = {word: number for number, word in enumerate(sorted(set[str]().union(*words)))}
    has = np.zeros((len(texts), len(place)), dtype=np.float32)  # [texts, vocabulary], 1 where the text has the word
    for row, found in enumerate(words):
        has[row, [place[word] for word in found]] = 1.0
    both = (has @ has.T).astype(np.float64)
    either = has.sum(axis=1)[:, None] + has.sum(axis=1)[None, :] - both
    index = np.where(either > 0, both / np.maximum(either, 1), 1.0)
    return np.asarray((index.sum(axis=1) - index.diagonal()) / (len(texts) - 1))


@dataclass(frozen=True)
class Sign:
    """One sign that a model cannot summarise, and its one-sided p-value."""

    words: str
    n: int
    p_value: float


def summary_warnings(
    evaluation: EvaluationResults, data: DataStatistics, confidence: float = 0.95
) -> list[AttackWarning]:
    """One doubt for each model with such signs, with all of them; `confidence`: of the intervals in `evaluation`."""
    signs: dict[str, list[Sign]] = {}
    for key, cells in evaluation.datasets.items():
        entry = data.sets[key]
        sample = entry.splits["test"].sampled
        lead = sample["lead3"] if sample is not None else None
        for model, cell in cells.items():
            signs.setdefault(model, []).extend(_signs(cell, entry.title, lead, confidence))
    return [doubt for model, found in signs.items() for doubt in _doubt(model, found)]


def _doubt(model: str, signs: Sequence[Sign]) -> Iterator[AttackWarning]:
    enough = [sign for sign in signs if sign.n >= ENOUGH]
    adjusted = holm({number: sign.p_value for number, sign in enumerate(enough)})
    shown = [(sign, adjusted[number]) for number, sign in enumerate(enough) if adjusted[number] < ALPHA]
    if shown:
        reasons = "; ".join(f"{sign.words} (p {'< 0.001' if p < 0.001 else f'= {p:.3f}'})" for sign, p in shown)
        n, least = max(sign.n for sign, _ in shown), min(p for _, p in shown)
        yield warning(model, "cannot_summarise", n=n, p_value=least, reasons=reasons)


def _signs(cell: RougeCell, title: str, lead: Mapping[str, float] | None, confidence: float) -> Iterator[Sign]:
    n, same = cell.num_examples, cell.sameness
    if lead is not None:
        score, yardstick = cell.rougeL, lead["rougeL"]
        # The bootstrap interval's width is that of the mean; its standard error times sqrt(n) is the deviation.
        spread = (score.upper - score.lower) / (2 * float(stats.norm.ppf((1 + confidence) / 2))) * n**0.5
        words = f"ROUGE-L {score.mean:.3f} on {title}, {yardstick:.3f} for the first three sentences of each text"
        # No margin: whoever takes three sentences without reading them summarises at least as well.
        yield Sign(words, n, exceeds(n, yardstick - score.mean, spread, 0.0))
    if same is not None:
        more = same.shared - same.shared_by_references
        words = (
            f"summaries of different texts of {title} share {same.shared:.0%} of their words, references "
            f"{same.shared_by_references:.0%}, margin {SAME_MARGIN:.0%}"
        )
        yield Sign(words, same.n, exceeds(same.n, more, same.sd, SAME_MARGIN))
    for count, words in ((cell.empty_summaries, "are empty"), (cell.looping_summaries, "repeat most of their words")):
        p = float(stats.binom.sf(count - 1, n, BROKEN_SHARE))
        yield Sign(f"{count} of {n} summaries of {title} {words}, margin {BROKEN_SHARE:.0%}", n, p)
