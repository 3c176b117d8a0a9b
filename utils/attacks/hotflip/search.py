"""Iterative, verified search for token flips: propose, score exactly, accept only what raises the loss.

One engine serves the gradient attack and the gradient-free control; coordinates.py proposes. All examples of a block
advance together, so that every exact score is part of a large batch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from utils.analysis.records import SearchStep
from utils.attacks.encoding import EncodedText
from utils.attacks.hotflip.coordinates import ROUND, CoordinateProposer
from utils.attacks.hotflip.proposals import EditablePositions, Flip, SearchTrajectory, State, random_flips
from utils.attacks.legal_tokens import LegalTokens
from utils.attacks.objective import Objective, Targets
from utils.attacks.seeding import generator

SMALLEST_GAIN = 1e-5  # nats; below it a difference may be float32 noise of another batch shape
DECIMALS = 6  # losses that agree to here are equal, and the earlier candidate wins: the same in every batch shape


def search(
    objective: Objective,
    legal: LegalTokens,
    encoded: Sequence[EncodedText],
    targets: Targets,
    clean_losses: Sequence[float],
    proposer: CoordinateProposer,
    *,
    scores: Sequence[int],
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
    for step, count in enumerate(scores, 1):
        _advance(objective, legal, encoded, targets, trajectories, proposer, step=step, count=count, beam=beam)
    return [_merge([w for w in trajectories if w.example == e]) for e in range(len(encoded))]


def _advance(
    objective: Objective,
    legal: LegalTokens,
    encoded: Sequence[EncodedText],
    targets: Targets,
    trajectories: Sequence[SearchTrajectory],
    proposer: CoordinateProposer,
    *,
    step: int,
    count: int,
    beam: int,
) -> None:
    # A restart leaves the clean input by one random flip, whatever that does to the loss; all others climb.
    from_restart = [t for t in trajectories if step == 1 and t.restart > 0]
    climbing = [(t, s) for t in trajectories if t not in from_restart for s in t.states]
    children: dict[int, list[State]] = {id(t): [] for t in trajectories}
    for trajectory in from_restart:
        editable = EditablePositions(legal, encoded[trajectory.example], trajectory.states[0])
        flips = random_flips(editable, 1, trajectory.rng)
        _score(objective, targets, [(trajectory, trajectory.states[0])], [flips], children)
    count += proposer.spare(step)
    looks = proposer.look([t for t, _ in climbing], [s for _, s in climbing], count, step) if climbing else []
    for begin in range(0, count if climbing else 0, ROUND):
        flips_of = proposer.propose(looks, min(ROUND, count - begin))
        gains_of = _score(objective, targets, climbing, flips_of, children)
        for look, flips, gains in zip(looks, flips_of, gains_of, strict=True):
            look.memory.learn(flips, gains)
    for trajectory in trajectories:
        _select(trajectory, children[id(trajectory)], step=step, beam=beam, forced=trajectory in from_restart)


def _score(
    objective: Objective,
    targets: Targets,
    owners: Sequence[tuple[SearchTrajectory, State]],
    flips_of: Sequence[Sequence[Flip]],
    children: dict[int, list[State]],
) -> list[list[float]]:
    """Exact gains of the flips of each state, whose outcomes join `children` of its trajectory."""
    # All flips of all states are scored in one call, so that batches are full; `losses` hands them out in order.
    inputs = [s.child(flip, 0.0).ids for (_, s), flips in zip(owners, flips_of, strict=True) for flip in flips]
    rows = [t.example for (t, _), flips in zip(owners, flips_of, strict=True) for _ in flips]
    losses = iter(np.round(objective.losses(inputs, targets, rows), DECIMALS).tolist() if inputs else [])
    gains_of = []
    for (trajectory, state), flips in zip(owners, flips_of, strict=True):
        scores = [next(losses) for _ in flips]
        trajectory.queries += len(flips)
        for flip, score in zip(flips, scores, strict=True):
            state.tried.add((flip.position, flip.new))
            if not math.isfinite(score):
                trajectory.bad_losses += 1
                continue
            if not math.isnan(flip.predicted):
                trajectory.pairs.append((flip.predicted, score - state.loss, flip.random))
            children[id(trajectory)].append(state.child(flip, score))
        gains_of.append([score - state.loss for score in scores])
    return gains_of


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
