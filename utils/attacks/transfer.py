"""Attacks replayed: flips that were found on one model (or drawn at random), scored on another."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from utils.analysis.measures import loss_increase, reaches_threshold, relative_drop
from utils.analysis.records import HotFlipRecord, attackable, given
from utils.attacks.cache import blocks_of, load_records, save_cached
from utils.attacks.context import AttackContext, Victim, exact_losses, rouge_l, summaries
from utils.attacks.encoding import LOSS_NOT_FINITE
from utils.attacks.legal_tokens import TokenIds

NOT_ATTACKED_BY_SOURCE = "not_attacked_by_source"


def replay(
    context: AttackContext,
    victim: Victim,
    attacks: Mapping[str, TokenIds],
    own: Sequence[HotFlipRecord],
    *,
    name: str,
    threshold: float,
    cache_dir: Path,
    typable: Mapping[str, bool],
) -> list[HotFlipRecord]:
    """What the attacked inputs `attacks` (example id -> ids) do to `victim`, whose own HotFlip records are `own`.

    Attackable here is what is attackable in `own` (the victim's clean ROUGE-L decides) and has an entry in `attacks`;
    an example that the source could not attack is `skipped` as NOT_ATTACKED_BY_SOURCE. `typable`: by id, whether the
    attacked ids are those of a text; where they must be and are not, the attack is no success. Losses are made in the
    blocks of the attack, so that what shares a batch with an example does not depend on the shards of a job array.
    """
    content = [(record.id, record.skipped) for record in own]
    fingerprint = context.fingerprint(
        victim.fingerprint, threshold, sorted((k, tuple(v), typable[k]) for k, v in attacks.items()), content
    )
    path = cache_dir / f"{name}_on_{victim.key}.json"
    saved = load_records(path, fingerprint, HotFlipRecord)
    if saved is not None:
        return saved
    fine = [record.skipped is None and record.id in attacks for record in own]
    blocks = [[own[i] for i in block if fine[i]] for block in blocks_of([r.id for r in own])]
    replayable = [record for block in blocks for record in block]
    inputs = [list(attacks[record.id]) for record in replayable]
    texts = summaries(context, victim, inputs, done_file=path.with_suffix(".jsonl"), label=f"{name} on {victim.key}")
    losses: list[float] = []
    for block in blocks:
        rows = [list(attacks[record.id]) for record in block]
        losses += exact_losses(context, victim, rows, [given(record.labels) for record in block]).tolist()
    scores = rouge_l(context, texts, [given(record.reference) for record in replayable])
    done: dict[str, HotFlipRecord] = {}
    for record, text, score, loss in zip(replayable, texts, scores.tolist(), losses, strict=True):
        clean_rouge, clean_loss = given(record.clean_rougeL), given(record.clean_loss)
        drop = relative_drop(clean_rouge, score)
        finite, legal = math.isfinite(loss), typable[record.id] or not context.legal.typable
        done[record.id] = HotFlipRecord(
            id=record.id,
            model=victim.key,
            method=name,
            skipped=None if finite else LOSS_NOT_FINITE,
            clean_rougeL=clean_rouge,
            attacked_rougeL=score,
            relative_drop=drop,
            success=finite and legal and reaches_threshold(drop, threshold),
            legal=legal,
            typable=typable[record.id],
            clean_loss=clean_loss,
            attacked_loss=round(loss, 6) if finite else None,
            loss_increase=round(loss_increase(clean_loss, loss), 6) if finite else None,
            attacked_prediction=text,
        )
    records = [
        done.get(record.id)
        or HotFlipRecord(id=record.id, model=victim.key, method=name, skipped=record.skipped or NOT_ATTACKED_BY_SOURCE)
        for record in own
    ]
    save_cached(path, fingerprint, records)
    return records


def attacked_inputs(records: Sequence[HotFlipRecord]) -> dict[str, list[int]]:
    """Final attacked ids by example id, of the examples that were attacked."""
    return {record.id: given(record.attacked_ids) for record in attackable(records)}


def typable_by_id(records: Sequence[HotFlipRecord]) -> dict[str, bool]:
    """Whether a text gives the attacked ids, by example id, of the examples that were attacked."""
    return {record.id: given(record.typable) for record in attackable(records)}
