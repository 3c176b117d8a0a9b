"""HotFlip beyond its budget: 10, 20, 40 ... tokens, and at last all of them.

An attack that is worth its name approaches the score of an unrelated text as more and more may change; where success
does not grow with the budget, the attack is broken, not the model strong (Carlini et al. 2019, section 4). Each budget
goes on from the state of the one before, beginning with the attack's own: one gradient, then some sets of new flips
that fill the budget, scored exactly; the strongest is taken if it raises the loss.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from utils.analysis.measures import relative_drop
from utils.analysis.records import HotFlipRecord, LongBudgetRecord, given
from utils.attacks.cache import blocks_of, load_records, save_cached
from utils.attacks.context import AttackContext, Victim, exact_losses, rouge_l, summaries
from utils.attacks.encoding import EncodedText
from utils.attacks.hotflip.proposals import GAIN_ELEMENTS
from utils.attacks.hotflip.search import DECIMALS
from utils.attacks.legal_tokens import LegalTokens
from utils.attacks.objective import Objective, Targets
from utils.attacks.seeding import generator

GUIDED, RANDOM = 6, 2  # sets of flips that are scored at each budget: by first-order gain, and at random
DEPTH = 4  # tokens per position that a guided set may choose from
EVERYTHING = 1 << 30  # the last budget: no limit


def long_budgets(num_flips: int, longest: int) -> list[int]:
    """Budgets beyond `num_flips`: doubled while below `longest`, the most tokens that any text has; then no limit."""
    budgets, now = [], 2 * num_flips
    while now < longest:
        budgets.append(now)
        now *= 2
    return [*budgets, EVERYTHING]


def attack_without_limit(
    context: AttackContext,
    victim: Victim,
    own: Sequence[HotFlipRecord],
    items: Sequence[EncodedText],
    *,
    num_flips: int,
    longest: int,
    threshold: float,
    seed: int,
    cache_dir: Path,
) -> list[LongBudgetRecord]:
    """Go on from the attacks in `own` (HotFlip records of `items`, in their order); one record per example.

    A record's `budgets` begin with `num_flips`, the attack's own state, and end with None: every token. `num_flips`,
    `losses`, `rougeL`, `drops` and `inputs` (ids) belong to them. `longest` decides the budgets: it must not depend on
    a job array's shard.
    """
    budgets = long_budgets(num_flips, longest)
    content = [(record.id, record.attacked_ids) for record in own]
    fingerprint = context.fingerprint(victim.fingerprint, budgets, threshold, seed, content)
    path = cache_dir / f"long_on_{victim.key}.json"
    saved = load_records(path, fingerprint, LongBudgetRecord)
    if saved is not None:
        return saved
    objective = Objective(victim.model, batch_tokens=context.batch_tokens)
    records = [
        LongBudgetRecord(id=record.id, model=victim.key, skipped=record.skipped, clean_rougeL=record.clean_rougeL)
        for record in own
    ]
    live: list[int] = []
    flat: list[list[int]] = []
    losses: list[float] = []
    width = len(budgets) + 1
    for block in blocks_of([record.id for record in own]):
        chosen = [i for i in block if own[i].skipped is None]
        inputs = _inputs_by_budget(
            objective, context.legal, [items[i] for i in chosen], [own[i] for i in chosen], budgets, seed
        )
        rows = [ids.tolist() for by_budget in inputs for ids in by_budget]
        labels = [given(own[i].labels) for i in chosen for _ in range(width)]
        losses += exact_losses(context, victim, rows, labels).tolist()
        live += chosen
        flat += rows
    label = f"{victim.key}: budgets beyond {num_flips}"
    texts = summaries(context, victim, flat, done_file=path.with_suffix(".jsonl"), label=label)
    scores = rouge_l(context, texts, [given(own[i].reference) for i in live for _ in range(width)])
    for n, i in enumerate(live):
        part = slice(n * width, (n + 1) * width)  # the budgets of one example lie together
        rouges = scores[part].tolist()
        records[i] = replace(
            records[i],
            clean_loss=own[i].clean_loss,
            budgets=[num_flips, *(None if b == EVERYTHING else b for b in budgets)],
            num_flips=[int(np.sum(np.array(ids) != np.array(items[i].ids))) for ids in flat[part]],
            tokens=items[i].end - items[i].start,
            losses=[round(x, 6) if math.isfinite(x) else None for x in losses[part]],
            rougeL=rouges,
            drops=[relative_drop(given(own[i].clean_rougeL), value) for value in rouges],
            inputs=flat[part],
        )
    save_cached(path, fingerprint, records)
    return records


def _inputs_by_budget(
    objective: Objective,
    legal: LegalTokens,
    items: Sequence[EncodedText],
    own: Sequence[HotFlipRecord],
    budgets: Sequence[int],
    seed: int,
) -> list[list[np.ndarray]]:
    """Per example its input at each budget, the attack's own first; the loss never falls from one to the next."""
    states = [np.array(given(record.attacked_ids), dtype=np.int64) for record in own]
    found = [[state] for state in states]
    targets = Targets([item.labels for item in items], objective.device)
    owner = np.arange(len(items))
    losses = np.round(objective.losses(states, targets, owner), DECIMALS)
    for budget in budgets:
        tops: list[tuple[np.ndarray, np.ndarray]] = [(np.zeros(0), np.zeros(0))] * len(items)

        def use(rows: np.ndarray, ids: Tensor, gradient: Tensor, tops: list = tops) -> None:
            for row, top in zip(rows, best_words(legal, objective.embedding, ids, gradient), strict=True):
                tops[row] = top

        objective.gradients(states, targets, owner, use)
        candidate_sets = [
            _sets(legal, item, state, top, budget, generator(seed, "long", item.id, budget))
            for item, state, top in zip(items, states, tops, strict=True)
        ]
        rows = [e for e, sets in enumerate(candidate_sets) for _ in sets]
        inputs = [ids for sets in candidate_sets for ids in sets]
        scores = iter(np.round(objective.losses(inputs, targets, rows), DECIMALS).tolist() if inputs else [])
        for e, sets in enumerate(candidate_sets):
            for ids in sets:
                score = next(scores)
                if math.isfinite(score) and not score <= losses[e]:
                    states[e], losses[e] = ids, score
            found[e].append(states[e])
    return found


