"""Which flips are scored exactly: positions that the gradient finds, tokens that exact scores find, and both crossed.

What one flip does to the loss is, nearly, a share of its position plus a share of its token (97 % of the variance on
the demo's models, docs/benchmarks.md), while its first-order gain g · (e_new − e_old) says something about the position
and next to nothing about the token: a flip moves an embedding much further than a gradient sees. So the first step is a
search by coordinates: new positions with the best tokens so far, new tokens at the best position so far, and the pairs
that the shares seen so far promise most. Later steps go on with what it found, and try the gradient's own pairs too:
away from the clean text the gradient says more.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from utils.analysis.measures import GRADIENT_COST
from utils.attacks.encoding import EncodedText
from utils.attacks.hotflip.proposals import (
    EditablePositions,
    FirstOrderScorer,
    Flip,
    SearchTrajectory,
    State,
    TopFlips,
    choose,
    one_each,
    only,
    random_flips_each,
)
from utils.attacks.legal_tokens import LegalTokens
from utils.attacks.objective import Objective, Smoothing, Targets

ROUND = 8  # flips scored before the next ones are chosen with what they gained
# Share of a round's flips that are at positions not tried yet, with the best tokens; without a gradient many must be
# tried to find a good one.
POSITIONS, BLIND_POSITIONS = 0.25, 0.5
TOKENS = 0.375  # share that are random tokens at the best position; what is left are pairs of the best of both
OWN = 0.5  # share of the first round of every later step: each position with its own best token by gradient
CROSSED = 8  # best positions and best tokens whose pairs are ranked
BORROWED = 2  # best tokens that a new position may get: the first that is typable there
DECAY = 0.3  # weight of a step's gains at the next one: the text is another then
SWEEPS = 4  # of the fit of the shares
SHRINKAGE = 0.3  # of a share towards 0, in observations
DEPTH = 2  # pairs a position that the gradient proposes: some will not be typable
CONSTANTS = (ROUND, POSITIONS, BLIND_POSITIONS, TOKENS, OWN, CROSSED, BORROWED, DECAY, SWEEPS, SHRINKAGE, DEPTH)
Pair = tuple[int, int]  # (position, token)


class Memory:
    """What the flips of one search gained, as shares of their positions and tokens."""

    def __init__(self) -> None:
        self.gains: dict[Pair, float] = {}  # last exact gain, nats
        self.weights: dict[Pair, float] = {}
        self._shares: tuple[dict[int, float], dict[int, float]] | None = None  # of what is known now

    def learn(self, flips: Sequence[Flip], gains: Sequence[float]) -> None:
        """Write down what the flips gained."""
        finite = {(f.position, f.new): gain for f, gain in zip(flips, gains, strict=True) if math.isfinite(gain)}
        self.gains |= finite
        self.weights |= dict.fromkeys(finite, 1.0)
        self._shares = None

    def decay(self) -> None:
        """A step was taken: what was seen before it counts less."""
        self.weights = {pair: DECAY * weight for pair, weight in self.weights.items()}
        self._shares = None

    def shares(self) -> tuple[dict[int, float], dict[int, float]]:
        """Share in nats of each position and of each token tried: a ridge fit of gain = mean + position + token."""
        if self._shares is None:  # asked for several times a round
            self._shares = self._fitted() if self.gains else ({}, {})
        return self._shares

    def _fitted(self) -> tuple[dict[int, float], dict[int, float]]:
        pairs, gains = np.array(list(self.gains), dtype=np.int64), np.array(list(self.gains.values()))
        weights = np.array([self.weights[pair] for pair in self.gains])
        places, at = np.unique(pairs[:, 0], return_inverse=True)  # at, of: which position and token each pair has
        tokens, of = np.unique(pairs[:, 1], return_inverse=True)
        rest = gains - np.average(gains, weights=weights)
        by_place, by_token = np.zeros(len(places)), np.zeros(len(tokens))
        for _ in range(SWEEPS):  # backfitting: each factor in turn is the shrunken mean of what the other leaves
            left = np.bincount(at, weights * (rest - by_token[of]), len(places))
            by_place = left / (np.bincount(at, weights, len(places)) + SHRINKAGE)
            left = np.bincount(of, weights * (rest - by_place[at]), len(tokens))
            by_token = left / (np.bincount(of, weights, len(tokens)) + SHRINKAGE)
        return (dict(zip(places.tolist(), by_place.tolist(), strict=True)),
                dict(zip(tokens.tolist(), by_token.tolist(), strict=True)))  # fmt: skip


@dataclass
class Look:
    """One state at one step: a flip at each position, the most promising first (`probes`), and some `random` ones."""

    editable: EditablePositions
    memory: Memory
    rng: np.random.Generator
    probes: list[Flip]
    random: list[Flip]
    own: float  # share of the next round that are probes with their own tokens

    @property
    def tried(self) -> set[Pair]:
        """Pairs that were scored at this state."""
        return self.editable.state.tried

    def best(self) -> tuple[list[int], list[int]]:
        """Open positions and tokens of the largest shares so far."""
        at, of = self.memory.shares()
        places = sorted((p for p in at if self.editable.open[p]), key=lambda p: -at[p])
        return places[:CROSSED], sorted(of, key=lambda v: -of[v])[:CROSSED]

    def crossed(self) -> list[Flip]:
        """Pairs of the best positions and tokens, the most promising first."""
        (at, of), (places, tokens), ids = self.memory.shares(), self.best(), self.editable.state.ids
        pairs = sorted(((p, v) for p in places for v in tokens if v != ids[p]), key=lambda pq: -at[pq[0]] - of[pq[1]])
        return [Flip(p, int(ids[p]), v, math.nan) for p, v in pairs]

    def borrowed(self) -> list[Flip]:
        """At each position not tried at this state the best tokens, or its own where none of them is typable."""
        seen, (_, tokens) = {position for position, _ in self.tried}, self.best()
        flips = []
        for probe in (probe for probe in self.probes if probe.position not in seen):
            p, old = probe.position, probe.old
            flips += [Flip(p, old, v, math.nan) for v in tokens[:BORROWED] if v not in (old, probe.new)] + [probe]
        return flips


class CoordinateProposer:
    """The flips of a step, round by round, each chosen with what the rounds before it gained.

    `guided`: positions are ranked by their best first-order gain; at the first step the gradient is the mean of that at
    the input and `noisy_gradients` more under noise of an embedding's size (see Smoothing). Where it is zero, and where
    the search is not guided, positions come in random order. `random_candidates` flips of the first round are random:
    they measure how well the gradient predicts (fidelity).

    Not guided it is the gradient-free control of equal cost: what gradients would have cost is spent on more flips.
    Where that beats the gradient attack, the gradient is hiding something (Carlini et al. 2019, "gradient-free
    attacks").
    """

    def __init__(
        self,
        objective: Objective,
        legal: LegalTokens,
        encoded: Sequence[EncodedText],
        targets: Targets,
        *,
        random_candidates: int,
        noisy_gradients: int = 0,
        guided: bool = True,
    ) -> None:
        self.objective, self.legal, self.encoded, self.targets = objective, legal, encoded, targets
        self.random_candidates, self.noisy_gradients, self.guided = random_candidates, noisy_gradients, guided
        self.memories: dict[tuple[int, int], Memory] = {}  # by example and restart
        self.sigma = float(objective.embedding[legal.ids].float().std())  # as large as embeddings differ

    def spare(self, step: int) -> int:
        """Flips that this search may score at a step beyond those of the guided one: the price of its gradients."""
        return 0 if self.guided else GRADIENT_COST * (1 + self._noisy(step))

    def _noisy(self, step: int) -> int:
        # Later steps know from exact gains which positions matter: there the same passes find more as scores.
        return self.noisy_gradients if step == 1 else 0

    def look(
        self, trajectories: Sequence[SearchTrajectory], states: Sequence[State], count: int, step: int = 1
    ) -> list[Look]:
        """What a step of `count` flips knows at its beginning (`trajectories[i]` is that of `states[i]`)."""
        editables = [
            EditablePositions(self.legal, self.encoded[t.example], s) for t, s in zip(trajectories, states, strict=True)
        ]
        rngs = [t.rng for t in trajectories]
        memories = [self.memories.setdefault((t.example, t.restart), Memory()) for t in trajectories]
        for memory in dict.fromkeys(memories):
            memory.decay()
        random = random_flips_each(editables, self.random_candidates, rngs)
        random = [[] if memory.gains else flips for memory, flips in zip(memories, random, strict=True)]
        tops: list[TopFlips] | None = None
        if self.guided:
            tops, gains, norms = self._by_gradient(trajectories, states, editables, random, count, step)
            random = [
                [Flip(f.position, f.old, f.new, gain, random=True) for f, gain in zip(flips, row, strict=True)]
                for flips, row in zip(random, gains, strict=True)
            ]
            # Where the gradient is zero its order means nothing.
            tops = [top if norm > 0 else TopFlips.of([], []) for top, norm in zip(tops, norms, strict=True)]
        probes = one_each(editables, tops, count, rngs)
        own = [OWN if self.guided and memory.gains else 0.0 for memory in memories]
        return [Look(*each) for each in zip(editables, memories, rngs, probes, random, own, strict=True)]

    def propose(self, looks: Sequence[Look], count: int) -> list[list[Flip]]:
        """Up to `count` more legal flips of each state, none that was tried there."""
        editables = [look.editable for look in looks]
        flips_of: list[list[Flip]] = [[] for _ in looks]

        def add(lists: Sequence[Sequence[Flip]], shares: Sequence[float], per_position: int) -> None:
            """Up to that share of the round from each list, as far as there is room."""
            quotas = [min(math.ceil(share * count), count - len(f)) for share, f in zip(shares, flips_of, strict=True)]
            tops = [TopFlips.of(flips, [flip.predicted for flip in flips]) for flips in lists]
            chosen = choose(editables, tops, candidates=quotas, per_position=per_position, besides=flips_of)
            for known, more, flips in zip(flips_of, chosen, lists, strict=True):
                same = {(flip.position, flip.new): flip for flip in flips}  # `choose` does not know which are random
                known += [same[flip.position, flip.new] for flip in more]

        add([look.random for look in looks], [1.0] * len(looks), count)
        add([look.probes for look in looks], [look.own for look in looks], 1)
        learned = [1.0 if look.memory.gains else 0.0 for look in looks]
        new = POSITIONS if self.guided else BLIND_POSITIONS
        add([look.borrowed() for look in looks], [new * share for share in learned], 1)
        narrow = [only(look.editable, look.best()[0][:1]) for look in looks]
        drawn = random_flips_each(narrow, math.ceil(TOKENS * count), [look.rng for look in looks])
        add(drawn, [TOKENS] * len(looks), count)
        add([look.crossed() for look in looks], learned, count)
        add([look.probes for look in looks], [1.0] * len(looks), 1)
        short = [look if len(flips) < count else None for look, flips in zip(looks, flips_of, strict=True)]
        anything = [random_flips_each([look.editable], 2 * count, [look.rng])[0] if look else [] for look in short]
        add(anything, [1.0] * len(looks), count)
        for look in looks:
            look.random, look.own = [], 0.0
        return flips_of

    def _by_gradient(
        self,
        trajectories: Sequence[SearchTrajectory],
        states: Sequence[State],
        editables: Sequence[EditablePositions],
        random: Sequence[Sequence[Flip]],
        count: int,
        step: int,
    ) -> tuple[list[TopFlips], list[list[float]], NDArray[np.float64]]:
        """Per state: the best pairs by first-order gain, of `count` positions; gains of `random`; gradient norms."""
        scorer = FirstOrderScorer(self.legal, self.objective.embedding, candidates=DEPTH * count, per_position=DEPTH)
        tops = [TopFlips.of([], [])] * len(states)
        random_gains: list[list[float]] = [[] for _ in states]

        def use(rows: NDArray[np.int64], ids: Tensor, gradient: Tensor) -> None:
            # One batch of gradients [b, T, d] at a time is reduced to a few pairs; all of them would not fit.
            open_, whole = np.zeros(ids.shape, dtype=bool), np.zeros(ids.shape, dtype=bool)  # padding stays closed
            for k, i in enumerate(rows):
                open_[k, : len(editables[i].open)] = editables[i].open
                whole[k, : len(editables[i].whole)] = editables[i].whole
            for k, (i, top) in enumerate(zip(rows, scorer.top(ids, gradient, open_, whole), strict=True)):
                tops[i], random_gains[i] = top, self._predict(random[i], gradient[k])

        noisy = self._noisy(step)
        seeds = [t.rng.integers(2**63, size=noisy) for t in trajectories]
        smoothing = Smoothing(
            self.sigma,
            [None, *([int(row[s]) for row in seeds] for s in range(noisy))],
            [np.flatnonzero(editable.open) for editable in editables],
        )
        owner = [t.example for t in trajectories]
        self.objective.gradients([s.ids for s in states], self.targets, owner, use, smoothing=smoothing)
        for i, trajectory in enumerate(trajectories):
            trajectory.gradients += 1 + noisy
            trajectory.retried_gradients += self.objective.retried[i]
            trajectory.bad_gradients += self.objective.bad[i]
            if math.isnan(trajectory.gradient_norm):
                trajectory.gradient_norm = float(smoothing.norms[i])
        return tops, random_gains, smoothing.norms

    def _predict(self, flips: Sequence[Flip], gradient: Tensor) -> list[float]:
        """First-order gain g_p . (e_new - e_old) of each flip; `gradient` float32 [T, d] of one input."""
        if not flips:
            return []
        table = self.objective.embedding
        change = table[[f.new for f in flips]].float() - table[[f.old for f in flips]].float()  # [flips, d]
        predicted: list[float] = (gradient[[f.position for f in flips]] * change).sum(1).double().cpu().tolist()
        return predicted
