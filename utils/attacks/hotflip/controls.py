"""Attacks without gradients, of the same budget: what the gradient attack must beat to mean anything."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from utils.attacks.context import AttackContext, Victim, rouge_l, summaries
from utils.attacks.encoding import EncodedText, reference_positions
from utils.attacks.hotflip.proposals import (
    EditablePositions,
    Flip,
    State,
    only,
    random_flips,
    random_flips_each,
)
from utils.attacks.legal_tokens import LegalTokens, TokenIds
from utils.attacks.objective import Objective, Targets

EXPLOIT = 0.5  # share of the tries at positions that have proved sensitive


def random_sets(
    legal: LegalTokens, item: EncodedText, *, num_flips: int, draws: int, rng: np.random.Generator
) -> list[list[Flip]]:
    """`draws` random attacks of up to `num_flips` flips at different positions (fewer where the text is shorter)."""
    states = [State(np.asarray(item.ids, dtype=np.int64), 0.0) for _ in range(draws)]
    for _ in range(num_flips):
        drawn = random_flips_each([EditablePositions(legal, item, state) for state in states], 1, [rng] * draws)
        states = [state.child(flips[0], 0.0) if flips else state for state, flips in zip(states, drawn, strict=True)]
    return [list(state.flips) for state in states]


def strongest_random(
    objective: Objective,
    legal: LegalTokens,
    items: Sequence[EncodedText],
    targets: Targets,
    *,
    num_flips: int,
    draws: int,
    rngs: Sequence[np.random.Generator],
) -> list[TokenIds]:
    """For each example the input of the random attack, of `draws`, that raises the loss of its row of `targets` most.

    The same loss as the attack's, or the control climbs another hill than what it is compared with.
    """
    inputs, owner = _drawn_inputs(legal, items, num_flips, [draws] * len(items), rngs)
    losses = objective.losses(inputs, targets, owner)
    table = np.nan_to_num(losses.reshape(len(items), draws), nan=-np.inf)  # a NaN is not the strongest
    return [inputs[e * draws + int(np.argmax(row))] for e, row in enumerate(table)]


def strongest_random_by_metric(
    context: AttackContext,
    victim: Victim,
    items: Sequence[EncodedText],
    *,
    num_flips: int,
    draws: Sequence[int],
    rngs: Sequence[np.random.Generator],
) -> list[TokenIds]:
    """For each example the input of the random attack, of `draws[e]`, whose summary has the lowest ROUGE-L."""
    inputs, owner = _drawn_inputs(context.legal, items, num_flips, draws, rngs)
    texts = summaries(context, victim, inputs)
    scores = rouge_l(context, texts, [items[e].summary for e in owner])
    best: dict[int, int] = {}  # example -> its lowest draw
    for n, e in enumerate(owner):
        if e not in best or scores[n] < scores[best[e]]:
            best[e] = n
    return [inputs[best[e]] if e in best else items[e].ids for e in range(len(items))]


def _drawn_inputs(
    legal: LegalTokens,
    items: Sequence[EncodedText],
    num_flips: int,
    draws: Sequence[int],
    rngs: Sequence[np.random.Generator],
) -> tuple[list[TokenIds], list[int]]:
    """Random attacks on each item as inputs, and the item of each."""
    inputs: list[TokenIds] = []
    owner: list[int] = []
    for e, (item, count, rng) in enumerate(zip(items, draws, rngs, strict=True)):
        for flips in random_sets(legal, item, num_flips=num_flips, draws=count, rng=rng):
            ids = np.array(item.ids, dtype=np.int64)
            ids[[flip.position for flip in flips]] = [flip.new for flip in flips]
            inputs.append(ids)
            owner.append(e)
    return inputs, owner


def one_shot(
    objective: Objective, legal: LegalTokens, items: Sequence[EncodedText], *, num_flips: int
) -> list[np.ndarray]:
    """The unverified recipe: the positions of largest gradient norm, all flipped at once to the arg-max of g · e_v.

    One gradient, no exact score, no search, no typability; attacked ids int64 [T] per example. What published
    "HotFlip" numbers are often made with, and so the least that a real attack has to reach.
    """
    attacked = [np.array(item.ids, dtype=np.int64) for item in items]
    tokens = torch.from_numpy(legal.ids).to(objective.device)  # [V]
    rows = objective.embedding[tokens].float()  # [V, d]

    def use(batch: np.ndarray, ids: torch.Tensor, gradient: torch.Tensor) -> None:
        for k, i in enumerate(batch):
            positions = torch.tensor(items[i].attackable, device=gradient.device)
            top = positions[gradient[k, positions].norm(dim=1).topk(min(num_flips, len(positions))).indices]
            # The arg-max over v of g . (e_v - e_old) is that of g . e_v: the old token's share is the same for all v.
            scores = gradient[k, top] @ rows.T  # [flips, V]
            scores[tokens[None, :] == ids[k, top][:, None]] = -torch.inf  # a token is no flip of itself
            attacked[i][top.cpu().numpy()] = tokens[scores.argmax(dim=1)].cpu().numpy()

    targets = Targets([item.labels for item in items], objective.device)
    objective.gradients([np.asarray(item.ids) for item in items], targets, np.arange(len(items)), use)
    return attacked


def random_at_reference(
    context: AttackContext, item: EncodedText, *, num_flips: int, rng: np.random.Generator
) -> TokenIds:
    """The input with up to `num_flips` random legal flips, in content words of the reference as long as there are any.

    It asks the model nothing. What it reaches is no lack of robustness: the facts of the text have changed.
    """
    state, shared = State(np.asarray(item.ids, dtype=np.int64), 0.0), reference_positions(context.view, item)
    for _ in range(num_flips):
        editable = EditablePositions(context.legal, item, state)
        narrow = only(editable, [p for p in np.flatnonzero(editable.open).tolist() if p in shared])
        drawn = random_flips(narrow, 1, rng) or random_flips(editable, 1, rng)
        state = state.child(drawn[0], 0.0) if drawn else state
    return state.ids


def all_replaced(legal: LegalTokens, item: EncodedText, rng: np.random.Generator) -> np.ndarray:
    """The input with every attackable token replaced by a random whole word: what no summarizer can survive.

    An attack whose success does not rise towards this one's as the budget grows is broken (Carlini et al. 2019).
    """
    ids = np.asarray(item.ids, dtype=np.int64).copy()
    pool = legal.ids[: legal.whole] if legal.whole else legal.ids
    ids[list(item.attackable)] = rng.choice(pool, len(item.attackable))
    return ids
