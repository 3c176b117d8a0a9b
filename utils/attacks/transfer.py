"""Attacks replayed: flips that were found on one model (or drawn at random), scored on another."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from utils.analysis.measures import loss_increase, reaches_threshold, relative_drop
from utils.attacks.cache import blocks_of, load_cached, save_cached
from utils.attacks.context import AttackContext, Victim, exact_losses, rouge_l, summaries
from utils.attacks.encoding import LOSS_NOT_FINITE

Record = Mapping[str, Any]


def replay(
    context: AttackContext,
    victim: Victim,
    attacks: Mapping[str, Sequence[int]],
    own: Sequence[Record],
    *,
    name: str,
    threshold: float,
    cache_dir: Path,
) -> list[dict[str, Any]]:
    """What the attacked inputs `attacks` (example id -> ids) do to `victim`, whose own HotFlip records are `own`.

    Attackable here is what is attackable in `own` (the victim's clean ROUGE-L decides) and has an entry in `attacks`;
    an example that the source could not attack is `skipped` as "not_attacked_by_source". Losses are made in the blocks
    of the attack, so that what shares a batch with an example does not depend on the shards of a job array.
    """
    fingerprint = context.fingerprint(victim.fingerprint, threshold, sorted((k, tuple(v)) for k, v in attacks.items()),
                             [(r["id"], r["skipped"]) for r in own])  # fmt: skip
    path = cache_dir / f"{name}_on_{victim.key}.json"
    saved = load_cached(path, fingerprint)
    if saved is not None:
        records: list[dict[str, Any]] = saved
        return records
    fine = [r["skipped"] is None and r["id"] in attacks for r in own]
    blocks = [[own[i] for i in block if fine[i]] for block in blocks_of([r["id"] for r in own])]
    live = [record for block in blocks for record in block]
    inputs = [list(attacks[r["id"]]) for r in live]
    texts = summaries(context, victim, inputs, done_file=path.with_suffix(".jsonl"), what=f"{name} on {victim.key}")
    losses: list[float] = []
    for block in blocks:
        rows = [list(attacks[r["id"]]) for r in block]
        losses += exact_losses(context, victim, rows, [r["labels"] for r in block]).tolist()
    scores = rouge_l(context, texts, [r["reference"] for r in live])
    done: dict[str, dict[str, Any]] = {}
    for record, text, score, loss in zip(live, texts, scores.tolist(), losses, strict=True):
        drop = relative_drop(record["clean_rouge"], score)
        finite = math.isfinite(loss)
        done[record["id"]] = {
            "id": record["id"],
            "model": victim.key,
            "method": name,
            "skipped": None if finite else LOSS_NOT_FINITE,
            "clean_rouge": record["clean_rouge"],
            "attacked_rouge": score,
            "relative_drop": drop,
            "success": finite and reaches_threshold(drop, threshold),
            "clean_loss": record["clean_loss"],
            "adv_loss": round(loss, 6) if finite else None,
            "loss_increase": round(loss_increase(record["clean_loss"], loss), 6) if finite else None,
            "attacked_prediction": text,
        }
    records = [
        done.get(r["id"])
        or {"id": r["id"], "model": victim.key, "method": name, "skipped": r["skipped"] or "not_attacked_by_source"}
        for r in own
    ]
    save_cached(path, fingerprint, records)
    return records


def attacked_inputs(records: Sequence[Record]) -> dict[str, list[int]]:
    """Final attacked ids by example id, of the examples that were attacked."""
    return {record["id"]: record["adv_ids"] for record in records if record["skipped"] is None}
