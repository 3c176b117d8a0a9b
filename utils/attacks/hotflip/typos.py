"""Typing errors instead of other words: one edit inside a word, chosen by the summary that it leads to.

A reader still understands the text, so a summary that falls apart is the model's fault. The edits are those of
DeepWordBug (Gao et al. 2018): two neighbouring letters swapped, a letter left out, put in, or replaced.
"""

from __future__ import annotations

import re
import string
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from utils.attacks.context import AttackContext
from utils.attacks.encoding import EncodedText
from utils.attacks.hotflip.metric_search import MetricSettings, MetricTrajectory
from utils.attacks.hotflip.proposals import Flip, State

WORD = re.compile(r"[^\W\d_]{4,}")  # letters alone; in shorter words one edit is another word


@dataclass(frozen=True)
class Typo(Flip):
    """`text` instead of the word number `position` of the document; `new` is a checksum of it, no token."""

    text: str = ""


@dataclass(eq=False)
class TypedState(State):
    """A document with typing errors: `ids` are what the model reads of it."""

    context: AttackContext | None = None
    document: str = ""
    spans: list[tuple[int, int]] = field(default_factory=list)  # of the words that may change, in `document`

    @classmethod
    def of(cls, context: AttackContext, item: EncodedText) -> TypedState:
        """The unattacked document; only words that the model reads whole may change."""
        end = item.spans[len(item.attackable) - 1][1] if item.attackable else 0
        spans = [match.span() for match in WORD.finditer(item.document) if match.end() <= end]
        return cls(np.asarray(item.ids, dtype=np.int64), 0.0, context=context, document=item.document, spans=spans)

    def child(self, flip: Flip, loss: float) -> TypedState:
        """This state with one more typing error."""
        assert isinstance(flip, Typo) and self.context is not None
        first, last = self.spans[flip.position]
        longer = len(flip.text) - (last - first)
        spans = [(a + longer * (a > first), b + longer * (b >= last)) for a, b in self.spans]
        document = self.document[:first] + flip.text + self.document[last:]
        limit = self.context.max_input_length
        ids = self.context.tokenizer(self.context.prefix + document, truncation=True, max_length=limit)["input_ids"]
        return TypedState(np.asarray(ids, dtype=np.int64), loss, (*self.flips, flip), (*self.gains, 0.0),
                          context=self.context, document=document, spans=spans)  # fmt: skip


class TypoProposer:
    """One typing error in each word to measure it, then several in one word."""

    def __init__(self, settings: MetricSettings) -> None:
        self.settings = settings

    def probes(self, searches: Sequence[MetricTrajectory]) -> list[list[Flip]]:
        """One error in each of up to `positions` words, drawn at random where there are more."""
        most = min(self.settings.positions, self.settings.summaries)
        return [
            [
                typo
                for position in sorted(search.rng.permutation(len(_spans(search)))[:most].tolist())
                for typo in _typos(search, position, 1)
            ]
            for search in searches
        ]

    def replacements(self, searches: Sequence[MetricTrajectory]) -> list[list[Flip]]:
        """Several errors in the next word of each search."""
        flips_of = []
        for search in searches:
            position = search.order.pop(0)
            probe = search.probes[position][1]
            proved = [probe] if search.state.flips and (position, probe.new) not in search.state.tried else []
            count = min(self.settings.at_once, self.settings.summaries - search.generations)
            flips_of.append([*proved, *_typos(search, position, self.settings.at_once)][:count])
        return flips_of


def _spans(search: MetricTrajectory) -> list[tuple[int, int]]:
    assert isinstance(search.state, TypedState)
    return search.state.spans


def _typos(search: MetricTrajectory, position: int, count: int) -> list[Flip]:
    """Up to `count` different random typing errors in one word that were not tried on this document."""
    assert isinstance(search.state, TypedState)
    word = search.state.document[slice(*search.state.spans[position])]
    made = dict.fromkeys(edited(word, search.rng) for _ in range(3 * count))
    typos: list[Flip] = [
        Typo(position, 0, zlib.crc32(text.encode()), float("nan"), random=True, text=text)
        for text in made
        if text != word
    ]
    return [typo for typo in typos if (typo.position, typo.new) not in search.state.tried][:count]


def edited(word: str, rng: np.random.Generator) -> str:
    """`word` with one random edit; its first letter stays."""
    at, letter = int(rng.integers(1, len(word))), str(rng.choice(list(string.ascii_lowercase)))
    swapped = word[: at - 1] + word[at] + word[at - 1] + word[at + 1 :]
    edits = (
        swapped if at > 1 else word[:1] + word[2] + word[1] + word[3:],
        word[:at] + word[at + 1 :],
        word[:at] + letter + word[at:],
        word[:at] + letter + word[at + 1 :],
    )
    return edits[int(rng.integers(len(edits)))]
