"""From a document to the ids that the model reads, with what an attack needs to know about each position."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from utils.attacks.legal_tokens import TokenizerView
from utils.core.errors import UsageError

EMPTY_ARTICLE = "empty_article"
EMPTY_REFERENCE = "empty_reference"
LOW_CLEAN_ROUGE = "clean_rouge_below_minimum"
LOSS_NOT_FINITE = "loss_not_finite"
NO_LEGAL_FLIP = "no_legal_flip"
SKIP_REASONS = (EMPTY_ARTICLE, EMPTY_REFERENCE, LOW_CLEAN_ROUGE, LOSS_NOT_FINITE, NO_LEGAL_FLIP)


@dataclass(frozen=True)
class Example:
    """One text to attack: `document` without task prefix, `summary` the reference."""

    id: str
    document: str
    summary: str


@dataclass(frozen=True)
class Encoded:
    """One example as ids.

    `ids`: prefix + document + eos, at most `max_input_length`: the ids of stages 1 and 4. The document's tokens are
    `ids[start:end]`. `attackable`: positions that may change, ascending. `labels`: reference ids, ending in eos.
    `chars[i]`: where the word of document token `i` begins in the text, for writing the attacked text.
    `cut_word`: the last visible word continues beyond the limit (its visible part is no word of the text).
    """

    id: str
    document: str
    summary: str
    ids: tuple[int, ...]
    start: int
    end: int
    attackable: tuple[int, ...]
    labels: tuple[int, ...]
    spans: tuple[tuple[int, int], ...]
    cut_word: bool
    problem: str | None


def encode_examples(
    view: TokenizerView,
    examples: Sequence[Example],
    *,
    prefix: str,
    max_input_length: int,
    max_target_length: int,
    checked: bool = True,
) -> list[Encoded]:
    """Encode every example; `problem` names the reason (SKIP_REASONS) of one that cannot be attacked.

    `checked`: leave the half-visible last word alone, because no text shows the model half a word.
    Raises UsageError if the prefix leaves no room for a document or glues itself to the document's first word.
    """
    if not examples:
        return []
    tokenizer = view.tokenizer
    if prefix and not prefix[-1].isspace():
        raise UsageError(f"the task prefix {prefix!r} must end in a space, or it becomes a part of the first word")
    start = len(view.encode([prefix])[0]) if prefix else 0
    if start + 2 > max_input_length:
        raise UsageError(f"the task prefix takes {start} of {max_input_length} input tokens: no room for a document")
    eos = tokenizer.eos_token_id
    documents = tokenizer([e.document for e in examples], add_special_tokens=False, return_offsets_mapping=True)
    labels = tokenizer([e.summary for e in examples], truncation=True, max_length=max_target_length)["input_ids"]
    prefix_ids = tuple(view.encode([prefix])[0]) if prefix else ()
    room = max_input_length - start - 1
    encoded = []
    for i, example in enumerate(examples):
        full = documents["input_ids"][i]
        body = full[:room]
        cut = len(full) > room and not view.starts_word[full[room]]
        end = start + len(body)
        problem = EMPTY_ARTICLE if not body else None
        if not example.summary.strip() or len(labels[i]) < 2:
            problem = problem or EMPTY_REFERENCE
        last_word = max((k for k, token in enumerate(body) if view.starts_word[token]), default=0)
        free = start + last_word if cut and checked else end
        encoded.append(
            Encoded(
                id=example.id,
                document=example.document,
                summary=example.summary,
                ids=(*prefix_ids, *body, eos),
                start=start,
                end=end,
                attackable=tuple(range(start, free)),
                labels=tuple(labels[i]),
                spans=tuple(documents["offset_mapping"][i][: len(body)]),
                cut_word=cut,
                problem=problem,
            )
        )
    return encoded


@dataclass(frozen=True)
class Segment:
    """A stretch of an attacked document: text that stayed (`old == new`), or words that were changed."""

    old: str
    new: str

    @property
    def changed(self) -> bool:
        """Whether the attack wrote this stretch."""
        return self.old != self.new


def segments(view: TokenizerView, encoded: Encoded, attacked: Sequence[int]) -> list[Segment]:
    """The document in stretches, changed and unchanged, in order; what a person would type, and what stood there.

    `attacked`: ids of the same length as `encoded.ids`. Words that did not change keep their original characters,
    so unknown signs, odd spaces and the part beyond the model's limit stay as they were.
    """
    body, new = encoded.ids[encoded.start : encoded.end], attacked[encoded.start : encoded.end]
    bounds = [k for k, token in enumerate(body) if k == 0 or view.starts_word[token]] + [len(body)]
    parts: list[Segment] = []
    copied = 0
    for first, last in pairwise(bounds):
        if tuple(body[first:last]) == tuple(new[first:last]):
            continue
        begin, finish = encoded.spans[first][0], encoded.spans[last - 1][1]
        text, same, gap = view.text(new[first:last]), encoded.document[copied:begin], ""
        if not text.startswith(" "):  # the word was joined to the one before it: the space between them goes
            same, gap = same.rstrip(), same[len(same.rstrip()) :]
        parts += [Segment(same, same), Segment(gap + encoded.document[begin:finish], text.removeprefix(" "))]
        copied = finish
    rest = encoded.document[copied:]
    return [part for part in (*parts, Segment(rest, rest)) if part.old or part.new]


def attacked_document(view: TokenizerView, encoded: Encoded, attacked: Sequence[int]) -> str:
    """The document with the words that `attacked` changes written anew: the text a person would type."""
    return "".join(segment.new for segment in segments(view, encoded, attacked))


def reads_as(
    view: TokenizerView, texts: Sequence[str], wanted: Sequence[Sequence[int]], *, prefix: str, max_input_length: int
) -> np.ndarray:
    """bool [N]: does the pipeline turn `prefix + text` into exactly the ids `wanted`?"""
    if not texts:
        return np.zeros(0, dtype=bool)
    ids = view.tokenizer([prefix + text for text in texts], truncation=True, max_length=max_input_length)["input_ids"]
    return np.array([tuple(a) == tuple(b) for a, b in zip(ids, wanted, strict=True)], dtype=bool)
