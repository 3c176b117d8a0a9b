"""Attacked examples for the page: every one as compact data for its browser, and a few to be printed.

A text is kept once, and each attack on it as its changes: whole words with their places in the text, for half a word
that was exchanged is not what a reader sees.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from tokenizers import Tokenizer

from utils.analysis.final import FinalResults
from utils.analysis.records import HotFlipRecord, TriggerRecord, given, hotflip_row, read_rows, trigger_row
from utils.analysis.sections import SectionKey
from utils.core.names import MODEL_KEYS

AROUND = 60  # characters shown on either side of a change
SHOWN_AS = {"<pad>": "", "</s>": "", "<unk>": "\u2047"}  # an unknown character is a double question mark


class Change(NamedTuple):
    """Words of a text that an attack replaced: where they begin, in characters, and both wordings."""

    start: int
    old: str
    new: str


@dataclass(frozen=True)
class Mark:
    """Changed words in an excerpt."""

    old: str
    new: str


@dataclass(frozen=True)
class AttackedExample:
    """An attacked example as it is printed: ROUGE-L and summary before and after, and where its text was changed."""

    model: str
    kind: str  # worst, or typical
    id: str
    clean: float
    attacked: float
    reference: str
    clean_summary: str
    attacked_summary: str
    excerpt: list[str | Mark]


@dataclass
class Examples:
    """Every attacked example, for the browser of the page.

    `texts`: [id, reference, text] of each. `attacks`: attack, then model, then a row for each example: its place in
    `texts`, then why it was skipped; or clean ROUGE-L, attacked ROUGE-L, success (0 or 1), both summaries, the changes
    [start, old, new], and whether the attacked text can be typed (null: not known). `notes`: what to know of an attack
    on a model. `printed`: those that need no script.
    """

    texts: list[list[str]] = field(default_factory=list)
    attacks: dict[str, dict[str, list[list[Any]]]] = field(default_factory=dict)
    notes: dict[str, dict[str, str]] = field(default_factory=dict)
    printed: list[AttackedExample] = field(default_factory=list)

    def data(self) -> dict[str, Any]:
        """What the page's script reads."""
        return {"texts": self.texts, "attacks": self.attacks, "notes": self.notes}


@dataclass(frozen=True)
class Encoded:
    """A text that a model reads: without its prefix, as pieces [tokens], the first after the prefix, their places."""

    text: str
    pieces: list[str]
    first: int
    starts: list[int]  # [tokens + 1], in characters of `text`; below 0: before it


class Pieces:
    """Token ids as the text that the model reads, without its task prefix."""

    def __init__(self, tokenizer: Path, prefix: str) -> None:
        self.tokenizer = Tokenizer.from_file(str(tokenizer))
        self.prefix: list[int] = self.tokenizer.encode(prefix, add_special_tokens=False).ids
        self._known: dict[int, str] = {}
        self._texts: dict[tuple[int, ...], Encoded] = {}

    def piece(self, token: int) -> str:
        """One token; a new word begins with a space."""
        if token not in self._known:
            name = self.tokenizer.id_to_token(token) or "?"
            self._known[token] = SHOWN_AS.get(name, name.replace("\u2581", " "))
        return self._known[token]

    def read(self, ids: Sequence[int]) -> Encoded:
        """The text behind the ids; kept, as the same text is attacked on every model."""
        key = tuple(ids)
        if key not in self._texts:
            pieces = [self.piece(token) for token in ids]
            first = len(self.prefix) if list(ids[: len(self.prefix)]) == self.prefix else 0
            ends = list(itertools.accumulate(map(len, pieces), initial=0))
            joined = "".join(pieces)
            text = joined[ends[first] :].lstrip()
            self._texts[key] = Encoded(text, pieces, first, [end - (len(joined) - len(text)) for end in ends])
        return self._texts[key]

    def changes(self, clean: Sequence[int], attacked: Sequence[int]) -> list[Change]:
        """Where the attacked ids differ, in whole words, with places in the text of the clean ids."""
        before, after = self.read(clean), [self.piece(token) for token in attacked]
        changes = []
        for first, last, new_first, new_last in _runs(clean, attacked, before, after):
            old, new = "".join(before.pieces[first:last]), "".join(after[new_first:new_last])
            blank = len(old) - len(old.lstrip())
            changes.append(Change(before.starts[first] + blank, old.lstrip(), new.strip()))
        return changes


def _runs(
    clean: Sequence[int], attacked: Sequence[int], before: Encoded, after: Sequence[str]
) -> list[tuple[int, int, int, int]]:
    """Runs that differ, as [first, last) in both: whole words, or one run of tokens where their number differs."""
    differing = [place for place, (a, b) in enumerate(zip(clean, attacked, strict=False)) if a != b]
    if len(clean) != len(attacked):
        first = differing[0] if differing else min(len(clean), len(attacked))
        last, new_last = len(clean), len(attacked)
        while last > first and new_last > first and clean[last - 1] == attacked[new_last - 1]:
            last, new_last = last - 1, new_last - 1
        return [(first, last, first, new_last)]

    def begins(place: int) -> bool:  # a word, in both texts
        if place in (before.first, len(clean)):
            return True
        return before.pieces[place][:1] == " " and after[place][:1] == " "

    runs: list[tuple[int, int, int, int]] = []
    for place in differing:
        if runs and place < runs[-1][1]:
            continue
        first, last = place, place + 1
        while not begins(first):
            first -= 1
        while not begins(last):
            last += 1
        runs.append((first, last, first, last))
    return runs


