"""Where a trigger stands in the input, with its room reserved before truncation, in clean and attacked input alike.

The document is cut to what fits beside the task prefix, the trigger and eos; the clean input is the same document
without the trigger. So a trigger can never be cut off, and the two inputs differ in the trigger alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from utils.attacks.encoding import EMPTY_ARTICLE, EMPTY_REFERENCE, Example
from utils.attacks.legal_tokens import LegalTokens
from utils.attacks.seeding import generator
from utils.core.errors import StageError, UsageError

TRIGGER_TYPES = ("lead", "instruction", "tail", "infix", "natural")
SENTENCE_ENDS = (".", "!", "?", '."', ".'", ".”", '!"', '?"', ".)")


@dataclass(frozen=True)
class TriggerExample:
    """One example with room for a trigger of `length` tokens.

    `prefix`, `body`: int64 ids of the task prefix and of the visible document; `text` the visible document;
    `boundaries`: places in `body` where a new sentence begins (where a new word begins, if there is one sentence
    only: `one_sentence`); `chars[k]`: where body token k begins in `text`; `problem`: why it cannot be attacked.
    """

    id: str
    text: str
    summary: str
    prefix: np.ndarray
    body: np.ndarray
    labels: tuple[int, ...]
    boundaries: tuple[int, ...]
    chars: tuple[int, ...]
    one_sentence: bool
    eos: int
    length: int
    problem: str | None

    @property
    def clean(self) -> np.ndarray:
        """The unattacked input, int64."""
        return np.concatenate([self.prefix, self.body, [self.eos]])

    def with_trigger(self, trigger_type: str, trigger: Sequence[int], boundary: int | None = None) -> np.ndarray:
        """The input with the trigger in its place, int64 [len(clean) + length]."""
        slot = self.slot(trigger_type, boundary)
        clean = self.clean
        return np.concatenate([clean[:slot], np.asarray(trigger, dtype=np.int64), clean[slot:]])

    def slot(self, trigger_type: str, boundary: int | None = None) -> int:
        """Position of the trigger's first token. `boundary`: for infix, one of `boundaries`."""
        if trigger_type == "instruction":
            return 0
        if trigger_type in ("lead", "natural"):
            return len(self.prefix)
        if trigger_type == "tail":
            return len(self.prefix) + len(self.body)
        if trigger_type == "infix":
            return len(self.prefix) + (self.boundaries[0] if boundary is None else boundary)
        raise UsageError(f"trigger type {trigger_type!r}: must be one of {', '.join(TRIGGER_TYPES)}")

    def boundary(self, *key: object) -> int:
        """One of the boundaries, at random by `key` and the example's id."""
        return int(generator(*key, "boundary", self.id).choice(self.boundaries))

    def attacked_text(self, trigger_type: str, words: str, prefix: str, boundary: int | None = None) -> str:
        """The whole text, task prefix included, that a person would type to attack this example."""
        if trigger_type == "instruction":
            return f"{words} {prefix}{self.text}"
        if trigger_type == "tail":
            return f"{prefix}{self.text} {words}"
        if trigger_type == "infix":
            at = self.chars[self.boundaries[0] if boundary is None else boundary]
            return f"{prefix}{self.text[:at]}{words} {self.text[at:]}"
        return f"{prefix}{words} {self.text}"


def slotted_examples(
    legal: LegalTokens,
    examples: Sequence[Example],
    *,
    prefix: str,
    max_input_length: int,
    max_target_length: int,
    trigger_length: int,
) -> list[TriggerExample]:
    """Every example with room for a trigger; checked on the final ids: clean + trigger never exceed the limit."""
    if not examples:
        return []
    view = legal.view
    tokenizer = view.tokenizer
    if prefix and not prefix[-1].isspace():
        raise UsageError(f"the task prefix {prefix!r} must end in a space, or it becomes a part of the first word")
    prefix_ids = np.asarray(view.encode([prefix])[0] if prefix else [], dtype=np.int64)
    room = max_input_length - len(prefix_ids) - 1 - trigger_length
    if room < 1:
        raise UsageError(
            f"a trigger of {trigger_length} tokens leaves no room for a document in {max_input_length} input tokens"
        )
    documents = tokenizer([e.document for e in examples], add_special_tokens=False, return_offsets_mapping=True)
    labels = tokenizer([e.summary for e in examples], truncation=True, max_length=max_target_length)["input_ids"]
    slotted = []
    for i, example in enumerate(examples):
        full, spans = documents["input_ids"][i], documents["offset_mapping"][i]
        visible = _visible(legal, full, room)
        body = full[:visible]
        problem = EMPTY_ARTICLE if not body else None
        if not example.summary.strip() or len(labels[i]) < 2:
            problem = problem or EMPTY_REFERENCE
        sentences = _boundaries(legal, body)
        words = [k for k in range(1, len(body)) if view.starts_word[body[k]]]
        item = TriggerExample(
            id=example.id,
            text=example.document[: spans[visible - 1][1]] if body else "",
            summary=example.summary,
            prefix=prefix_ids,
            body=np.asarray(body, dtype=np.int64),
            labels=tuple(labels[i]),
            boundaries=tuple(sentences or words or [0]),
            chars=tuple(begin for begin, _ in spans[:visible]),
            one_sentence=not sentences,
            eos=tokenizer.eos_token_id,
            length=trigger_length,
            problem=problem,
        )
        if len(item.clean) + trigger_length > max_input_length:
            raise StageError(f"{example.id}: no room was reserved for the trigger (a bug)")
        slotted.append(item)
    return slotted


def check_in_place(
    item: TriggerExample, trigger_type: str, trigger: Sequence[int], boundary: int | None, limit: int
) -> None:
    """StageError unless the final ids hold the whole trigger at its slot, fit, and differ from the clean ids in it."""
    ids, slot = item.with_trigger(trigger_type, trigger, boundary), item.slot(trigger_type, boundary)
    rest = np.concatenate([ids[:slot], ids[slot + len(trigger) :]])
    whole = len(trigger) == item.length and ids[slot : slot + len(trigger)].tolist() == list(trigger)
    if not (whole and len(ids) <= limit and ids[-1] == item.eos and np.array_equal(rest, item.clean)):
        raise StageError(f"{item.id}: the {trigger_type} trigger is not whole in the ids that the model reads (a bug)")


def _visible(legal: LegalTokens, full: Sequence[int], room: int) -> int:
    """How many document tokens are visible: whole words only where the attack must be typable."""
    if len(full) <= room or not legal.checked:
        return min(len(full), room)
    starts = legal.view.starts_word
    cut = next((k for k in range(room, 0, -1) if starts[full[k]]), 0)
    return cut or room  # one word longer than the input: half a word is better than none


def _boundaries(legal: LegalTokens, body: Sequence[int]) -> list[int]:
    view = legal.view
    return [
        k
        for k in range(1, len(body))
        if view.starts_word[body[k]] and view.pieces[body[k - 1]].lstrip("▁").endswith(SENTENCE_ENDS)
    ]
