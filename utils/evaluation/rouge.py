"""ROUGE F-measures of many pairs: the numbers of rouge-score with stemming, to the last bit, many times faster.

Where the time goes in rouge-score: Porter stems (cached here: a text set has few distinct words) and the table of the
longest common subsequence (here one big integer a column: Hyyrö, "Bit-parallel LCS-length computation revisited",
AWOCA 2004). tests/test_rouge.py holds every metric against `rouge_scorer.RougeScorer`.

rougeL sees a summary as one sequence of words. rougeLsum compares sentence by sentence, so it needs sentences: a text
with newlines is taken as having one sentence a line (CNN/DM references are like that); any other text, prediction or
reference, is split by `split_sentences`.
"""

from __future__ import annotations

import multiprocessing
import os
import re
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from nltk.stem.porter import PorterStemmer
from numpy.typing import NDArray

METRICS = ("rouge1", "rouge2", "rougeL", "rougeLsum")

# A worker process needs about a second to start, in which one process scores a few thousand pairs.
PAIRS_WORTH_A_PROCESS = 4000

_WORD = re.compile(r"[a-z0-9]+")
_VALID = re.compile(r"^[a-z0-9]+$")
_LONGEST_UNSTEMMED = 3
_stemmer = PorterStemmer()
_stems: dict[str, str] = {}

_SENTENCE_END = re.compile(r"[.!?]+[\"'”’)\]]*(?P<gap>\s+)(?=(?P<next>\S))")
_LAST_WORD = re.compile(r"\S{0,20}$")
_ABBREVIATIONS = frozenset(
    "mr mrs ms dr prof st sen rep gov gen col lt sgt capt rev hon jr sr vs etc inc ltd co corp no fig eq al e.g i.e "
    "u.s u.k u.n a.m p.m jan feb mar apr jun jul aug sep sept oct nov dec".split()
)


