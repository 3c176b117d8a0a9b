"""Statistics of a split: rows and reasons for removal, lengths, compression, novelty, the lead-3 baseline."""

from __future__ import annotations

import hashlib
import heapq
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from utils.data.cleaning import UNSPACED
from utils.data.records import SideFacts, SplitFacts, TextFacts, Unknown

SAMPLE = 1000  # rows behind the figures that need the whole text
WORD_BINS = (0, 25, 50, 100, 200, 400, 800, 1600, 3200, 6400, 12800)
SUMMARY_WORD_BINS = (0, 5, 10, 20, 40, 60, 80, 120, 160, 240, 320, 640)
HISTOGRAM_PARTS = 8  # bins of the token histograms up to the limit; one more holds what lies beyond it

NOVEL = (1, 2, 3, 4)  # n of the n-grams whose novelty is told

_SENTENCE_END = re.compile(r"(?<=[.!?])\s+|(?<=[。！？])|\n+")
_WORD = re.compile(rf"[{UNSPACED}]|[^\W{UNSPACED}]+")
EXAMPLES = 20  # of the characters that the vocabulary cannot read


def draw_key(seed: int, purpose: str, id_: str) -> int:
    """A 64-bit number for `id_`, uniform and independent between seeds and purposes.

    The k ids with the smallest numbers are a random sample of size k without replacement, whatever order they come
    in (bottom-k sampling), so a sample does not depend on the order of files or on what else is drawn.
    """
    digest = hashlib.blake2b(f"{seed}\0{purpose}\0{id_}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big")


def draw(ids: Sequence[str], size: int, *, seed: int, purpose: str) -> list[int]:
    """Positions, ascending, of a seeded random sample of `size` of `ids` (all of them if there are fewer)."""
    order = sorted(range(len(ids)), key=lambda position: draw_key(seed, purpose, ids[position]))
    return sorted(order[:size])


class SplitStatistics:
    """Counts for one split, a row at a time; `result` is JSON-ready."""

    def __init__(self, *, max_input_length: int, max_target_length: int, seed: int) -> None:
        self.limits = {"document": max_input_length, "summary": max_target_length}
        self.seed = seed
        self.raw = 0
        self.removed: Counter[str] = Counter()
        self.repeated = 0  # rows whose document stands earlier in the same kind of split, removed or not
        self.kept = 0
        self.words: dict[str, Counter[int]] = {"document": Counter(), "summary": Counter()}
        self.tokens: dict[str, Counter[int]] = {"document": Counter(), "summary": Counter()}
        self.compression = 0.0
        self.several_references = 0
        self.noticed: Counter[str] = Counter()  # rows or characters or tokens, by field of TextFacts
        self.unreadable: Counter[str] = Counter()
        self._sample: list[tuple[int, str, str, str]] = []

    def remove(self, reason: str) -> None:
        """Count a row that was dropped."""
        self.raw += 1
        self.removed[reason] += 1

    def keep(
        self, words: tuple[int, int], tokens: tuple[int, int], facts: TextFacts | None = None, references: int = 1
    ) -> None:
        """Count a row that stays: words and tokens of its document and of its summary, what is noticed of its text."""
        self.raw += 1
        self.kept += 1
        for side, word_count, token_count in zip(("document", "summary"), words, tokens, strict=True):
            self.words[side][word_count] += 1
            self.tokens[side][min(token_count, self.limits[side] + 1)] += 1
        self.compression += words[0] / max(words[1], 1)
        self.several_references += references > 1
        if facts:
            for name in ("summary_longer", "identical", "written_list", "characters", "tokens", "unknown_tokens"):
                self.noticed[name] += getattr(facts, name)
            self.unreadable.update(facts.unreadable)

    def wants(self, id_: str) -> bool:
        """Whether the texts of this row belong into the sample as it stands."""
        return len(self._sample) < SAMPLE or -draw_key(self.seed, "statistics", id_) > self._sample[0][0]

    def sample(self, id_: str, document: str, summary: str) -> None:
        """Put the clean texts of a row into the sample (call it if `wants`)."""
        item = (-draw_key(self.seed, "statistics", id_), id_, document, summary)
        if len(self._sample) < SAMPLE:
            heapq.heappush(self._sample, item)
        else:
            heapq.heapreplace(self._sample, item)

    def result(self) -> SplitFacts:
        """Everything counted. `usable`: rows with text; `kept`: those that were also no repeat and no overlap."""
        unusable = sum(self.removed[reason] for reason in ("empty_document", "empty_summary", "too_short"))
        facts = SplitFacts(
            raw=self.raw,
            usable=self.raw - unusable - self.removed["not_drawn"],
            kept=self.kept,
            removed=dict(sorted(self.removed.items())),
            repeated_documents=self.repeated,
            several_references=self.several_references,
        )
        if not self.kept:
            return facts
        return replace(
            facts,
            document=self._side("document", WORD_BINS),
            summary=self._side("summary", SUMMARY_WORD_BINS),
            compression=self.compression / self.kept,
            summary_longer=self.noticed["summary_longer"] / self.kept,
            identical=self.noticed["identical"] / self.kept,
            written_lists=self.noticed["written_list"] / self.kept,
            unknown=Unknown(
                characters=self.unreadable.total() / max(1, self.noticed["characters"]),
                tokens=self.noticed["unknown_tokens"] / max(1, self.noticed["tokens"]),
                examples="".join(character for character, _ in self.unreadable.most_common(EXAMPLES)),
            ),
            sampled=self._of_sample(),
        )

    def _side(self, side: str, bins: tuple[int, ...]) -> SideFacts:
        limit = self.limits[side]
        return SideFacts(
            words=_lengths(self.words[side], bins),
            tokens=_lengths(self.tokens[side], token_bins(limit), cut=True),
            token_limit=limit,
            share_truncated=self.tokens[side][limit + 1] / self.kept,
        )

    def _of_sample(self) -> dict[str, Any]:
        rows = sorted(self._sample, key=lambda item: item[1])
        shares = [novel_ngrams(document, summary) for _, _, document, summary in rows]
        novel = {str(n): _mean(share[n] for share in shares) for n in NOVEL}
        alike = Counter(summary for *_, summary in rows).most_common(1)[0][1]
        return {"rows": len(rows), "novel_ngrams": novel, "lead3": lead3_rouge(rows), "same_summary": alike / len(rows)}


