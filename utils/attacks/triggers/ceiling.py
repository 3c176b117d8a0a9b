"""What the last slot of a trigger could do at best, by trying every legal token there: the yardstick of the search."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from utils.analysis.records import CeilingRecord, TriggerSearch
from utils.attacks.cache import load_records, save_cached
from utils.attacks.context import AttackContext, Victim
from utils.attacks.objective import Objective
from utils.attacks.precision import largest
from utils.attacks.seeding import generator
from utils.attacks.triggers.candidates import token_pool, typable
from utils.attacks.triggers.inputs import TriggerExample
from utils.attacks.triggers.objective import TriggerObjective

SLICE = 256  # triggers whose inputs are made at once


def last_slot(
    context: AttackContext,
    victim: Victim,
    ranker: Objective,
    held_out: Sequence[TriggerExample],
    search: TriggerSearch,
    *,
    moves: int,
    seed: int,
    cache_file: Path,
) -> list[CeilingRecord]:
    """The learned trigger of largest held-out loss beside the same with the best token of all in its last slot.

    One record for each of `held_out`: the loss rise by the trigger, and that with the token that raises the mean loss
    of all of them most, among all legal tokens, or `moves` random ones where there are more. That token is chosen on
    the texts it is measured on, the learned one on others: the share found is a lower bound.
    """
    trigger, kind = search.by_loss.trigger_ids, search.trigger_type
    content = [(item.id, item.ids, item.labels) for item in held_out]
    fingerprint = context.fingerprint(victim.key, victim.weights, kind, trigger, moves, seed, content)
    saved = load_records(cache_file, fingerprint, CeilingRecord)
    if saved is not None:
        return saved
    pool = token_pool(context.legal, kind)
    every = len(pool) <= moves
    drawn = pool if every else generator(seed, kind, "last slot").choice(pool, moves, replace=False)
    others = [[*trigger[:-1], token] for token in drawn.tolist() if token != trigger[-1]]
    fine = typable(context.legal, others)
    tried = [list(trigger), *(other for other, kept in zip(others, fine, strict=True) if kept)]
    rows = range(len(held_out))
    ranked, exact = (
        TriggerObjective(one, held_out, kind, seed)
        for one in (ranker, Objective(victim.model, batch_tokens=context.batch_tokens))
    )
    means = np.zeros(len(tried))
    for begin in range(0, len(tried), SLICE):
        part = slice(begin, begin + SLICE)
        means[part] = ranked.losses(tried[part], rows, "dev").mean(axis=1)
        context.check_stop()
    finalists = [tried[0], *(tried[k] for k in largest(means))]
    rises = exact.losses(finalists, rows, "dev") - exact.clean_losses()  # float64 [finalists, held_out]
    best = rises[int(np.argmax(rises.mean(axis=1)))]
    records = [
        CeilingRecord(
            id=item.id,
            model=victim.key,
            skipped=None,
            moves=len(tried),
            every_move=every,
            found_loss_increase=round(float(found), 6),
            best_loss_increase=round(float(possible), 6),
        )
        for item, found, possible in zip(held_out, rises[0], best, strict=True)
    ]
    save_cached(cache_file, fingerprint, records)
    return records