def attacked_examples(directory: Path, results: FinalResults, prefix: str, tokenizer: Path) -> Examples:
    """HotFlip and each model's worst universal trigger, example by example, from the records in `directory`.

    `tokenizer`: the tokenizer.json that names the tokens; `prefix`: the task prefix, which is no part of a text.
    """
    pieces, examples = Pieces(tokenizer, prefix), Examples()
    places: dict[str, int] = {}
    by_model: dict[str, list[HotFlipRecord]] = {model: [] for model in MODEL_KEYS}
    for row in read_rows(
        directory / "hotflip_records.jsonl", hotflip_row, {str(SectionKey("attack", model)) for model in MODEL_KEYS}
    ):
        if isinstance(row, HotFlipRecord):
            by_model[row.model].append(row)
            text = pieces.read(row.clean_ids).text if row.clean_ids else ""
            place = places.setdefault(row.id, len(places))
            if place == len(examples.texts):
                examples.texts.append([row.id, row.reference or "", text])
            elif not examples.texts[place][2]:  # another model skipped it
                examples.texts[place] = [row.id, row.reference or "", text]
    for model, rows in by_model.items():
        examples.attacks.setdefault("HotFlip", {})[model] = [_row(row, places[row.id], pieces) for row in rows]
        examples.printed += _printed(rows, examples.texts, places, pieces)
    kinds = {model: results.uat.models[model].worst.worst_type for model in MODEL_KEYS}
    sections = {str(SectionKey("attack", model, kind, model)): model for model, kind in kinds.items() if kind}
    for one in read_rows(directory / "uat_records.jsonl", trigger_row, sections) if sections else ():
        if isinstance(one, TriggerRecord) and one.id in places:
            cells = examples.attacks.setdefault("universal trigger", {})
            cells.setdefault(one.model, []).append(_row(one, places[one.id], pieces))
    for model, kind in kinds.items():
        if kind:
            trigger = results.uat.models[model].types[kind].trigger_text
            examples.notes.setdefault("universal trigger", {})[model] = f"{kind}: {trigger}"
    return examples


def _row(row: HotFlipRecord | TriggerRecord, place: int, pieces: Pieces) -> list[Any]:
    if row.skipped is not None:
        return [place, row.skipped]
    changes: list[Change] = []
    if isinstance(row, HotFlipRecord) and row.clean_ids and row.attacked_ids:
        changes = pieces.changes(row.clean_ids, row.attacked_ids)
    return [
        place,
        round(given(row.clean_rougeL), 4),
        round(given(row.attacked_rougeL), 4),
        int(bool(row.success)),
        row.clean_prediction or "",
        row.attacked_prediction or "",
        changes,
        None if row.typable is None else int(row.typable),
    ]


def _printed(
    rows: Sequence[HotFlipRecord], texts: Sequence[Sequence[str]], places: dict[str, int], pieces: Pieces
) -> list[AttackedExample]:
    """The example of a model that lost most, and a typical one."""
    changed = [row for row in rows if row.skipped is None and row.clean_ids and row.clean_ids != row.attacked_ids]
    ranked = sorted(changed, key=lambda row: (-given(row.relative_drop), row.id))
    chosen = [("worst", ranked[0])] if ranked else []
    chosen += [("typical", ranked[len(ranked) // 2])] if len(ranked) > 2 else []
    return [
        AttackedExample(
            model=row.model,
            kind=kind,
            id=row.id,
            clean=given(row.clean_rougeL),
            attacked=given(row.attacked_rougeL),
            reference=row.reference or "",
            clean_summary=row.clean_prediction or "",
            attacked_summary=row.attacked_prediction or "",
            excerpt=excerpt(texts[places[row.id]][2], pieces.changes(given(row.clean_ids), given(row.attacked_ids))),
        )
        for kind, row in chosen
    ]


def excerpt(text: str, changes: Sequence[Change]) -> list[str | Mark]:
    """The neighbourhood of every change, cut between words, as text and marks; what is left out is an ellipsis."""
    parts: list[str | Mark] = []
    end = 0
    for start, old, new in changes:
        if start - end > 2 * AROUND:
            left = text[end : text.find(" ", end + AROUND)] if parts else ""
            parts.append(f"{left} \u2026 {text[text.rfind(' ', end, start - AROUND) + 1 : start]}")
        else:
            parts.append(text[end:start])
        parts.append(Mark(old, new))
        end = start + len(old)
    rest = text[end:]
    cut = rest.find(" ", AROUND)
    parts.append(rest if cut < 0 else f"{rest[:cut]} \u2026")
    return [part for part in parts if part]
