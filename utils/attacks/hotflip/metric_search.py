"""A search by the metric that is reported: generated summaries and their ROUGE-L choose, not the loss.

The loss is a surrogate: the flip that raises it most is often not the one that lowers ROUGE-L most. Here the importance
of a position is what one legal flip there does to the generated summary, and at the most important positions many
replacements are tried, each by its summary. The order is that of Seq2Sick's and TextAttack's word-importance searches
(Cheng et al. 2020, Morris et al. 2020); the moves are the token flips of HotFlip's threat model.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from utils.analysis.measures import reaches_threshold, relative_drop
from utils.attacks.context import AttackContext, Victim, rouge_l, summaries
from utils.attacks.encoding import EncodedText
from utils.attacks.hotflip.proposals import (
    EditablePositions,
    FirstOrderScorer,
    Flip,
    State,
    TopFlips,
    choose,
    one_each,
    only,
    random_flips_each,
)
from utils.attacks.objective import Objective, Targets
from utils.attacks.seeding import generator

AT_ONCE = 8  # flips tried at a position before looking whether one is a success: what comes after it is saved
# Summaries asked for in one call where fewer searches are left: they come to several positions at once, which fills
# the batch of EVAL_BATCH_SIZE full documents. A constant: what an attack does must not depend on the device's batches.
WAITING = 64
TRIED_TOGETHER = (AT_ONCE, WAITING)  # what decides a search's cost beside its settings
SAME_ROUGE = 1e-9  # scores are ratios of small whole numbers: what differs by less is equal


@dataclass(frozen=True)
class MetricSettings:
    """Budget of the search by the metric, in generated summaries per example.

    `positions`: whose importance is measured, one summary each; where more may change, those where a flip gains most to
    first order. `replacements`: flips tried at each position that the search comes to. `rounds`: positions it comes to
    before it takes the best flip found and goes on from there; at once where that flip is a success. `summaries`: at
    most. `threshold`: relative ROUGE-L drop at which an example is done. `guided`: the flips that measure positions are
    the best by first-order gain; else they are random (a black box). Replacements are always random: those of largest
    gain resemble one another, and by ROUGE-L they found less.
    """

    num_flips: int
    positions: int
    replacements: int
    rounds: int
    summaries: int
    threshold: float
    guided: bool = True

    @property
    def visits(self) -> int:
        """How many times the search comes to a position, one after the other."""
        return -(-self.replacements // AT_ONCE)

    @property
    def at_once(self) -> int:
        """Flips tried at each visit."""
        return -(-self.replacements // self.visits)


@dataclass(eq=False)
class MetricTrajectory:
    """One example's search. `best[k]`: the state with at most k flips of lowest ROUGE-L, which is `rouges[k]`."""

    example: int
    clean: float
    rng: np.random.Generator
    state: State
    rouge: float
    best: list[State] = field(default_factory=list)
    rouges: list[float] = field(default_factory=list)
    probes: dict[int, tuple[float, Flip]] = field(default_factory=dict)  # position -> ROUGE-L of the flip tried there
    order: list[int] = field(default_factory=list)  # visits still to make, to the most important position first
    pending: tuple[float, Flip] | None = None  # the best flip since the last one that was taken
    rounds: int = 0  # visits since then
    generations: int = 0  # the summaries of flips that wait to be looked at included
    gradients: int = 0
    retried_gradients: int = 0
    bad_gradients: int = 0

    def succeeded(self, rouge: float, settings: MetricSettings) -> bool:
        """Whether a summary with that ROUGE-L is a success."""
        return reaches_threshold(relative_drop(self.clean, rouge), settings.threshold)

    def open(self, settings: MetricSettings) -> bool:
        """Whether anything is left to try."""
        left = self.order and self.generations < settings.summaries and len(self.state.flips) < settings.num_flips
        return bool(left) and not self.succeeded(self.rouge, settings)

    def ahead(self, settings: MetricSettings) -> int:
        """Visits that follow whatever the first of them finds, unless it is a success: none takes a flip before."""
        return max(1, min(len(self.order), settings.rounds * settings.visits - self.rounds))

    def draw(self, flips: Sequence[Flip]) -> None:
        """Count these flips as tried."""
        self.generations += len(flips)
        self.state.tried.update((flip.position, flip.new) for flip in flips)

    def learn(self, results: Sequence[tuple[float, Flip]], settings: MetricSettings, *, last: bool = True) -> None:
        """Hear the ROUGE-L of the flips tried at one position; take the best so far where it is time to.

        `last`: no other visit was drawn with this one.
        """
        self.rounds += 1
        for rouge, flip in results:
            if self.pending is None or rouge < self.pending[0] - SAME_ROUGE:
                self.pending = (rouge, flip)
        spent = self.generations >= settings.summaries or self.rounds >= settings.rounds * settings.visits
        ends = last and (spent or not self.order)
        if self.pending is None or not (ends or self.succeeded(self.pending[0], settings)):
            return
        rouge, flip = self.pending
        if rouge < self.rouge - SAME_ROUGE:
            self.state, self.rouge, self.pending = self.state.child(flip, 0.0), rouge, None
            self.best.append(self.state)
            self.rouges.append(rouge)
            self.rank(settings)
        self.rounds = 0

    def rank(self, settings: MetricSettings) -> None:
        """Every position that may still change, by what its probe did; of equals the one of larger first-order gain."""
        taken = {flip.position for flip in self.state.flips}
        ranked = sorted(self.probes.items(), key=lambda entry: round(entry[1][0], 9))  # stable: probes came by gain
        self.order = [position for position, _ in ranked if position not in taken for _ in range(settings.visits)]


