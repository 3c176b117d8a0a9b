"""Where a trigger stands in the input, with its room reserved before truncation, in clean and attacked input alike.

The document is cut to what fits beside the task prefix, the trigger and eos; the clean input is the same document
without the trigger. So a trigger can never be cut off, and the two inputs differ in the trigger alone.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from utils.attacks.context import AttackContext
from utils.attacks.encoding import EncodedText, Example
from utils.attacks.legal_tokens import TokenArray, TokenIds, TokenizerView
from utils.attacks.seeding import generator
from utils.core.errors import StageError, UsageError
from utils.core.names import TRIGGER_TYPES

SENTENCE_ENDS = (".", "!", "?", '."', ".'", ".”", '!"', '?"', ".)")


@dataclass(frozen=True)
class TriggerExample(EncodedText):
    """One example with room for a trigger of `reserved` tokens.

    `boundaries`: tokens of the visible document at which a new sentence begins (a new word, if there is one sentence
    only: `one_sentence`); an infix trigger stands before one of them.
    """

    boundaries: tuple[int, ...] = (0,)
    one_sentence: bool = False

    @functools.cached_property
    def clean(self) -> TokenArray:
        """The unattacked input, int64 [T]."""
        return np.asarray(self.ids, dtype=np.int64)

    @property
    def visible_text(self) -> str:
        """The part of the document that the model reads."""
        return self.document[: self.spans[-1][1]] if self.spans else ""

    def with_trigger(self, trigger_type: str, trigger: TokenIds, boundary: int | None = None) -> TokenArray:
        """The input with the trigger in its place, int64 [T + len(trigger)]."""
        slot = self.slot(trigger_type, boundary)
        return np.concatenate([self.clean[:slot], np.asarray(trigger, dtype=np.int64), self.clean[slot:]])

    def slot(self, trigger_type: str, boundary: int | None = None) -> int:
        """Position of the trigger's first token. `boundary`: for infix, one of `boundaries`."""
        if trigger_type == "instruction":
            return 0
        if trigger_type in ("lead", "natural"):
            return self.start
        if trigger_type == "tail":
            return self.end
        if trigger_type == "infix":
            return self.start + (self.boundaries[0] if boundary is None else boundary)
        raise UsageError(f"trigger type {trigger_type!r}: must be one of {', '.join(TRIGGER_TYPES)}")

    def draw_boundary(self, trigger_type: str, *key: object) -> int | None:
        """Where an infix stands: one of the boundaries, at random by `key` and the example's id; else None."""
        if trigger_type != "infix":
            return None
        return int(generator(*key, "boundary", self.id).choice(self.boundaries))

    def attacked_text(self, trigger_type: str, words: str, prefix: str, boundary: int | None = None) -> str:
        """The whole text, task prefix included, that a person would type to attack this example."""
        text = self.visible_text
        if trigger_type == "instruction":
            return f"{words} {prefix}{text}"
        if trigger_type == "tail":
            return f"{prefix}{text} {words}"
        if trigger_type == "infix":
            at = self.spans[self.boundaries[0] if boundary is None else boundary][0]
            return f"{prefix}{text[:at]}{words} {text[at:]}"
        return f"{prefix}{words} {text}"


def trigger_examples(context: AttackContext, examples: Sequence[Example], trigger_length: int) -> list[TriggerExample]:
    """Every example with room for a trigger; checked on the final ids: clean + trigger never exceed the limit."""
    view, made = context.view, []
    for text in context.encode(examples, reserved=trigger_length):
        body = text.ids[text.start : text.end]
        sentences = _sentence_starts(view, body)
        words = [k for k in range(1, len(body)) if view.starts_word[body[k]]]
        made.append(
            TriggerExample(**vars(text), boundaries=tuple(sentences or words or [0]), one_sentence=not sentences)
        )
        if len(text.ids) + trigger_length > context.max_input_length:
            raise StageError(f"{text.id}: no room was reserved for the trigger. This is a bug: please report it.")
    return made


def check_in_place(
    item: TriggerExample, trigger_type: str, trigger: TokenIds, boundary: int | None, max_input_length: int
) -> None:
    """StageError unless the final ids hold the trigger unbroken at its slot, fit, and are the clean ids elsewhere."""
    ids, slot = item.with_trigger(trigger_type, trigger, boundary), item.slot(trigger_type, boundary)
    rest = np.concatenate([ids[:slot], ids[slot + len(trigger) :]])
    unbroken = len(trigger) == item.reserved and ids[slot : slot + len(trigger)].tolist() == list(trigger)
    if not (unbroken and len(ids) <= max_input_length and ids[-1] == item.ids[-1] and np.array_equal(rest, item.clean)):
        raise StageError(
            f"{item.id}: the {trigger_type} trigger is not unbroken in the ids that the model reads. This is a bug:"
            " please report it."
        )


def _sentence_starts(view: TokenizerView, body: TokenIds) -> list[int]:
    """Tokens of the document that begin a word after a token that ends a sentence."""
    return [
        k
        for k in range(1, len(body))
        if view.starts_word[body[k]] and view.pieces[body[k - 1]].lstrip("▁").endswith(SENTENCE_ENDS)
    ]
