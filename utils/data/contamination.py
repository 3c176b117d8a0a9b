"""Decontamination: find held-out documents in other sets, identical after normalisation or near copies by n-grams.

Normal form: the lowercase words of a document, its first 1,024 (twice what the model reads of it), without speakers'
names before a colon, punctuation and apostrophes: a dialogue is the same whoever is said to speak. Two documents are
*the same* if these are equal. One is a *near copy* of the other if they share at least 30 % of the shorter one's 4-word
sequences, and no fewer than 8 of them; for a few lines, 60 % and no fewer than 5. That is containment, as in Broder
(1997), "On the resemblance and containment of documents", section 2. Shared sequences are counted exactly from an
inverted index, not estimated from a sketch, so nothing above the threshold is missed.

Sequences are weighted by rarity over everything that is compared (held-out documents and a sample of the others): one
in up to 10 documents weighs 1, one in n documents (10 / n)^2. So phrases ("how can I help you") and templates (weather
reports) count ever less, however few of their documents are held out. What that finds in real text, and what it misses,
is in docs/data.md. In scripts without spaces a word is a character and a sequence has 8 of them.
"""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from utils.core.files import write_json
from utils.data.cleaning import UNSPACED

WORDS_READ = 1024
NGRAM = 4
THRESHOLD, MIN_SHARED = 0.3, 8
SHORT_THRESHOLD, SHORT_SHARED = 0.6, 5  # texts of a few lines: they share fewer, and must share more of them
COMMON = 10  # documents: a sequence in more of them is a phrase of the trade and weighs less
LEAST_WEIGHT = 0.01  # below it (more than 100 documents) a sequence is not looked at: it could decide nothing
WEIGHTS = np.minimum(np.float32(1), (COMMON / np.maximum(np.arange(102, dtype=np.float32), 1)) ** 2)  # [documents]
WEIGHTS[WEIGHTS < LEAST_WEIGHT] = 0.0
MIN_WEIGHT = 2.0  # what is shared must weigh this much: two recombinations of one template are no copies
METHOD = {
    "words": WORDS_READ,
    "ngram": NGRAM,
    "threshold": THRESHOLD,
    "min_shared": MIN_SHARED,
    "short_threshold": SHORT_THRESHOLD,
    "short_min_shared": SHORT_SHARED,
    "common_documents": COMMON,
    "min_weight": MIN_WEIGHT,
}

CHARACTERS_READ = 8 * WORDS_READ  # enough for the words of most texts; where it is not, twice as much is read
MARGIN_WORDS = 64  # words near the end of the part that is read may be cut: they must not be among those compared


def _marks() -> str:
    """Combining marks of scripts with spaces, as a character class: Python's \\w leaves Indic vowel signs out."""
    every = (chr(code) for code in range(0x300, 0x3000) if unicodedata.category(chr(code)) in ("Mn", "Mc"))
    return "".join(mark for mark in every if not re.match(f"[{UNSPACED}]", mark)) + "\u200c\u200d"


_WORD = re.compile(r"\w+")
_UNIT = re.compile(rf"[{UNSPACED}]|(?:[^\W{UNSPACED}]|[{_marks()}])+")
_NOT_PLAIN = re.compile(f"[{UNSPACED}{_marks()}]")
# A name up to a colon at the start of a line, or a word up to a colon. The look-behind lets a match begin only where a
# word does: without it, every position of a run without spaces would be tried, which is quadratic.
_SPEAKER = re.compile(r"^[^\n:]{1,30}:\s|(?<![^\s:])[^\s:]+:(?=\s|$)", re.MULTILINE)
_APOSTROPHES = str.maketrans("", "", "'\u2019")
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)
_SHIFT = np.uint64(29)
_MAX_WORD_CODES = 1 << 20  # bounds the memory of a process that sees millions of different words
POSTINGS_AT_A_TIME = 1 << 20  # what is weighed in one step: bounds the arrays that this takes


class _WordCodes(dict[str, int]):
    """A 64-bit hash of each word, computed once: a look-up costs no Python call."""

    def __missing__(self, word: str) -> int:
        if len(self) >= _MAX_WORD_CODES:
            self.clear()
        code = int.from_bytes(hashlib.blake2b(word.encode("utf-8", "replace"), digest_size=8).digest(), "little")
        self[word] = code
        return code


