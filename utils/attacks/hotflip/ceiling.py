"""What one flip could do at best, by trying every legal one: the yardstick of what the attack finds.

An attack that finds less of what is possible on one model than on another says nothing about which is more robust.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from utils.analysis.measures import relative_drop
from utils.analysis.records import CeilingRecord, HotFlipRecord, given
from utils.attacks.cache import load_records, save_cached
from utils.attacks.context import AttackContext, Victim, exact_losses, rouge_l, summaries
from utils.attacks.encoding import EncodedText
from utils.attacks.hotflip.attack import HotFlipSettings, target_labels
from utils.attacks.hotflip.proposals import EditablePositions, Flip, State, random_flips
from utils.attacks.objective import Objective, Targets
from utils.attacks.precision import largest, search_objective
from utils.attacks.seeding import generator

SLICE = 4096  # inputs made at once


def legal_flips(editable: EditablePositions, most: int, rng: np.random.Generator) -> tuple[list[Flip], bool]:
    """Every legal flip of one state and True; `most` random ones and False where there are more pairs to look at.

    Not more than `most` pairs are looked at: a text of 500 tokens has 16 million pairs with T5's vocabulary.
    """
    legal, ids = editable.legal, editable.state.ids
    places = np.flatnonzero(editable.open).tolist()
    if len(places) * len(legal.ids) > most:
        return random_flips(editable, most, rng), False
    pairs = [(p, v) for p in places for v in legal.ids.tolist() if v != ids[p]]
    words = [None if editable.always_typable(*pair) else editable.words_after(*pair) for pair in pairs]
    to_check = [word for word in words if word is not None]
    typable = dict(zip(to_check, legal.view.survives(to_check), strict=True))
    fine = [
        (p, v)
        for (p, v), word in zip(pairs, words, strict=True)
        if editable.always_typable(p, v) or (word is not None and typable[word])
    ]
    return [Flip(p, int(ids[p]), v, float("nan")) for p, v in fine], True


def ceilings(
    context: AttackContext,
    victim: Victim,
    items: Sequence[EncodedText],
    by_loss: Sequence[HotFlipRecord],
    by_metric: Sequence[HotFlipRecord],
    settings: HotFlipSettings,
    *,
    moves: int,
    summaries_each: int,
    seed: int,
    cache_dir: Path,
) -> list[CeilingRecord]:
    """The best single flip of each example in `items`, beside the first flip of the attack by loss and by metric.

    By loss over all legal flips, or `moves` random ones where there are more; by ROUGE-L over `summaries_each` of them,
    drawn at random where there are more. Records of examples that were not attackable have their reason alone. The
    loss is the one that the attack with these `settings` raised.
    """
    attacked, metric = ({record.id: record for record in rows} for rows in (by_loss, by_metric))
    content = [(item.id, attacked[item.id].search, metric[item.id].budget_rougeL) for item in items]
    fingerprint = context.fingerprint(victim.fingerprint, moves, summaries_each, seed, settings.loss, content)
    path = cache_dir / f"ceiling_on_{victim.key}.json"
    saved = load_records(path, fingerprint, CeilingRecord)
    if saved is not None:
        return saved
    ranker = search_objective(context, victim, [item for item in items if item.problem is None])
    records = []
    for item in items:
        own, rival = attacked[item.id], metric[item.id]
        record = CeilingRecord(id=item.id, model=victim.key, skipped=own.skipped or rival.skipped)
        if record.skipped is None:
            record = _ceiling(context, victim, ranker, item, own, rival, settings, moves, summaries_each, seed)
        records.append(record)
        context.check_stop()
    save_cached(path, fingerprint, records)
    return records


def _ceiling(
    context: AttackContext,
    victim: Victim,
    ranker: Objective,
    item: EncodedText,
    own: HotFlipRecord,
    rival: HotFlipRecord,
    settings: HotFlipSettings,
    moves: int,
    summaries_each: int,
    seed: int,
) -> CeilingRecord:
    state, rng = State(np.asarray(item.ids, dtype=np.int64), 0.0), generator(seed, "ceiling", item.id)
    flips, every = legal_flips(EditablePositions(context.legal, item, state), moves, rng)
    labels = target_labels(context, settings, [item], [given(own.clean_prediction)])
    targets, search = Targets(labels, ranker.device), given(own.search)
    # In slices: a text of 100 tokens has 100,000 legal inputs with a vocabulary of 1,000 words.
    losses = [np.zeros(0)]
    for begin in range(0, len(flips), SLICE):
        inputs = [state.child(flip, 0.0).ids for flip in flips[begin : begin + SLICE]]
        losses.append(ranker.losses(inputs, targets, np.zeros(len(inputs), dtype=np.int64)))
    exactly = [state.child(flips[k], 0.0).ids for k in largest(np.concatenate(losses))]
    best = float(np.nanmax(exact_losses(context, victim, exactly, labels * len(exactly)), initial=-np.inf))
    clean, found = search.losses[0], search.losses[1]
    drawn = [flips[k] for k in rng.permutation(len(flips))[:summaries_each]]
    inputs = [state.child(flip, 0.0).ids for flip in drawn]
    texts = summaries(context, victim, inputs)
    scores = rouge_l(context, texts, [item.summary] * len(texts))
    before, after = given(rival.clean_rougeL), given(rival.budget_rougeL)[0]
    return CeilingRecord(
        id=item.id,
        model=victim.key,
        skipped=None,
        moves=len(flips),
        every_move=every,
        best_loss_increase=round(max(best, found) - clean, 6),
        found_loss_increase=round(found - clean, 6),
        summaries=len(drawn),
        # What the attack found is possible too: a sample of moves may hold nothing as good.
        best_drop=max([relative_drop(before, after), *(relative_drop(before, score) for score in scores.tolist())]),
        found_drop=relative_drop(before, after),
    )
