"""Attacked examples worth showing: for each model the one that lost most, and a typical one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer

from utils.analysis.records import HotFlipRecord, given, hotflip_row, read_rows
from utils.analysis.sections import SectionKey
from utils.core.names import MODEL_KEYS

AROUND = 8  # tokens shown on either side of a changed one


@dataclass(frozen=True)
class Mark:
    """A changed token in an excerpt."""

    old: str
    new: str


@dataclass(frozen=True)
class AttackedExample:
    """An attacked example as it is shown: ROUGE-L and summary before and after, and where its text was changed."""

    model: str
    kind: str  # worst, or typical
    id: str
    clean: float
    attacked: float
    reference: str
    clean_summary: str
    attacked_summary: str
    excerpt: list[str | Mark]


def shown_examples(records: Path, tokenizer: Path) -> list[AttackedExample]:
    """Worst and median attacked example of each model; `tokenizer`: the tokenizer.json that names the tokens."""
    pieces = Tokenizer.from_file(str(tokenizer))
    by_model: dict[str, list[HotFlipRecord]] = {model: [] for model in MODEL_KEYS}
    for row in read_rows(records, hotflip_row, named={str(SectionKey("attack", model)) for model in MODEL_KEYS}):
        if isinstance(row, HotFlipRecord) and row.skipped is None and row.search and row.search.flips:
            by_model[row.model].append(row)
    shown = []
    for rows in by_model.values():
        ranked = sorted(rows, key=lambda row: (-given(row.relative_drop), row.id))
        if ranked:
            shown.append(_shown(ranked[0], "worst", pieces))
        if len(ranked) > 2:
            shown.append(_shown(ranked[len(ranked) // 2], "typical", pieces))
    return shown


def _shown(row: HotFlipRecord, kind: str, pieces: Tokenizer) -> AttackedExample:
    changed = {flip.position: flip.new for flip in given(row.search).flips}
    return AttackedExample(
        model=row.model,
        kind=kind,
        id=row.id,
        clean=given(row.clean_rougeL),
        attacked=given(row.attacked_rougeL),
        reference=given(row.reference),
        clean_summary=given(row.clean_prediction),
        attacked_summary=given(row.attacked_prediction),
        excerpt=excerpt(given(row.clean_ids), changed, pieces),
    )


def excerpt(ids: list[int], changed: dict[int, int], pieces: Tokenizer) -> list[str | Mark]:
    """The neighbourhood of every changed token, as plain text and marks; what is left out becomes an ellipsis.

    `ids`: the input's token ids [length] before the attack; `changed`: new id by position.
    """
    near = sorted({p for at in changed for p in range(max(0, at - AROUND), min(len(ids), at + AROUND + 1))})
    parts: list[str | Mark] = []
    run: list[int] = []
    last = -1
    for position in near:
        if position != last + 1:
            parts += [_text(run, pieces), " … "]
            run = []
        last = position
        if position in changed:
            parts += [
                _text(run, pieces) + " ",
                Mark(_word(ids[position], pieces), _word(changed[position], pieces)),
                " ",
            ]
            run = []
        else:
            run.append(ids[position])
    parts += [_text(run, pieces), "" if last == len(ids) - 1 else " …"]
    return [part for part in parts if part]


def _text(ids: list[int], pieces: Tokenizer) -> str:
    return pieces.decode(ids)


def _word(token: int, pieces: Tokenizer) -> str:
    return (pieces.id_to_token(token) or "?").replace("▁", " ").strip() or "␣"