class Proposer(Protocol):
    """Who suggests changes: `probes`, one at each position; `replacements`, several at the next one of each search."""

    def probes(self, searches: Sequence[MetricTrajectory]) -> list[list[Flip]]: ...

    def replacements(self, searches: Sequence[MetricTrajectory]) -> list[list[Flip]]: ...


def metric_search(
    context: AttackContext,
    victim: Victim,
    items: Sequence[EncodedText],
    starts: Sequence[State],
    clean_rouges: Sequence[float],
    proposer: Proposer,
    settings: MetricSettings,
    *,
    seed: int,
) -> list[MetricTrajectory]:
    """Search the lowest ROUGE-L of each example; `best` has num_flips + 1 states, from `starts[e]`, the clean one, on.

    `clean_rouges[e]` > 0 is the ROUGE-L of the clean summary of `items[e]`. All examples go on together, and where few
    are left each comes to its next positions at once, so that summaries are generated in full batches. A success ends a
    search where it would have ended one position at a time: what else was generated then costs and does nothing.
    """
    searches = []
    for e, (item, clean) in enumerate(zip(items, starts, strict=True)):
        rng = generator(seed, "metric", item.id)
        searches.append(
            MetricTrajectory(e, clean_rouges[e], rng, clean, clean_rouges[e], best=[clean], rouges=[clean_rouges[e]])
        )
    probes = proposer.probes(searches)
    for search, flips in zip(searches, probes, strict=True):
        search.draw(flips)
    for search, scores, flips in zip(
        searches, _generated(context, victim, items, searches, probes), probes, strict=True
    ):
        search.probes = {flip.position: (score, flip) for score, flip in zip(scores, flips, strict=True)}
        search.rank(settings)
        if flips:  # a probe is a legal flip: it is taken where it is a success, or nothing is left to search with
            search.pending = min(search.probes.values(), key=lambda pair: round(pair[0], 9))
            if search.succeeded(search.pending[0], settings) or search.generations >= settings.summaries:
                search.learn([], settings)
    while live := [search for search in searches if search.open(settings)]:
        visits = _visits(live, proposer, settings)
        flips_of = [[flip for flips in visits[search.example] for flip in flips] for search in live]
        for search, scores in zip(live, _generated(context, victim, items, live, flips_of), strict=True):
            each = iter(scores)
            for number, flips in enumerate(visits[search.example], 1):
                results = [(next(each), flip) for flip in flips]
                search.learn(results, settings, last=number == len(visits[search.example]))
                if search.succeeded(search.rouge, settings):
                    break
    for search in searches:
        left = settings.num_flips + 1 - len(search.best)
        search.best += [search.state] * left
        search.rouges += [search.rouge] * left
    return searches


