"""What a trigger does to a model on the evaluation examples: per-example records, all of them, nothing capped."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from utils.analysis.measures import loss_increase, reaches_threshold, relative_drop
from utils.analysis.records import TriggerRecord
from utils.attacks.cache import load_records, save_cached
from utils.attacks.context import AttackContext, Victim, exact_losses, summaries
from utils.attacks.encoding import LOSS_NOT_FINITE, LOW_CLEAN_ROUGE, reads_as
from utils.attacks.triggers.inputs import TriggerExample, check_in_place
from utils.scoring.rouge import rouge_scores

ROUGES = ("rouge1", "rouge2", "rougeL")  # the metrics of a TriggerRecord


@dataclass(frozen=True)
class CleanSide:
    """One model on the unattacked examples: summaries, ROUGE (float64 [N] each) and float32 losses [N].

    Examples with a `problem` have an empty summary, zero scores and a loss of nan.
    """

    texts: list[str]
    rouge: dict[str, np.ndarray]
    losses: np.ndarray


def clean_side(
    context: AttackContext, victim: Victim, items: Sequence[TriggerExample], *, cache_dir: Path
) -> CleanSide:
    """Summaries, scores and losses of `items` without a trigger; kept in `cache_dir`."""
    usable = [n for n, item in enumerate(items) if item.problem is None]
    file = cache_dir / f"clean_{victim.key}.jsonl"
    found = summaries(context, victim, [items[n].clean for n in usable], done_file=file, label=f"{victim.key}: clean")
    losses = exact_losses(context, victim, [items[n].clean for n in usable], [items[n].labels for n in usable])
    scores = (
        rouge_scores(found, [items[n].summary for n in usable], metrics=ROUGES, processes=context.rouge_processes)
        if usable
        else {}
    )
    texts, all_losses = [""] * len(items), np.full(len(items), np.nan)
    rouge = {metric: np.zeros(len(items)) for metric in ROUGES}
    for place, n in enumerate(usable):
        texts[n], all_losses[n] = found[place], losses[place]
        for metric in ROUGES:
            rouge[metric][n] = scores[metric][place]
    return CleanSide(texts, rouge, all_losses)


def evaluate_trigger(
    context: AttackContext,
    victim: Victim,
    items: Sequence[TriggerExample],
    clean: CleanSide,
    *,
    trigger_type: str,
    trigger: Sequence[int],
    source: str,
    threshold: float,
    min_clean_rouge: float,
    seed: int,
    cache_dir: Path,
    name: str = "attack",
) -> list[TriggerRecord]:
    """One record per example: `trigger` (found on model `source`) put into every text that `victim` summarises.

    The trigger's presence is checked on the final ids of every example. `success`: relative ROUGE-L drop of at least
    `threshold`; only examples with clean ROUGE-L >= `min_clean_rouge` are attackable, others name why they are not.
    """
    stem = f"{name}_{trigger_type}_{source}_on_{victim.key}"
    content = [(item.id, item.ids, item.labels, item.summary) for item in items]
    fingerprint = context.fingerprint(
        victim.fingerprint, list(map(int, trigger)), threshold, min_clean_rouge, seed, content
    )
    saved = load_records(cache_dir / f"{stem}.json", fingerprint, TriggerRecord)
    if saved is not None:
        return saved
    usable = [n for n, item in enumerate(items) if item.problem is None]
    boundaries = {n: items[n].draw_boundary(trigger_type, seed, "evaluate") for n in usable}
    for n in usable:
        check_in_place(items[n], trigger_type, trigger, boundaries[n], context.max_input_length)
    inputs = [items[n].with_trigger(trigger_type, trigger, boundaries[n]) for n in usable]
    label = f"{source} {trigger_type} {name} on {victim.key}"
    texts = summaries(context, victim, inputs, done_file=cache_dir / f"{stem}.jsonl", label=label)
    losses = exact_losses(context, victim, inputs, [items[n].labels for n in usable])
    scores = (
        rouge_scores(texts, [items[n].summary for n in usable], metrics=ROUGES, processes=context.rouge_processes)
        if usable
        else {}
    )
    words = context.view.text(trigger).strip()
    typed = [items[n].attacked_text(trigger_type, words, context.prefix, boundaries[n]) for n in usable]
    typable = reads_as(context.view, typed, inputs, prefix="", max_input_length=context.max_input_length)
    records = [
        TriggerRecord(id=item.id, source=source, model=victim.key, trigger_type=trigger_type, skipped=item.problem)
        for item in items
    ]
    for place, n in enumerate(usable):
        item, clean_rouge, attacked_rouge = items[n], float(clean.rouge["rougeL"][n]), float(scores["rougeL"][place])
        increase = float(loss_increase(clean.losses[n], losses[place]))
        skipped = None
        if not math.isfinite(increase):
            skipped = LOSS_NOT_FINITE
        elif not reaches_threshold(clean_rouge, min_clean_rouge):
            skipped = LOW_CLEAN_ROUGE
        drop = relative_drop(clean_rouge, attacked_rouge)
        records[n] = replace(
            records[n],
            skipped=skipped,
            clean_rouge1=float(clean.rouge["rouge1"][n]),
            clean_rouge2=float(clean.rouge["rouge2"][n]),
            clean_rougeL=clean_rouge,
            attacked_rouge1=float(scores["rouge1"][place]),
            attacked_rouge2=float(scores["rouge2"][place]),
            attacked_rougeL=attacked_rouge,
            relative_drop=drop,
            success=skipped is None and reaches_threshold(drop, threshold),
            clean_loss=_finite(clean.losses[n]),
            attacked_loss=_finite(losses[place]),
            loss_increase=_finite(increase),
            slot=item.slot(trigger_type, boundaries[n]),
            input_length=len(inputs[place]),
            one_sentence=item.one_sentence,
            typable=bool(typable[place]),
            clean_prediction=clean.texts[n],
            attacked_prediction=texts[place],
            reference=item.summary,
        )
    save_cached(cache_dir / f"{stem}.json", fingerprint, records)
    return records


def _finite(value: float) -> float | None:
    return round(float(value), 6) if math.isfinite(value) else None
