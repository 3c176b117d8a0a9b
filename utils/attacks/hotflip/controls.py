"""Attacks without gradients, of the same budget: what the gradient attack must beat to mean anything."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch

from utils.analysis.measures import GRADIENT_COST
from utils.attacks.encoding import EncodedText
from utils.attacks.hotflip.proposals import EditablePositions, Flip, State, TopFlips, choose, random_flips
from utils.attacks.hotflip.search import Memory, SearchTrajectory
from utils.attacks.legal_tokens import LegalTokens
from utils.attacks.objective import Objective, Targets

EXPLOIT = 0.5  # share of the tries at positions that have proved sensitive


class GreedyProposer:
    """Gradient-free greedy search with as many forward passes as the gradient attack.

    The share `remembered` of a step's flips are those that earlier steps found to raise the loss but did not take, as
    in the gradient attack. Half of the rest go to the positions whose changes have raised the loss most so far, with
    random tokens, the others anywhere: importance ranking and search in one, in the spirit of TextAttack's greedy
    word-importance search, with no query spent on deletions alone. Where this beats the gradient attack, the gradient
    is hiding something (Carlini et al. 2019, "gradient-free attacks").
    """

    def __init__(
        self,
        legal: LegalTokens,
        encoded: Sequence[EncodedText],
        *,
        candidates: int,
        gradients: int = 1,
        remembered: float = 0.0,
    ) -> None:
        self.legal, self.encoded = legal, encoded
        self.tries = candidates + GRADIENT_COST * gradients
        self.remembered = int(remembered * candidates)
        self.memory = Memory()

    def propose(self, trajectories: Sequence[SearchTrajectory], states: Sequence[State]) -> list[list[Flip]]:
        """Flips to score for each state."""
        return [self._flips(trajectory, state) for trajectory, state in zip(trajectories, states, strict=True)]

    def learn(self, trajectory: SearchTrajectory, flips: Sequence[Flip], gains: Sequence[float]) -> None:
        """Remember what the flips gained."""
        self.memory.learn(trajectory, flips, gains)

    def _flips(self, trajectory: SearchTrajectory, state: State) -> list[Flip]:
        editable = EditablePositions(self.legal, self.encoded[trajectory.example], state)
        best: dict[int, float] = {}
        for (position, _), gain in self.memory.gains.get((trajectory.example, trajectory.restart), {}).items():
            best[position] = max(best.get(position, -np.inf), gain)
        proved = TopFlips.of(
            tried := self.memory.flips(trajectory, editable, 4 * self.remembered), [math.nan] * len(tried)
        )
        (flips,) = choose([editable], [proved], candidates=[self.remembered], per_position=self.tries)
        left = self.tries - len(flips)
        sensitive = sorted((p for p in best if editable.open[p]), key=lambda p: -best[p])[: max(self.tries // 4, 1)]
        drawn: list[Flip] = []
        if sensitive:
            narrow = EditablePositions(self.legal, self.encoded[trajectory.example], state)
            mask = np.zeros(len(state.ids), dtype=bool)
            mask[sensitive] = True
            narrow.open &= mask
            narrow.whole &= mask
            drawn = random_flips(narrow, int(left * EXPLOIT), trajectory.rng)
        drawn += random_flips(editable, self.tries, trajectory.rng)
        for flip in drawn:
            if all((flip.position, flip.new) != (other.position, other.new) for other in flips):
                flips.append(flip)
        return flips[: self.tries]


def random_sets(
    legal: LegalTokens, item: EncodedText, *, num_flips: int, draws: int, rng: np.random.Generator
) -> list[list[Flip]]:
    """`draws` random attacks of up to `num_flips` flips at different positions (fewer where the text is shorter)."""
    sets = []
    for _ in range(draws):
        state, flips = State(np.asarray(item.ids, dtype=np.int64), 0.0), []
        for _ in range(num_flips):
            drawn = random_flips(EditablePositions(legal, item, state), 1, rng)
            if not drawn:
                break
            flips += drawn
            state = state.child(drawn[0], 0.0)
        sets.append(flips)
    return sets


def strongest_random(
    objective: Objective,
    legal: LegalTokens,
    items: Sequence[EncodedText],
    *,
    num_flips: int,
    draws: int,
    rngs: Sequence[np.random.Generator],
) -> list[list[Flip]]:
    """For each example the random attack, of `draws`, that raises the reference loss most."""
    sets = [
        random_sets(legal, item, num_flips=num_flips, draws=draws, rng=rng)
        for item, rng in zip(items, rngs, strict=True)
    ]
    inputs, owner = [], []
    for e, (item, draws_of_item) in enumerate(zip(items, sets, strict=True)):
        for flips in draws_of_item:
            ids = np.asarray(item.ids, dtype=np.int64).copy()
            ids[[f.position for f in flips]] = [f.new for f in flips]
            inputs.append(ids)
            owner.append(e)
    losses = objective.losses(inputs, Targets([item.labels for item in items], objective.device), owner)
    table = np.nan_to_num(losses.reshape(len(items), draws), nan=-np.inf)  # a NaN is not the strongest
    return [draws_of_item[int(np.argmax(row))] for draws_of_item, row in zip(sets, table, strict=True)]


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


def all_replaced(legal: LegalTokens, item: EncodedText, rng: np.random.Generator) -> np.ndarray:
    """The input with every attackable token replaced by a random whole word: what no summarizer can survive.

    An attack whose success does not rise towards this one's as the budget grows is broken (Carlini et al. 2019).
    """
    ids = np.asarray(item.ids, dtype=np.int64).copy()
    pool = legal.ids[: legal.whole] if legal.whole else legal.ids
    ids[list(item.attackable)] = rng.choice(pool, len(item.attackable))
    return ids