def _visits(
    live: Sequence[MetricTrajectory], proposer: Proposer, settings: MetricSettings
) -> dict[int, list[list[Flip]]]:
    """The flips of the next visits of each search, by its example: one, or more where few flips would wait."""
    most = max(1, WAITING // (settings.at_once * len(live)))
    limits = {search.example: min(most, search.ahead(settings)) for search in live}
    visits: dict[int, list[list[Flip]]] = {search.example: [] for search in live}
    for number in range(most):
        going = [s for s in live if number < limits[s.example] and s.generations < settings.summaries]
        for search, flips in zip(going, proposer.replacements(going), strict=True):
            search.draw(flips)
            visits[search.example].append(flips)
    return visits


def _generated(
    context: AttackContext,
    victim: Victim,
    items: Sequence[EncodedText],
    searches: Sequence[MetricTrajectory],
    flips_of: Sequence[Sequence[Flip]],
) -> list[list[float]]:
    """ROUGE-L of the summary after each flip, all of them generated in one call."""
    inputs = [s.state.child(flip, 0.0).ids for s, flips in zip(searches, flips_of, strict=True) for flip in flips]
    references = [items[s.example].summary for s, flips in zip(searches, flips_of, strict=True) for _ in flips]
    scores = iter(rouge_l(context, summaries(context, victim, inputs), references).tolist())
    return [[next(scores) for _ in flips] for flips in flips_of]


class FlipProposer:
    """Which flips are tried: one at each position to measure it, then several at one position."""

    def __init__(
        self,
        context: AttackContext,
        objective: Objective,
        items: Sequence[EncodedText],
        targets: Targets,
        settings: MetricSettings,
    ) -> None:
        self.legal, self.objective, self.items, self.targets = context.legal, objective, items, targets
        self.settings = settings

    def probes(self, searches: Sequence[MetricTrajectory]) -> list[list[Flip]]:
        """One legal flip at each of the first `positions` positions by first-order gain, or of random ones."""
        most = min(self.settings.positions, self.settings.summaries)
        editables = [EditablePositions(self.legal, self.items[s.example], s.state) for s in searches]
        tops = self._by_gradient(searches, editables, most) if self.settings.guided else None
        return one_each(editables, tops, most, [s.rng for s in searches])

    def replacements(self, searches: Sequence[MetricTrajectory]) -> list[list[Flip]]:
        """Flips at the next position of each search: the probe's own where the text has changed, and random ones."""
        places = [search.order.pop(0) for search in searches]
        editables = [
            only(EditablePositions(self.legal, self.items[s.example], s.state), [p])
            for s, p in zip(searches, places, strict=True)
        ]
        counts = [min(self.settings.at_once, self.settings.summaries - s.generations) for s in searches]
        # On a text that was changed since, the probe's flip does something else, and may no longer be typable.
        again = [[s.probes[p][1]] if s.state.flips else [] for s, p in zip(searches, places, strict=True)]
        tried = [TopFlips.of(flips, [math.nan] * len(flips)) for flips in again]
        proved = choose(editables, tried, candidates=[1] * len(searches), per_position=1)
        drawn = random_flips_each(editables, self.settings.at_once, [s.rng for s in searches])
        flips_of = []
        for count, *parts in zip(counts, proved, drawn, strict=True):
            different: dict[tuple[int, int], Flip] = {}
            for flip in (flip for part in parts for flip in part):
                different.setdefault((flip.position, flip.new), flip)
            flips_of.append(list(different.values())[:count])
        return flips_of

    def _by_gradient(
        self, searches: Sequence[MetricTrajectory], editables: Sequence[EditablePositions], count: int
    ) -> list[TopFlips]:
        """The best pairs of each state by first-order gain, several at a position: some will not be typable."""
        # Several pairs a position come first, and `choose` keeps one of each: as many more are asked for.
        depth = 4
        scorer = FirstOrderScorer(self.legal, self.objective.embedding, candidates=depth * count, per_position=depth)
        tops = [TopFlips.of([], [])] * len(searches)

        def use(rows: NDArray[np.int64], ids: Tensor, gradient: Tensor) -> None:
            # gradient [b, T, d] of one batch, reduced to a few pairs; padding stays closed in both masks [b, T].
            open_, whole = np.zeros(ids.shape, dtype=bool), np.zeros(ids.shape, dtype=bool)
            for k, i in enumerate(rows):
                open_[k, : len(editables[i].open)] = editables[i].open
                whole[k, : len(editables[i].whole)] = editables[i].whole
            for i, top in zip(rows, scorer.top(ids, gradient, open_, whole), strict=True):
                tops[i] = top

        self.objective.gradients([s.state.ids for s in searches], self.targets, [s.example for s in searches], use)
        for i, search in enumerate(searches):
            search.gradients += 1
            search.retried_gradients += self.objective.retried[i]
            search.bad_gradients += self.objective.bad[i]
        return tops
