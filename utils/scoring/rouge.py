"""ROUGE F-measures of many pairs: rouge-score with stemming does the scoring; ours are sentences, stems and processes.

rougeL sees a summary as one sequence of words. rougeLsum compares sentence by sentence, so it needs sentences: a text
with newlines is taken as having one sentence a line (CNN/DM references are like that); any other text, prediction or
reference, is split by `split_sentences`.
"""

from __future__ import annotations

import functools
import multiprocessing
import os
import re
from collections.abc import Sequence

import numpy as np
from nltk.stem.porter import PorterStemmer
from numpy.typing import NDArray
from rouge_score import tokenize
from rouge_score.rouge_scorer import RougeScorer
from rouge_score.scoring import fmeasure
from rouge_score.tokenizers import Tokenizer

from utils.core.names import METRICS

# A worker process takes about two seconds to start (nltk imports scipy), in which one process scores 2,000 pairs of 60
# words; without rougeLsum, whose union of subsequences is most of the time, five times as many.
PAIRS_WORTH_A_PROCESS = 2000

# A run of stops is tried from its first one alone: from each of them, "......" would take quadratic time.
_SENTENCE_END = re.compile(r"(?<![.!?])[.!?]+[\"'”’)\]]*(?P<gap>\s+)(?=(?P<next>\S))")
_LAST_WORD = re.compile(r"\S{0,20}$")
_ABBREVIATIONS = frozenset(
    "mr mrs ms dr prof st sen rep gov gen col lt sgt capt rev hon jr sr vs etc inc ltd co corp no fig eq al e.g i.e "
    "u.s u.k u.n a.m p.m jan feb mar apr jun jul aug sep sept oct nov dec".split()
)


class CachedStemTokenizer(Tokenizer):
    """rouge-score's default tokenizer with stemming, where each distinct word is stemmed once.

    Porter stems are most of rouge-score's time, and a set of texts has few distinct words. Which words are stemmed
    (those beyond three characters) and what counts as a word stay rouge-score's decision.
    """

    def __init__(self) -> None:
        self.stem = functools.cache(PorterStemmer().stem)

    def tokenize(self, text: str) -> list[str]:
        return tokenize.tokenize(text, self)


def rouge_scores(
    predictions: Sequence[str],
    references: Sequence[str],
    *,
    metrics: Sequence[str] = METRICS,
    processes: int | None = None,
) -> dict[str, NDArray[np.float64]]:
    """F-measures in [0, 1] of each pair: {metric: float64 [pairs]}.

    Those of `RougeScorer(metrics, use_stemmer=True).score(reference, prediction)`, rougeLsum of the same call on the
    texts with their sentences on lines (`split_sentences`). An empty text scores 0.
    processes: at most this many worker processes; None: one per core. Short lists stay in this process.
    Raises ValueError if the lists differ in length.
    """
    if len(predictions) != len(references):
        raise ValueError(f"{len(predictions)} predictions for {len(references)} references")
    score = functools.partial(_score_pairs, metrics=tuple(metrics))
    pairs = list(zip(predictions, references, strict=True))
    worth = PAIRS_WORTH_A_PROCESS * (1 if "rougeLsum" in metrics else 5)
    workers = min(processes or _cores(), len(pairs) // worth)
    if workers <= 1:
        table = score(pairs)
    else:
        size = -(-len(pairs) // workers)
        parts = [pairs[start : start + size] for start in range(0, len(pairs), size)]
        # spawn: a fork would copy torch's locks in whatever state its threads hold them.
        with multiprocessing.get_context("spawn").Pool(len(parts)) as pool:
            table = np.concatenate(pool.map(score, parts, chunksize=1))
    return {metric: np.ascontiguousarray(table[:, column]) for column, metric in enumerate(metrics)}


def split_sentences(text: str) -> list[str]:
    """The sentences of `text`: its lines if it has several, else split after `.`, `!` or `?`.

    A stop ends a sentence when the next word does not start in lower case, or when it stands apart (" . ", as models
    trained on tokenised text write it); never after a common abbreviation or a single initial.
    """
    if "\n" in text.strip("\n"):
        return [line for line in text.split("\n") if line]
    sentences: list[str] = []
    start = 0
    for match in _SENTENCE_END.finditer(text):
        # At most 20 characters back, or a text without spaces would be searched anew from every stop.
        last_word = _LAST_WORD.search(text, max(start, match.start() - 20), match.start())
        word = last_word[0].lstrip("\"'“‘([").lower() if last_word else ""
        initial = len(word) == 1 and word.isalpha() and match[0][0] == "."
        if not word or not (match["next"].islower() or word in _ABBREVIATIONS or initial):
            sentences.append(text[start : match.start("gap")])
            start = match.end()
    if text[start:]:
        sentences.append(text[start:])
    return sentences


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@functools.cache
def _scorer(metrics: tuple[str, ...]) -> RougeScorer:
    """One scorer a process and choice of metrics: it keeps the stems of all texts that it has seen."""
    return RougeScorer(metrics, tokenizer=_tokenizer())


@functools.cache
def _tokenizer() -> CachedStemTokenizer:
    return CachedStemTokenizer()


@functools.lru_cache(maxsize=20_000)  # a reference is scored against, and a summary repeated, a hundred times
def _tokens(text: str) -> list[str]:
    return _tokenizer().tokenize(text)


def lcs_length(first: Sequence[str], second: Sequence[str]) -> int:
    """Length of the longest common subsequence, a row of the table at a time as the bits of one integer.

    Bit i of `row` is 0 where the table rises from column i to i + 1 (Hyyrö 2004, "Bit-parallel LCS-length computation
    revisited"). rouge-score fills the whole table in Python, which is four fifths of its time.
    """
    places: dict[str, int] = {}
    for place, word in enumerate(first):
        places[word] = places.get(word, 0) | 1 << place
    full = row = (1 << len(first)) - 1
    for word in second:
        match = row & places.get(word, 0)
        row = (row + match) | (row - match)
    return len(first) - (row & full).bit_count()


def _rouge_l(prediction: str, reference: str) -> float:
    words, target = _tokens(prediction), _tokens(reference)
    if not words or not target:
        return 0.0
    length = lcs_length(target, words)
    return float(fmeasure(length / len(words), length / len(target)))


def _score_pairs(pairs: Sequence[tuple[str, str]], metrics: tuple[str, ...]) -> NDArray[np.float64]:
    """F-measures [pairs, metrics] of (prediction, reference) pairs; a module's function, as workers import it."""
    others = tuple(metric for metric in metrics if metric != "rougeL")
    scorer = _scorer(others)
    table = np.zeros((len(pairs), len(metrics)))
    for row, (prediction, reference) in zip(table, pairs, strict=True):
        scores = {"rougeL": _rouge_l(prediction, reference)} if "rougeL" in metrics else {}
        if "rougeLsum" in metrics:
            # A sentence break is never inside a word: the other metrics see the same words with and without them.
            prediction, reference = "\n".join(split_sentences(prediction)), "\n".join(split_sentences(reference))
        if others:
            found = scorer.score(reference, prediction)
            scores |= {metric: found[metric].fmeasure for metric in others}
        row[:] = [scores[metric] for metric in metrics]
    return table
