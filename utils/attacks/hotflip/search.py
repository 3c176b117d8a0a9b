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
from numpy.typing import NDArray
from torch import Tensor

from utils.analysis.records import SearchStep
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
    steps: list[SearchStep] = field(default_factory=list)
    retried_gradients: int = 0  # not finite, computed again in float32
    bad_gradients: int = 0  # not finite then either: taken for zero
    bad_losses: int = 0  # candidates whose loss was not finite: never accepted
    generations: int = 0  # summaries that chose between candidates (the search by the metric)


class Proposer(Protocol):
    """Who suggests flips: `propose` gives the flips to score for each state; `learn` hears how they scored."""

    def propose(self, trajectories: Sequence[SearchTrajectory], states: Sequence[State]) -> list[list[Flip]]: ...

    def learn(self, trajectory: SearchTrajectory, flips: Sequence[Flip], gains: Sequence[float]) -> None: ...


class Memory:
    """The last exact gain of every flip that was scored, per trajectory: gains add up, more or less."""

    def __init__(self) -> None:
        # (example, restart) -> (position, token) -> gain in nats
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
        self.sigma = float(self.scorer.rows.std())  # noise as large as embeddings differ: about as far as a flip goes
        self.memory = Memory()

    def propose(self, trajectories: Sequence[SearchTrajectory], states: Sequence[State]) -> list[list[Flip]]:
        """Flips to score for each state (`trajectories[i]` is that of `states[i]`)."""
        editables = [
            EditablePositions(self.legal, self.encoded[t.example], s) for t, s in zip(trajectories, states, strict=True)
        ]
        random = [random_flips(e, self.candidates, t.rng) for e, t in zip(editables, trajectories, strict=True)]
        # Four times as many as there is room for: some will not be typable on this state.
        known = [self.memory.flips(t, e, 4 * self.remembered) for t, e in zip(trajectories, editables, strict=True)]
        tops, random_gains, known_gains, norms = self._score(trajectories, states, editables, random, known)
        # Where the gradient is zero its order means nothing: all candidates are random then.
        wanted = [self.candidates - self.random_candidates if norm > 0 else 0 for norm in norms]
        tried = [TopFlips.of(flips, gains) for flips, gains in zip(known, known_gains, strict=True)]
        # What earlier steps proved comes first; the gradient fills up.
        quotas = [min(self.remembered, count) for count in wanted]
        proved = choose(editables, tried, candidates=quotas, per_position=self.per_position)
        quotas = [count - len(flips) for count, flips in zip(wanted, proved, strict=True)]
        by_gain = choose(editables, tops, candidates=quotas, per_position=self.per_position, besides=proved)
        proposals = []
        for i, trajectory in enumerate(trajectories):
            trajectory.gradients += 1 + self.noisy_gradients
            trajectory.retried_gradients += self.objective.retried[i]
            trajectory.bad_gradients += self.objective.bad[i]
            if math.isnan(trajectory.gradient_norm):
                trajectory.gradient_norm = float(norms[i])
            flips = [*proved[i], *by_gain[i]]
            taken = {(flip.position, flip.new) for flip in flips}
            extra = [
                Flip(flip.position, flip.old, flip.new, gain, random=True)
                for flip, gain in zip(random[i], random_gains[i], strict=True)
                if (flip.position, flip.new) not in taken
            ]
            proposals.append(flips + extra[: self.candidates - len(flips)])
        return proposals

    def _score(
        self,
        trajectories: Sequence[SearchTrajectory],
        states: Sequence[State],
        editables: Sequence[EditablePositions],
        random: Sequence[Sequence[Flip]],
        known: Sequence[Sequence[Flip]],
    ) -> tuple[list[TopFlips], list[list[float]], list[list[float]], NDArray[np.float64]]:
        """Per state: the best pairs by first-order gain; gains of the flips `random` and `known`; gradient norms."""
        tops = [TopFlips.of([], [])] * len(states)
        random_gains: list[list[float]] = [[] for _ in states]
        known_gains: list[list[float]] = [[] for _ in states]

        def use(rows: NDArray[np.int64], ids: Tensor, gradient: Tensor) -> None:
            # One batch of gradients [b, T, d] at a time is reduced to a few pairs; all of them would not fit.
            open_, whole = np.zeros(ids.shape, dtype=bool), np.zeros(ids.shape, dtype=bool)  # padding stays closed
            for k, i in enumerate(rows):
                open_[k, : len(editables[i].open)] = editables[i].open
                whole[k, : len(editables[i].whole)] = editables[i].whole
            for k, (i, top) in enumerate(zip(rows, self.scorer.top(ids, gradient, open_, whole), strict=True)):
                tops[i] = top
                random_gains[i] = self._predict(random[i], gradient[k])
                known_gains[i] = self._predict(known[i], gradient[k])

        seeds = [t.rng.integers(2**63, size=self.noisy_gradients) for t in trajectories]
        smoothing = Smoothing(
            self.sigma,
            [None, *([int(row[s]) for row in seeds] for s in range(self.noisy_gradients))],
            [np.flatnonzero(editable.open) for editable in editables],
        )
        owner = [t.example for t in trajectories]
        self.objective.gradients([s.ids for s in states], self.targets, owner, use, smoothing=smoothing)
        return tops, random_gains, known_gains, smoothing.norms

    def learn(self, trajectory: SearchTrajectory, flips: Sequence[Flip], gains: Sequence[float]) -> None:
        """Remember the flips that raise the loss."""
        self.memory.learn(trajectory, flips, gains)

    def _predict(self, flips: Sequence[Flip], gradient: Tensor) -> list[float]:
        """First-order gain g_p . (e_new - e_old) of each flip; `gradient` float32 [T, d] of one input."""
        if not flips:
            return []
        table = self.scorer.embedding
        change = table[[f.new for f in flips]].float() - table[[f.old for f in flips]].float()  # [flips, d]
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
    # A restart leaves the clean input by one random flip, whatever that does to the loss; all others climb.
    from_restart = [t for t in trajectories if step == 1 and t.restart > 0]
    owners = [(t, s) for t in trajectories if t not in from_restart for s in t.states]
    proposals = proposer.propose([t for t, _ in owners], [s for _, s in owners]) if owners else []
    for trajectory in from_restart:
        editable = EditablePositions(legal, encoded[trajectory.example], trajectory.states[0])
        owners.append((trajectory, trajectory.states[0]))
        proposals.append(random_flips(editable, 1, trajectory.rng))
    # All candidates of all states are scored in one call, so that batches are full; `losses` hands them out in order.
    inputs, rows = [], []
    for (trajectory, state), flips in zip(owners, proposals, strict=True):
        for flip in flips:
            ids = state.ids.copy()
            ids[flip.position] = flip.new
            inputs.append(ids)
            rows.append(trajectory.example)
    losses = iter(np.round(objective.losses(inputs, targets, rows), DECIMALS).tolist() if inputs else [])
    children: dict[int, list[State]] = {id(t): [] for t in trajectories}
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
        _select(trajectory, children[id(trajectory)], step=step, beam=beam, forced=trajectory in from_restart)