@torch.inference_mode()
def best_words(
    legal: LegalTokens, embedding: Tensor, ids: Tensor, gradient: Tensor
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Per row (tokens int64 [T, DEPTH], gains float [T, DEPTH]): the words of largest first-order gain, best first."""
    pool = torch.from_numpy(legal.ids[: legal.whole] if legal.whole else legal.ids).to(embedding.device)
    table, depth = embedding[pool].float(), min(DEPTH, len(pool))
    step = max(GAIN_ELEMENTS["cuda" if ids.device.type == "cuda" else "cpu"] // (ids.shape[1] * len(pool)), 1)
    found = []
    for begin in range(0, len(ids), step):
        part = slice(begin, begin + step)
        now = (gradient[part] * embedding[ids[part]].float()).sum(-1, keepdim=True)
        gains, places = torch.nan_to_num(gradient[part] @ table.T - now, nan=-torch.inf).topk(depth, dim=2)
        found += list(zip(pool[places].cpu().numpy(), gains.double().cpu().numpy(), strict=True))
    return found


def _sets(
    legal: LegalTokens,
    item: EncodedText,
    state: np.ndarray,
    top: tuple[np.ndarray, np.ndarray],
    budget: int,
    rng: np.random.Generator,
) -> list[np.ndarray]:
    """Inputs that fill the budget with new flips. Whole words only, so that the result is text by construction."""
    free = np.array(item.attackable, dtype=np.int64)
    changed = state != np.array(item.ids)
    if budget < len(free):
        starts = legal.view.starts_word[state]
        after = np.append(starts[1:], True)  # the next token begins a word, or the text ends here
        after[item.end - 1] = True
        free = free[~changed[free]]
        free = free[starts[free] & after[free]] if legal.typable else free
    wanted = min(budget - int(changed.sum()), len(free)) if budget < len(item.attackable) else len(free)
    if wanted < 1:
        return []
    tokens, gains = top
    order = free[np.argsort(-gains[free, 0], kind="stable")]
    pool = legal.ids[: legal.whole] if legal.whole else legal.ids
    sets = []
    for n in range(GUIDED + RANDOM):
        ids = state.copy()
        if n < GUIDED:  # the best first; then others among twice as many, with the better tokens of each
            places = order[:wanted] if n == 0 else rng.permutation(order[: 2 * wanted])[:wanted]
            ids[places] = tokens[places, 0 if n == 0 else rng.integers(tokens.shape[1], size=len(places))]
        else:
            places = rng.permutation(free)[:wanted]
            ids[places] = rng.choice(pool, len(places))
        sets.append(ids)
    return sets
