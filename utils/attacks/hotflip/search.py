"""Iterative, verified search for token flips: propose, score exactly, accept only what raises the loss.

One engine serves the gradient attack and the gradient-free control; they differ in who proposes. All examples of a
block advance together, so that every exact score is part of a large batch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from utils.attacks.encoding import EncodedText
from utils.attacks.hotflip.proposals import (
    EditablePositions,
    FirstOrderScorer,
    Flip,
    State,
    TopFlips,
    choose,
    random_flips,
)
from utils.attacks.legal_tokens import LegalTokens
from utils.attacks.objective import Objective, Smoothing, Targets
from utils.attacks.seeding import generator

SMALLEST_GAIN = 1e-5  # nats; below it a difference may be float32 noise of another batch shape
DECIMALS = 6  # losses that agree to here are equal, and the earlier candidate wins: the same in every batch shape


@dataclass(eq=False)
class SearchTrajectory:
    """One attack on one example from one start: its beam of states and what it cost."""

    example: int
    restart: int
    states: list[State]
    rng: np.random.Generator
    best: list[State] = field(default_factory=list)  # best[k]: the strongest state with at most k flips
    queries: int = 0
    gradients: int = 0
    gradient_norm: float = math.nan  # of the loss at the clean input, over the positions that may change
    pairs: list[tuple[float, float, bool]] = field(default_factory=list)  # (predicted, actual, random) of all scored
    steps: list[dict[str, float | int | bool]] = field(default_factory=list)
    bad_losses: int = 0  # candidates whose loss was not finite: never accepted


class Proposer(Protocol):
    """Who suggests flips: `propose` gives the flips to score for each state; `learn` hears how they scored."""

    def propose(self, trajectories: Sequence[SearchTrajectory], states: Sequence[State]) -> list[list[Flip]]: ...

    def learn(self, trajectory: SearchTrajectory, flips: Sequence[Flip], gains: Sequence[float]) -> None: ...


class Memory:
    """The last exact gain of every flip that was scored, per trajectory: gains add up, more or less."""

    def __init__(self) -> None:
        self.gains: dict[tuple[int, int], dict[tuple[int, int], float]] = {}

    def learn(self, trajectory: SearchTrajectory, flips: Sequence[Flip], gains: Sequence[float]) -> None:
        """Write down what the flips gained."""
        known = self.gains.setdefault((trajectory.example, trajectory.restart), {})
        known |= {(f.position, f.new): gain for f, gain in zip(flips, gains, strict=True) if math.isfinite(gain)}

    def flips(self, trajectory: SearchTrajectory, editable: EditablePositions, count: int) -> list[Flip]:
        """Up to `count` flips at open positions that raised the loss, best first; not checked to be typable here."""
        known = self.gains.get((trajectory.example, trajectory.restart), {})
        ids = editable.state.ids
        best = sorted((pair for pair, gain in known.items() if gain > 0), key=lambda pair: -known[pair])
        return [Flip(p, int(ids[p]), v, math.nan) for p, v in best if editable.open[p] and v != ids[p]][:count]


class GradientProposer:
    """The top `candidates - random_candidates` flips by first-order gain, and a few random ones.

    The gradient is the mean of that at the input and `noisy_gradients` more under noise of an embedding's size (see
    Smoothing). Up to the share `remembered` of the flips are those that earlier steps found to raise the loss but did
    not take. The random ones measure how well the gradient predicts (fidelity), and are the way out where it is zero.
    """

    def __init__(
        self,
        objective: Objective,
        legal: LegalTokens,
        encoded: Sequence[EncodedText],
        targets: Targets,
        *,
        candidates: int,
        random_candidates: int,
        per_position: int,
        noisy_gradients: int = 0,
        remembered: float = 0.0,
    ) -> None:
        self.objective, self.legal, self.encoded, self.targets = objective, legal, encoded, targets
        self.candidates, self.random_candidates, self.per_position = candidates, random_candidates, per_position
        self.noisy_gradients, self.remembered = noisy_gradients, int(remembered * candidates)
        self.scorer = FirstOrderScorer(legal, objective.embedding, candidates=candidates, per_position=per_position)
        self.sigma = float(self.scorer.rows.std())
        self.memory = Memory()

    def propose(self, trajectories: Sequence[SearchTrajectory], states: Sequence[State]) -> list[list[Flip]]:
        """Flips to score for each state (`trajectories[i]` is the trajectory of `states[i]`)."""
        editables = [
            EditablePositions(self.legal, self.encoded[w.example], s) for w, s in zip(trajectories, states, strict=True)
        ]
        rng_flips = [random_flips(g, self.candidates, w.rng) for g, w in zip(editables, trajectories, strict=True)]
        tops: list = [None] * len(states)
        known = [self.memory.flips(w, g, 4 * self.remembered) for w, g in zip(trajectories, editables, strict=True)]
        expected: list[list[float]] = [[] for _ in states]
        again: list[list[float]] = [[] for _ in states]

        def use(rows: np.ndarray, ids, gradient) -> None:  # type: ignore[no-untyped-def]
            width = ids.shape[1]
            open_, whole = np.zeros((len(rows), width), dtype=bool), np.zeros((len(rows), width), dtype=bool)
            for k, i in enumerate(rows):
                open_[k, : len(editables[i].open)] = editables[i].open
                whole[k, : len(editables[i].whole)] = editables[i].whole
            for i, top in zip(rows, self.scorer.top(ids, gradient, open_, whole), strict=True):
                tops[i] = top
            for k, i in enumerate(rows):
                expected[i] = self._predict(rng_flips[i], gradient[k])
                again[i] = self._predict(known[i], gradient[k])

        seeds = [w.rng.integers(2**63, size=self.noisy_gradients) for w in trajectories]
        smoothing = Smoothing(
            self.sigma,
            [None, *([row[s] for row in seeds] for s in range(self.noisy_gradients))],
            [np.flatnonzero(g.open) for g in editables],
        )
        owner = [w.example for w in trajectories]
        self.objective.gradients([s.ids for s in states], self.targets, owner, use, smoothing=smoothing)
        norms = smoothing.norms
        wanted = [self.candidates - self.random_candidates if norm > 0 else 0 for norm in norms]
        tried = [TopFlips.of(flips, gains) for flips, gains in zip(known, again, strict=True)]
        # What earlier steps proved comes first; the gradient fills up.
        quotas = [min(self.remembered, count) for count in wanted]
        proved = choose(editables, tried, candidates=quotas, per_position=self.per_position)
        quotas = [count - len(flips) for count, flips in zip(wanted, proved, strict=True)]
        chosen = choose(editables, tops, candidates=quotas, per_position=self.per_position, besides=proved)
        for i, trajectory in enumerate(trajectories):
            chosen[i] = [*proved[i], *chosen[i]]
            trajectory.gradients += 1 + self.noisy_gradients
            if math.isnan(trajectory.gradient_norm):
                trajectory.gradient_norm = float(norms[i])
            taken = {(f.position, f.new) for f in chosen[i]}
            extra = [
                Flip(f.position, f.old, f.new, gain, random=True)
                for f, gain in zip(rng_flips[i], expected[i], strict=True)
                if (f.position, f.new) not in taken
            ]
            chosen[i] += extra[: self.candidates - len(chosen[i])]
        return chosen

    def learn(self, trajectory: SearchTrajectory, flips: Sequence[Flip], gains: Sequence[float]) -> None:
        """Remember the flips that raise the loss."""
        self.memory.learn(trajectory, flips, gains)

    def _predict(self, flips: Sequence[Flip], gradient) -> list[float]:  # type: ignore[no-untyped-def]
        if not flips:
            return []
        table = self.scorer.embedding
        change = table[[f.new for f in flips]].float() - table[[f.old for f in flips]].float()
        predicted: list[float] = (gradient[[f.position for f in flips]] * change).sum(1).double().cpu().tolist()
        return predicted


def search(
    objective: Objective,
    legal: LegalTokens,
    encoded: Sequence[EncodedText],
    targets: Targets,
    clean_losses: Sequence[float],
    proposer: Proposer,
    *,
    num_flips: int,
    beam: int = 1,
    restarts: int = 1,
    seed: int = 0,
) -> list[SearchTrajectory]:
    """Attack a block of examples; returns each one's best trajectory (`best[k]`: the strongest input of <= k flips).

    Row e of `targets` belongs to `encoded[e]`; `clean_losses[e]` is its loss unattacked. Loss never falls from
    `best[k]` to `best[k + 1]`. The first start is the clean input; each further restart begins with one random flip.
    """
    trajectories = []
    for e, item in enumerate(encoded):
        for restart in range(restarts):
            clean = State(np.asarray(item.ids, dtype=np.int64), float(clean_losses[e]))
            rng = generator(seed, item.id, restart)
            trajectories.append(SearchTrajectory(e, restart, [clean], rng, best=[clean]))
    for step in range(1, num_flips + 1):
        _advance(objective, legal, encoded, targets, trajectories, proposer, step=step, beam=beam)
    return [_merge([w for w in trajectories if w.example == e]) for e in range(len(encoded))]


def _advance(
    objective: Objective,
    legal: LegalTokens,
    encoded: Sequence[EncodedText],
    targets: Targets,
    trajectories: Sequence[SearchTrajectory],
    proposer: Proposer,
    *,
    step: int,
    beam: int,
) -> None:
    jumping = [w for w in trajectories if step == 1 and w.restart > 0]
    climbing = [w for w in trajectories if not (step == 1 and w.restart > 0)]
    owners = [(w, s) for w in climbing for s in w.states]
    proposals = proposer.propose([w for w, _ in owners], [s for _, s in owners]) if owners else []
    for trajectory in jumping:  # a restart leaves the clean input by one random flip, whatever that does to the loss
        editable = EditablePositions(legal, encoded[trajectory.example], trajectory.states[0])
        owners.append((trajectory, trajectory.states[0]))
        proposals.append(random_flips(editable, 1, trajectory.rng))
    inputs, rows = [], []
    for (trajectory, state), flips in zip(owners, proposals, strict=True):
        for flip in flips:
            ids = state.ids.copy()
            ids[flip.position] = flip.new
            inputs.append(ids)
            rows.append(trajectory.example)
    losses = iter(np.round(objective.losses(inputs, targets, rows), DECIMALS).tolist() if inputs else [])
    children: dict[int, list[State]] = {id(w): [] for w in trajectories}
    for (trajectory, state), flips in zip(owners, proposals, strict=True):
        scores = [next(losses) for _ in flips]
        trajectory.queries += len(flips)
        proposer.learn(trajectory, flips, [score - state.loss for score in scores])
        for flip, score in zip(flips, scores, strict=True):
            state.tried.add((flip.position, flip.new))
            if not math.isfinite(score):
                trajectory.bad_losses += 1
                continue
            if not math.isnan(flip.predicted):
                trajectory.pairs.append((flip.predicted, score - state.loss, flip.random))
            children[id(trajectory)].append(state.child(flip, score))
    for trajectory in trajectories:
        _select(trajectory, children[id(trajectory)], step=step, beam=beam, forced=trajectory in jumping)


def _select(trajectory: SearchTrajectory, children: list[State], *, step: int, beam: int, forced: bool) -> None:
    # A beam that is not full takes any child; a full one only what beats its weakest state.
    floor = trajectory.states[-1].loss if len(trajectory.states) == beam else -math.inf
    better = [child for child in children if forced or child.loss > floor + SMALLEST_GAIN]
    pool = better if forced and better else [*better, *trajectory.states]
    pool.sort(key=lambda state: -state.loss)  # stable: of equals the earlier candidate stays first
    kept: dict[bytes, State] = {}
    for state in pool:
        kept.setdefault(state.ids.tobytes(), state)
        if len(kept) == beam:
            break
    top_before = trajectory.states[0]
    trajectory.states = list(kept.values())
    top = trajectory.states[0]
    scored = max((c.loss for c in children), default=math.nan)
    trajectory.steps.append(
        {
            "step": step,
            "accepted": top is not top_before,
            "loss": top.loss,
            "best_candidate_loss": scored if math.isfinite(scored) else None,
            "queries": trajectory.queries,
        }
    )
    trajectory.best.append(top if top.loss > trajectory.best[-1].loss else trajectory.best[-1])


def _merge(trajectories: Sequence[SearchTrajectory]) -> SearchTrajectory:
    """An example's strongest trajectory, with the best state of any restart at each budget and the sum of costs."""
    winner = max(trajectories, key=lambda trajectory: (trajectory.best[-1].loss, -trajectory.restart))
    winner.best = [max((w.best[k] for w in trajectories), key=lambda s: s.loss) for k in range(len(winner.best))]
    winner.queries = sum(w.queries for w in trajectories)
    winner.gradients = sum(w.gradients for w in trajectories)
    winner.bad_losses = sum(w.bad_losses for w in trajectories)
    winner.pairs = [pair for w in trajectories for pair in w.pairs]
    winner.gradient_norm = next((w.gradient_norm for w in trajectories if not math.isnan(w.gradient_norm)), math.nan)
    return winner