def token_bins(limit: int) -> tuple[int, ...]:
    """Lower edges of the token histogram: equal parts up to the limit, then everything beyond it."""
    return (*(1 + part * limit // HISTOGRAM_PARTS for part in range(HISTOGRAM_PARTS)), limit + 1)


def novel_ngrams(document: str, summary: str) -> dict[int, float | None]:
    """Share, in [0, 1], of the summary's different n-grams that the document does not have, by n; None without any.

    As See, Liu and Manning (2017), "Get To The Point", figure 6, count them.
    """
    source, target = _words(document), _words(summary)
    shares: dict[int, float | None] = {}
    for n in NOVEL:
        inside = set(_ngrams(target, n))
        # difference() walks through the document's sequences without keeping them: it has a hundred times as many.
        shares[n] = len(inside.difference(_ngrams(source, n))) / len(inside) if inside else None
    return shares


def lead3(document: str) -> str:
    """The first three sentences (or lines: turns of a dialogue), one a line."""
    return "\n".join([part for part in _SENTENCE_END.split(document) if part.strip()][:3])


def lead3_rouge(rows: Sequence[tuple[int, str, str, str]]) -> dict[str, float]:
    """Mean ROUGE F (in [0, 1]) of the first three sentences as a summary: what copying earns on these rows."""
    from utils.scoring.rouge import rouge_scores

    scores = rouge_scores([lead3(row[2]) for row in rows], [row[3] for row in rows], processes=1)
    return {metric: float(np.mean(values)) for metric, values in scores.items()}


def _words(text: str) -> list[str]:
    return _WORD.findall(text.lower())


def _ngrams(words: Sequence[str], n: int) -> Iterator[tuple[str, ...]]:
    return zip(*(words[offset:] for offset in range(n)), strict=False)


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def _lengths(counts: Counter[int], edges: Sequence[int], *, cut: bool = False) -> dict[str, Any]:
    values = np.array(sorted(counts), dtype=np.int64)
    weights = np.array([counts[value] for value in values.tolist()], dtype=np.int64)
    cumulative = np.cumsum(weights)
    quantile = {
        name: int(values[np.searchsorted(cumulative, share * cumulative[-1])])
        for name, share in (("min", 0.0), ("median", 0.5), ("p90", 0.9), ("max", 1.0))
    }
    bins = np.bincount(np.searchsorted(edges, values, side="right") - 1, weights=weights, minlength=len(edges))
    result: dict[str, Any] = {**quantile, "histogram": {"from": list(edges), "rows": [int(rows) for rows in bins]}}
    if cut:  # lengths beyond the limit are not known one by one: they count as limit + 1, and there is no mean
        del result["max"]
    else:
        result["mean"] = float((values * weights).sum() / cumulative[-1])
    return result
