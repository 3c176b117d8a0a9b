"""From a document to the ids that the model reads, with what an attack needs to know about each position."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from utils.attacks.legal_tokens import TokenIds, TokenizerView, word_bounds
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
class EncodedText:
    """One example as ids, with room for `reserved` tokens of a trigger (0: none).

    `ids`: task prefix, visible document, eos; with `reserved` they are at most `max_input_length`. Without a reserved
    slot these are the ids of stages 1 and 4. The document's tokens are `ids[start:end]`. `spans[k]`: first character
    and end of document token `k` in `document`. `labels`: reference ids, ending in eos. `attackable`: positions of
    `ids` that may change, ascending. `problem`: the reason (SKIP_REASONS) why it cannot be attacked, or None.
    """

    id: str
    document: str
    summary: str
    ids: tuple[int, ...]
    start: int
    end: int
    spans: tuple[tuple[int, int], ...]
    labels: tuple[int, ...]
    attackable: tuple[int, ...]
    problem: str | None
    reserved: int = 0


def encode_texts(
    view: TokenizerView,
    examples: Sequence[Example],
    *,
    prefix: str,
    max_input_length: int,
    max_target_length: int,
    typable: bool = True,
    reserved: int = 0,
) -> list[EncodedText]:
    """Encode every example, its document cut to what fits beside task prefix, eos and `reserved` tokens.

    `typable`: only what a person could type counts, and no text shows the model half a word. A last word that is cut
    by the limit is then not attackable; with `reserved` it is left out, because a trigger may follow it.
    Raises UsageError if there is no room for a document, or the prefix glues itself to the document's first word.
    """
    if not examples:
        return []
    if prefix and not prefix[-1].isspace():
        raise UsageError(f"the task prefix {prefix!r} must end in a space, or it becomes a part of the first word")
    prefix_ids = tuple(view.encode([prefix])[0]) if prefix else ()
    start = len(prefix_ids)
    room = max_input_length - start - 1 - reserved  # 1: eos
    if room < 1:
        raise UsageError(
            f"no room for a document: of {max_input_length} input tokens the task prefix takes {start}, a trigger"
            f" {reserved} and the end 1"
        )
    tokenizer = view.tokenizer
    documents = tokenizer([e.document for e in examples], add_special_tokens=False, return_offsets_mapping=True)
    labels = tokenizer([e.summary for e in examples], truncation=True, max_length=max_target_length)["input_ids"]
    encoded = []
    for i, example in enumerate(examples):
        full = documents["input_ids"][i]
        visible = whole_words = min(len(full), room)
        if typable and len(full) > room:  # the tokens of the words that the limit leaves whole
            whole_words = next((k for k in range(room, 0, -1) if view.starts_word[full[k]]), 0)
        if reserved:  # a single word longer than the input stays: half a word is better than none
            visible = whole_words = whole_words or visible
        body = full[:visible]
        problem = EMPTY_ARTICLE if not body else None
        if not example.summary.strip() or len(labels[i]) < 2:
            problem = problem or EMPTY_REFERENCE
        encoded.append(
            EncodedText(
                id=example.id,
                document=example.document,
                summary=example.summary,
                ids=(*prefix_ids, *body, tokenizer.eos_token_id),
                start=start,
                end=start + visible,
                spans=tuple(documents["offset_mapping"][i][:visible]),
                labels=tuple(labels[i]),
                attackable=tuple(range(start, start + whole_words)),
                problem=problem,
                reserved=reserved,
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


def segments(view: TokenizerView, encoded: EncodedText, attacked: TokenIds) -> list[Segment]:
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


def attacked_document(view: TokenizerView, encoded: EncodedText, attacked: TokenIds) -> str:
    """The document with the words that `attacked` changes written anew: the text a person would type."""
    return "".join(segment.new for segment in segments(view, encoded, attacked))


def reads_as(
    view: TokenizerView, texts: Sequence[str], wanted: Sequence[TokenIds], *, prefix: str, max_input_length: int
) -> np.ndarray:
    """bool [N]: does the pipeline turn `prefix + text` into exactly the ids `wanted`?"""
    if not texts:
        return np.zeros(0, dtype=bool)
    ids = view.tokenizer([prefix + text for text in texts], truncation=True, max_length=max_input_length)["input_ids"]
    return np.array([tuple(a) == tuple(b) for a, b in zip(ids, wanted, strict=True)], dtype=bool)


# English function words: a summary keeps its meaning when one of them changes in the text.
FUNCTION_WORDS = frozenset(
    "a about after all also an and any are as at be because been before but by can could did do does down for from had"
    " has have he her here him his how i if in into is it its just me more my no not now of off on one or our out over"
    " she so some than that the their them then there they this to too up us very was we were what when where which"
    " who why will with would you your".split()
)
WORD = re.compile(r"\w+")


def reference_positions(view: TokenizerView, encoded: EncodedText) -> frozenset[int]:
    """Positions of the document's tokens in content words that the reference summary has too.

    Where such a word changes, the facts change, and a good summary should change with them: such a success says less
    about robustness (Michel et al. 2019). Content words: letters or digits, no function word; case does not count.
    """
    wanted = set(WORD.findall(encoded.summary.lower())) - FUNCTION_WORDS
    hit = np.zeros(len(encoded.document) + 1, dtype=bool)  # characters of such words
    for match in WORD.finditer(encoded.document):
        if match.group().lower() in wanted:
            hit[match.start() : match.end()] = True
    return frozenset(encoded.start + k for k, (first, last) in enumerate(encoded.spans) if hit[first:last].any())


def protected(view: TokenizerView, encoded: EncodedText) -> EncodedText:
    """`encoded` without the attackable positions of words that hold a content word of the reference."""
    shared = reference_positions(view, encoded)
    starts = view.starts_word[np.asarray(encoded.ids)]
    first, last = word_bounds(starts, encoded.start, encoded.end)
    closed = {p for at in shared for p in range(first[at - encoded.start], last[at - encoded.start])}
    return replace(encoded, attackable=tuple(p for p in encoded.attackable if p not in closed))