_WORD_CODES = _WordCodes()


@dataclass(frozen=True)
class Fingerprint:
    """What is compared of a document: `digest` (16 bytes) of its normal form, `ngrams` (uint64, sorted, unique)."""

    digest: bytes
    ngrams: np.ndarray


@dataclass(frozen=True)
class Match:
    """The held-out document that another overlaps most: its group ("samsum/test"), id, and how (exact or near)."""

    group: str
    id: str
    kind: str
    containment: float


def fingerprint(text: str) -> Fingerprint:
    """The fingerprint of a document; the same on every machine and in every process. Linear in the text's length."""
    words, spaced = _first_words(text)
    normal = " ".join(words) or text.lower()  # a text of signs alone is the same as itself, not as any other
    digest = hashlib.blake2b(normal.encode("utf-8", "replace"), digest_size=16).digest()
    if len(words) < NGRAM:
        return Fingerprint(digest, np.zeros(0, dtype=np.uint64))
    codes = np.fromiter(map(_WORD_CODES.__getitem__, words), dtype=np.uint64, count=len(words))  # [words]
    count = len(codes) - NGRAM + 1
    # Rolling over the whole document at once: position i mixes words i .. i + 3, one offset a step. [count]
    hashes = np.zeros(count, dtype=np.uint64)
    for offset in range(NGRAM):
        hashes = hashes * _MULTIPLIER + codes[offset : offset + count]
        hashes ^= hashes >> _SHIFT
    if not spaced:
        characters = np.array([len(word) == 1 and word > "\u0e00" for word in words[:count]])
        # Four characters say as much as two words: a sequence that begins with one is mixed with the next four.
        following = np.append(hashes[NGRAM:], np.zeros(min(NGRAM, count), dtype=np.uint64))
        wide = hashes * _MULTIPLIER + following
        hashes = np.where(characters, wide ^ (wide >> _SHIFT), hashes)
        whole = ~characters
        whole[: max(0, count - NGRAM)] = True  # at the end of the document there are no four more
        hashes = hashes[whole]
    return Fingerprint(digest, np.unique(hashes))


def _first_words(text: str) -> tuple[list[str], bool]:
    """The first words of the normal form, without reading more of the text than they need; whether `_WORD` will do."""
    length = CHARACTERS_READ
    while True:
        space = text.find("\n", length) if len(text) > length else -1
        if not 0 <= space <= 2 * length:
            space = text.find(" ", length, 2 * length) if len(text) > length else -1
        part = text if len(text) <= length else text[: space if space >= 0 else 2 * length]
        normal = part.lower()
        if ":" in normal:
            normal = _SPEAKER.sub(" ", normal)
        normal = normal.translate(_APOSTROPHES)
        spaced = normal.isascii() or _NOT_PLAIN.search(normal) is None
        words = (_WORD if spaced else _UNIT).findall(normal)[: WORDS_READ + MARGIN_WORDS]
        if len(words) == WORDS_READ + MARGIN_WORDS or len(part) == len(text):
            return words[:WORDS_READ], spaced
        length *= 2