def rouge_scores(
    predictions: Sequence[str], references: Sequence[str], *, processes: int | None = None
) -> dict[str, NDArray[np.float64]]:
    """F-measures in [0, 1] of each pair: {metric: float64 [pairs]} for rouge1, rouge2, rougeL and rougeLsum.

    Equal to `RougeScorer(METRICS, use_stemmer=True).score(reference, prediction)`, rougeLsum to the same call on the
    texts with their sentences on lines (`split_sentences`). An empty text scores 0.
    processes: at most this many worker processes; None: one per core. Short lists stay in this process.
    Raises ValueError if the lists differ in length.
    """
    if len(predictions) != len(references):
        raise ValueError(f"{len(predictions)} predictions for {len(references)} references")
    workers = min(processes or _cores(), len(predictions) // PAIRS_WORTH_A_PROCESS)
    pairs = list(zip(predictions, references, strict=True))
    if workers <= 1:
        table = _score_pairs(pairs)
    else:
        # spawn: a fork would copy torch's locks in whatever state its threads hold them.
        size = -(-len(pairs) // workers)
        parts = [pairs[start : start + size] for start in range(0, len(pairs), size)]
        with multiprocessing.get_context("spawn").Pool(len(parts)) as pool:
            table = np.concatenate(pool.map(_score_pairs, parts, chunksize=1))
    return {metric: np.ascontiguousarray(table[:, column]) for column, metric in enumerate(METRICS)}


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
        word = _LAST_WORD.search(text, max(start, match.start() - 20), match.start())[0].lstrip("\"'“‘([").lower()
        initial = len(word) == 1 and word.isalpha() and match[0][0] == "."
        if not word or not (match["next"].islower() or word in _ABBREVIATIONS or initial):
            sentences.append(text[start : match.start("gap")])
            start = match.end()
    if text[start:]:
        sentences.append(text[start:])
    return sentences


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _score_pairs(pairs: Sequence[tuple[str, str]]) -> NDArray[np.float64]:
    """F-measures [pairs, 4] in the order of METRICS."""
    return np.array([_score(prediction, reference) for prediction, reference in pairs], dtype=np.float64).reshape(-1, 4)


def _score(prediction: str, reference: str) -> tuple[float, float, float, float]:
    # A sentence break is never inside a word, so the words of the text are those of its sentences in a row.
    candidate_sentences = [words for words in map(_tokenize, split_sentences(prediction)) if words]
    target_sentences = [words for words in map(_tokenize, split_sentences(reference)) if words]
    candidate = [word for words in candidate_sentences for word in words]
    target = [word for words in target_sentences for word in words]
    if not candidate or not target:
        return 0.0, 0.0, 0.0, 0.0
    longest = _lcs_columns(_positions(target), candidate, len(target))[-1]
    lcs = len(target) - longest.bit_count()
    if len(candidate_sentences) == len(target_sentences) == 1:
        union = lcs
    else:
        union = _union_hits(target_sentences, candidate_sentences, Counter(target), Counter(candidate))
    return (
        _f_measure(_overlap(Counter(target), Counter(candidate)), len(candidate), len(target)),
        _f_measure(
            _overlap(Counter(pairwise(target)), Counter(pairwise(candidate))),
            max(len(candidate) - 1, 1),
            max(len(target) - 1, 1),
        ),
        _f_measure(lcs, len(candidate), len(target)),
        _f_measure(union, len(candidate), len(target)),
    )


def _tokenize(text: str) -> list[str]:
    """Lower-case words of letters and digits, stemmed beyond three characters: rouge-score's default tokenizer."""
    words = []
    for word in _WORD.findall(text.lower()):
        stem = _stems.get(word)
        if stem is None:
            stem = _stemmer.stem(word) if len(word) > _LONGEST_UNSTEMMED else word
            _stems[word] = stem = stem if _VALID.match(stem) else ""
        if stem:
            words.append(stem)
    return words


def _overlap(target: Counter, candidate: Counter) -> int:
    return sum(min(count, candidate[gram]) for gram, count in target.items() if gram in candidate)


def _f_measure(hits: int, candidate: int, target: int) -> float:
    precision, recall = hits / candidate, hits / target
    # The order of operations is rouge-score's, or the last bit would differ.
    return 2 * precision * recall / (precision + recall) if hits else 0.0


def _positions(target: Sequence[str]) -> dict[str, int]:
    """For each word of `target` an integer whose bit i says that target[i] is that word."""
    positions: dict[str, int] = {}
    for i, word in enumerate(target):
        positions[word] = positions.get(word, 0) | 1 << i
    return positions


def _lcs_columns(positions: dict[str, int], candidate: Sequence[str], length: int) -> list[int]:
    """The columns of the LCS table, one integer for each prefix of `candidate` (the empty one included).

    Bit i of column j is 0 where table[i + 1][j] = table[i][j] + 1: the LCS of the first i target words and the first
    j candidate words is the number of zeros among bits 0..i−1 (Hyyrö 2004, figure 3).
    """
    mask = (1 << length) - 1
    column = mask
    columns = [column]
    for word in candidate:
        matches = positions.get(word)
        if matches is not None:
            hits = column & matches
            column = ((column + hits) | (column - hits)) & mask
        columns.append(column)
    return columns


def _lcs_members(target: Sequence[str], positions: dict[str, int], candidate: Sequence[str]) -> set[int]:
    """Indices of `target` on the longest common subsequence that rouge-score's backtracking picks among equals.

    It goes diagonally on a match, else left where table[i][j − 1] > table[i − 1][j], else up. The comparison holds
    exactly where table[i][j] > table[i − 1][j], which is bit i − 1 of column j being 0.
    """
    columns = _lcs_columns(positions, candidate, len(target))
    members = set()
    i, j = len(target), len(candidate)
    while i and j:
        if target[i - 1] == candidate[j - 1]:
            i -= 1
            j -= 1
            members.add(i)
        elif columns[j] >> (i - 1) & 1:
            i -= 1
        else:
            j -= 1
    return members


def _union_hits(
    targets: Sequence[Sequence[str]],
    candidates: Sequence[Sequence[str]],
    target_counts: Counter,
    candidate_counts: Counter,
) -> int:
    """Hits of the summary-level LCS: Lin, ROUGE (2004), section 3.2, clipped by word counts as in ROUGE 1.5.5."""
    hits = 0
    for target in targets:
        positions = _positions(target)
        union: set[int] = set()
        for candidate in candidates:
            if any(word in positions for word in candidate):
                union |= _lcs_members(target, positions, candidate)
        for i in sorted(union):
            word = target[i]
            if candidate_counts[word] > 0 and target_counts[word] > 0:
                hits += 1
                candidate_counts[word] -= 1
                target_counts[word] -= 1
    return hits