def _select(trajectory: SearchTrajectory, children: list[State], *, step: int, beam: int, forced: bool) -> None:
    """Keep the `beam` strongest of the trajectory's states and their `children`; `forced`: of the children alone."""
    # A beam that is not full takes any child; a full one only what beats its weakest state.
    to_beat = trajectory.states[-1].loss if len(trajectory.states) == beam else -math.inf
    better = [child for child in children if forced or child.loss > to_beat + SMALLEST_GAIN]
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
        SearchStep(
            step=step,
            accepted=top is not top_before,
            loss=top.loss,
            best_candidate_loss=scored if math.isfinite(scored) else None,
            queries=trajectory.queries,
        )
    )
    trajectory.best.append(top if top.loss > trajectory.best[-1].loss else trajectory.best[-1])


def _merge(trajectories: Sequence[SearchTrajectory]) -> SearchTrajectory:
    """An example's strongest trajectory, with the best state of any restart at each budget and the sum of costs."""
    winner = max(trajectories, key=lambda trajectory: (trajectory.best[-1].loss, -trajectory.restart))
    winner.best = [max((w.best[k] for w in trajectories), key=lambda s: s.loss) for k in range(len(winner.best))]
    winner.queries = sum(w.queries for w in trajectories)
    winner.gradients = sum(w.gradients for w in trajectories)
    winner.bad_losses = sum(w.bad_losses for w in trajectories)
    winner.retried_gradients = sum(w.retried_gradients for w in trajectories)
    winner.bad_gradients = sum(w.bad_gradients for w in trajectories)
    winner.pairs = [pair for w in trajectories for pair in w.pairs]
    winner.gradient_norm = next((w.gradient_norm for w in trajectories if not math.isnan(w.gradient_norm)), math.nan)
    return winner