class OverlapIndex:
    """Held-out documents by group, searchable for the one that a text overlaps most.

    Groups are added in order of protection: of several matches the group added first wins, then the greatest
    containment. `save` and `open` move an index to other processes through memory-mapped files.

    The inverted index is three arrays with a posting for each sequence of each document: `_ngrams` sorted, `_documents`
    the document that the sequence is in, `_counts` the number of documents with it, which gives its weight. The
    postings of one sequence are neighbours, and a binary search finds them. They are 13 bytes each, 30 million at full
    size: so a new group is merged in when it is needed, not sorted with all others, and weighed in parts.
    """

    def __init__(self, others: Iterable[Fingerprint] = ()) -> None:
        """`others`: a sample of the documents that will be compared; it tells which sequences are common there."""
        self.groups: list[str] = []
        self._ids: list[list[str]] = []
        self._digests: dict[bytes, tuple[int, int]] = {}
        self._sizes: np.ndarray = np.zeros(0)  # [documents] weight of all sequences of each
        self._group_of = np.zeros(0, dtype=np.int64)  # [documents]
        self._first = np.zeros(1, dtype=np.int64)  # [groups + 1] first document of each group
        self._ngrams = np.zeros(0, dtype=np.uint64)  # [postings] sorted
        self._documents = np.zeros(0, dtype=np.int32)  # [postings]
        self._counts = np.zeros(0, dtype=np.uint8)  # [postings] held-out and sampled documents with it, up to 101
        self._new: list[tuple[int, list[np.ndarray]]] = []  # first document and sequences of groups not merged yet
        # Of the sample only what several documents share: nineteen of twenty sequences are in one alone, and one
        # document more or less moves no weight that matters.
        every = np.concatenate([np.zeros(0, dtype=np.uint64), *(item.ngrams for item in others)])
        every.sort()
        repeated = every[1:][every[1:] == every[:-1]]
        self._others, again = np.unique(repeated, return_counts=True)  # [shared sequences of the sample]
        self._other_counts = np.minimum(again + 1, len(WEIGHTS)).astype(np.int32)  # documents there with each

    def add(self, group: str, ids: Sequence[str], fingerprints: Sequence[Fingerprint]) -> None:
        """Add a group of held-out documents."""
        number, start = len(self.groups), len(self._group_of)
        self.groups.append(group)
        self._ids.append(list(ids))
        for position, item in enumerate(fingerprints):
            self._digests.setdefault(item.digest, (number, position))
        self._group_of = np.concatenate([self._group_of, np.full(len(fingerprints), number)])
        self._first = np.append(self._first, len(self._group_of))
        self._new.append((start, [item.ngrams for item in fingerprints]))

    def _merge(self) -> None:
        """Put the groups that are new among the sorted postings, and weigh everything again."""
        if not self._new:
            return
        for start, parts in self._new:
            ngrams = np.concatenate([np.zeros(0, dtype=np.uint64), *parts])
            owners = np.repeat(np.arange(start, start + len(parts), dtype=np.int32), [len(part) for part in parts])
            order = np.argsort(ngrams, kind="stable")
            ngrams, owners = ngrams[order], owners[order]
            # Where each new posting goes in the merged arrays: behind the old ones up to it and the new ones before it.
            place = np.searchsorted(self._ngrams, ngrams, side="right") + np.arange(len(ngrams))
            old = np.ones(len(self._ngrams) + len(ngrams), dtype=bool)
            old[place] = False
            self._ngrams = _merged(old, place, self._ngrams, ngrams)
            self._documents = _merged(old, place, self._documents, owners)
        self._new = []
        self._counts = np.zeros(len(self._ngrams), dtype=np.uint8)
        self._sizes = np.zeros(len(self._group_of))
        start = 0
        while start < len(self._ngrams):
            end = min(start + POSTINGS_AT_A_TIME, len(self._ngrams))
            end = int(np.searchsorted(self._ngrams, self._ngrams[end - 1], side="right"))  # never within a sequence
            self._weigh(slice(start, end))
            start = end

    def _weigh(self, part: slice) -> None:
        """Count the documents of each sequence of a part of the postings; add to the sizes of its documents."""
        ngrams = self._ngrams[part]
        # Where a new sequence begins, and over how many postings (documents) it spreads. [sequences]
        begins = np.flatnonzero(np.append(True, ngrams[1:] != ngrams[:-1]))
        spread = np.diff(begins, append=len(ngrams))
        distinct, documents = ngrams[begins], spread.copy()
        low, high = np.searchsorted(self._others, (distinct[0], distinct[-1]))
        others = self._others[low : high + 1]
        place = np.searchsorted(distinct, others)
        known = place < len(distinct)
        known[known] = distinct[place[known]] == others[known]
        documents[place[known]] += self._other_counts[low : high + 1][known]
        counts = np.minimum(documents, len(WEIGHTS) - 1).astype(np.uint8).repeat(spread)
        self._counts[part] = counts
        self._sizes += np.bincount(self._documents[part], weights=WEIGHTS[counts], minlength=len(self._sizes))

    def find(self, item: Fingerprint) -> Match | None:
        """The held-out document that `item` is the same as, or a near copy of; None if there is none."""
        self._merge()
        exact = self._digests.get(item.digest)
        if exact is not None and exact[0] == 0:
            return self._match(exact[0], exact[1], "exact", 1.0)
        near = self._nearest(item.ngrams)
        if exact is not None and (near is None or exact[0] <= near[0]):
            return self._match(exact[0], exact[1], "exact", 1.0)
        return None if near is None else self._match(near[0], near[1], "near", near[2])

    def _nearest(self, ngrams: np.ndarray) -> tuple[int, int, float] | None:
        """(group, position, containment) of the best near copy of a document with these `ngrams` [n]."""
        # The first posting of each sequence, where there is one. Most documents share next to nothing: out at once.
        left = np.searchsorted(self._ngrams, ngrams, side="left")
        known = left < len(self._ngrams)
        known[known] = self._ngrams[left[known]] == ngrams[known]
        if known.sum() < SHORT_SHARED:
            return None
        left, wanted = left[known], ngrams[known]
        weights = WEIGHTS[self._counts[left]]
        size = float(weights.sum()) + len(ngrams) - len(wanted)  # what is in no held-out document weighs 1
        left, wanted, weights = left[weights > 0], wanted[weights > 0], weights[weights > 0]
        counts = np.searchsorted(self._ngrams, wanted, side="right") - left  # [shared] documents with each sequence
        # All postings left[i] .. left[i] + counts[i] - 1 in one array, without a loop: arange counts on through all of
        # them, and each run is shifted to where its sequence begins. [counts.sum()]
        positions = np.repeat(left - np.cumsum(counts) + counts, counts) + np.arange(counts.sum())
        documents, inverse, shared = np.unique(self._documents[positions], return_inverse=True, return_counts=True)
        weight = np.bincount(inverse, weights=np.repeat(weights, counts), minlength=len(documents))  # [documents]
        containment = weight / np.maximum(np.minimum(size, self._sizes[documents]), 1e-9)
        near = (containment >= THRESHOLD) & (shared >= MIN_SHARED)
        near |= (containment >= SHORT_THRESHOLD) & (shared >= SHORT_SHARED)
        near &= weight >= MIN_WEIGHT
        if not near.any():
            return None
        documents, containment = documents[near], np.minimum(containment[near], 1.0)
        groups = self._group_of[documents]
        best = np.lexsort((-containment, groups))[0]  # the first group, in it the greatest containment
        group = int(groups[best])
        return group, int(documents[best] - self._first[group]), float(containment[best])

    def _match(self, group: int, position: int, kind: str, containment: float) -> Match:
        return Match(self.groups[group], self._ids[group][position], kind, round(containment, 4))

    def save(self, directory: Path) -> None:
        """Write the index for `open`, and go on with the written one: its arrays are in memory once."""
        self._merge()
        directory.mkdir(parents=True, exist_ok=True)
        for name in _ARRAYS:
            np.save(directory / f"{name}.npy", getattr(self, f"_{name}"))
        digests = {digest.hex(): place for digest, place in self._digests.items()}
        write_json(directory / "index.json", {"groups": self.groups, "ids": self._ids, "digests": digests})
        self._map(directory)

    @classmethod
    def open(cls, directory: Path) -> OverlapIndex:
        """The index saved in `directory`, its large parts memory-mapped: processes share them. Not for `add`."""
        index = cls()
        content = json.loads((directory / "index.json").read_text(encoding="utf-8"))
        index.groups, index._ids = content["groups"], content["ids"]
        index._digests = {bytes.fromhex(digest): tuple(place) for digest, place in content["digests"].items()}
        index._map(directory)
        return index

    def _map(self, directory: Path) -> None:
        for name in _ARRAYS:
            setattr(self, f"_{name}", np.load(directory / f"{name}.npy", mmap_mode="r"))


def _merged(old: np.ndarray, place: np.ndarray, before: np.ndarray, new: np.ndarray) -> np.ndarray:
    """`before` where `old` is true, `new` at `place`. All [postings], of the type of `before`."""
    both = np.empty(len(old), dtype=before.dtype)
    both[old], both[place] = before, new
    return both


_ARRAYS = ("sizes", "group_of", "first", "ngrams", "documents", "counts")
