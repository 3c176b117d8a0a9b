"""Decontamination: find held-out documents in other sets, identical after normalisation or near copies by n-grams.

Normal form: the lowercase words of a document, its first 1,024 (twice what the model reads of it), without speakers'
names before a colon, punctuation and apostrophes: a dialogue is the same whoever is said to speak. Two documents are
*the same* if these are equal. One is a *near copy* of the other if they share at least 30 % of the shorter one's 4-word
sequences, and no fewer than 8 of them; for a few lines, 60 % and no fewer than 5. That is containment, as in Broder
(1997), "On the resemblance and containment of documents", section 2. Shared sequences are counted exactly from an
inverted index, not estimated from a sketch, so nothing above the threshold is missed. What that finds in real text, and
what it misses, stands in docs/data.md.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from utils.core.files import write_json

WORDS_READ = 1024
NGRAM = 4
THRESHOLD, MIN_SHARED = 0.3, 8
SHORT_THRESHOLD, SHORT_SHARED = 0.6, 5  # texts of a few lines: they share fewer, and must share more of them
MAX_DOCUMENTS = 10  # sequences in more held-out documents than this are phrases of the trade: they do not count
METHOD = {
    "words": WORDS_READ,
    "ngram": NGRAM,
    "threshold": THRESHOLD,
    "min_shared": MIN_SHARED,
    "short_threshold": SHORT_THRESHOLD,
    "short_min_shared": SHORT_SHARED,
    "max_documents": MAX_DOCUMENTS,
}

_WORD = re.compile(r"\w+")
_SPEAKER = re.compile(r"^[^\n:]{1,30}:\s|[^\s:]+:(?=\s|$)", re.MULTILINE)
_APOSTROPHES = str.maketrans("", "", "'\u2019")
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)
_SHIFT = np.uint64(29)
_WORD_CODES: dict[str, int] = {}
_MAX_WORD_CODES = 1 << 20  # bounds the memory of a process that sees millions of different words


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
    """The fingerprint of a document; the same on every machine and in every process."""
    text = _SPEAKER.sub(" ", text.lower()).translate(_APOSTROPHES)
    words = [match[0] for match in islice(_WORD.finditer(text), WORDS_READ)]
    digest = hashlib.blake2b(" ".join(words).encode("utf-8", "replace"), digest_size=16).digest()
    if len(words) < NGRAM:
        return Fingerprint(digest, np.zeros(0, dtype=np.uint64))
    codes = np.array([_code(word) for word in words], dtype=np.uint64)
    count = len(codes) - NGRAM + 1
    hashes = np.zeros(count, dtype=np.uint64)
    for offset in range(NGRAM):
        hashes = hashes * _MULTIPLIER + codes[offset : offset + count]
        hashes ^= hashes >> _SHIFT
    return Fingerprint(digest, np.unique(hashes))


def _code(word: str) -> int:
    code = _WORD_CODES.get(word)
    if code is None:
        if len(_WORD_CODES) >= _MAX_WORD_CODES:
            _WORD_CODES.clear()
        code = int.from_bytes(hashlib.blake2b(word.encode("utf-8", "replace"), digest_size=8).digest(), "little")
        _WORD_CODES[word] = code
    return code


class OverlapIndex:
    """Held-out documents by group, searchable for the one that a text overlaps most.

    Groups are added in order of protection: of several matches the group added first wins, then the greatest
    containment. `save` and `open` move an index to other processes through memory-mapped files.
    """

    def __init__(self) -> None:
        self.groups: list[str] = []
        self._ids: list[list[str]] = []
        self._digests: dict[bytes, tuple[int, int]] = {}
        self._sizes = np.zeros(0, dtype=np.int64)  # [documents] sequences of each that count
        self._group_of = np.zeros(0, dtype=np.int64)  # [documents]
        self._first = np.zeros(1, dtype=np.int64)  # [groups + 1] first document of each group
        self._ngrams = np.zeros(0, dtype=np.uint64)  # [postings] sorted
        self._documents = np.zeros(0, dtype=np.int32)  # [postings]

    def add(self, group: str, ids: Sequence[str], fingerprints: Sequence[Fingerprint]) -> None:
        """Add a group of held-out documents."""
        number, start = len(self.groups), len(self._group_of)
        self.groups.append(group)
        self._ids.append(list(ids))
        for position, item in enumerate(fingerprints):
            self._digests.setdefault(item.digest, (number, position))
        sizes = np.array([len(item.ngrams) for item in fingerprints], dtype=np.int64)
        self._group_of = np.concatenate([self._group_of, np.full(len(sizes), number)])
        self._first = np.append(self._first, len(self._group_of))
        ngrams = np.concatenate([self._ngrams, *(item.ngrams for item in fingerprints)])
        owners = np.repeat(np.arange(start, start + len(sizes), dtype=np.int32), sizes)
        order = np.argsort(ngrams, kind="stable")
        self._ngrams = ngrams[order]
        self._documents = np.concatenate([self._documents, owners])[order]
        starts = np.flatnonzero(np.diff(self._ngrams, prepend=self._ngrams[:1] + np.uint64(1)))
        spread = np.diff(starts, append=len(self._ngrams))
        counts = np.repeat(spread <= MAX_DOCUMENTS, spread)
        self._sizes = np.bincount(self._documents[counts], minlength=len(self._group_of))

    def find(self, item: Fingerprint) -> Match | None:
        """The held-out document that `item` is the same as, or a near copy of; None if there is none."""
        exact = self._digests.get(item.digest)
        if exact is not None and exact[0] == 0:
            return self._match(exact[0], exact[1], "exact", 1.0)
        near = self._nearest(item.ngrams)
        if exact is not None and (near is None or exact[0] <= near[0]):
            return self._match(exact[0], exact[1], "exact", 1.0)
        return None if near is None else self._match(near[0], near[1], "near", near[2])

    def _nearest(self, ngrams: np.ndarray) -> tuple[int, int, float] | None:
        left = np.searchsorted(self._ngrams, ngrams, side="left")
        found = left < len(self._ngrams)
        found[found] = self._ngrams[left[found]] == ngrams[found]
        if found.sum() < SHORT_SHARED:
            return None
        left = left[found]
        counts = np.searchsorted(self._ngrams, ngrams[found], side="right") - left
        told = counts <= MAX_DOCUMENTS
        size = len(ngrams) - int((~told).sum())
        left, counts = left[told], counts[told]
        positions = np.repeat(left - np.cumsum(counts) + counts, counts) + np.arange(counts.sum())
        documents, shared = np.unique(self._documents[positions], return_counts=True)
        containment = shared / np.minimum(size, self._sizes[documents])
        near = (containment >= THRESHOLD) & (shared >= MIN_SHARED)
        near |= (containment >= SHORT_THRESHOLD) & (shared >= SHORT_SHARED)
        if not near.any():
            return None
        documents, containment = documents[near], containment[near]
        groups = self._group_of[documents]
        best = np.lexsort((-containment, groups))[0]
        group = int(groups[best])
        return group, int(documents[best] - self._first[group]), float(containment[best])

    def _match(self, group: int, position: int, kind: str, containment: float) -> Match:
        return Match(self.groups[group], self._ids[group][position], kind, round(containment, 4))

    def save(self, directory: Path) -> None:
        """Write the index for `open`."""
        directory.mkdir(parents=True, exist_ok=True)
        for name in ("sizes", "group_of", "first", "ngrams", "documents"):
            np.save(directory / f"{name}.npy", getattr(self, f"_{name}"))
        digests = {digest.hex(): place for digest, place in self._digests.items()}
        write_json(directory / "index.json", {"groups": self.groups, "ids": self._ids, "digests": digests})

    @classmethod
    def open(cls, directory: Path) -> OverlapIndex:
        """The index saved in `directory`, its large parts memory-mapped: processes share them."""
        import json

        index = cls()
        content = json.loads((directory / "index.json").read_text(encoding="utf-8"))
        index.groups, index._ids = content["groups"], content["ids"]
        index._digests = {bytes.fromhex(digest): tuple(place) for digest, place in content["digests"].items()}
        for name in ("sizes", "group_of", "first", "ngrams", "documents"):
            setattr(index, f"_{name}", np.load(directory / f"{name}.npy", mmap_mode="r"))
        return index
