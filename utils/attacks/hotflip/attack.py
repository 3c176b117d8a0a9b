"""HotFlip on a set of examples: up to `num_flips` token flips each, found by gradient, verified, resumable.

The attack on one example is `search.search`; here it is run in blocks, its inputs are summarised with the evaluation's
own decoding, and everything is written down per example. Source of the method: Ebrahimi et al. 2018 (HotFlip); the
exact re-scoring of candidates follows Wallace et al. 2019 and Zou et al. 2023.
"""

from __future__ import annotations

import itertools
import logging
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from utils.analysis.measures import GRADIENT_COST, reaches_threshold
from utils.analysis.records import HotFlipRecord, attackable, column, given
from utils.attacks.cache import blocks_of, load_records, save_cached
from utils.attacks.context import LOSSES, AttackContext, Victim, rouge_l, summaries
from utils.attacks.encoding import (
    LOSS_NOT_FINITE,
    LOW_CLEAN_ROUGE,
    NO_LEGAL_FLIP,
    EncodedText,
    Example,
    protected,
)
from utils.attacks.hotflip.coordinates import CONSTANTS, CoordinateProposer
from utils.attacks.hotflip.metric_search import TRIED_TOGETHER, FlipProposer, MetricSettings, metric_search
from utils.attacks.hotflip.proposals import SearchTrajectory, State
from utils.attacks.hotflip.records import Clean, Found, clean_summaries, climbed, make_records, measured, search_trace
from utils.attacks.hotflip.search import search
from utils.attacks.legal_tokens import TokenIds
from utils.attacks.objective import Objective, Targets
from utils.attacks.precision import search_objective
from utils.core.errors import UsageError
from utils.core.progress import progress

log = logging.getLogger(__name__)
LOSS_METHODS = ("gradient", "greedy")  # the loss chooses between candidates
METRIC_METHODS = ("metric", "word_importance")  # generated summaries choose
METHODS = (*LOSS_METHODS, *METRIC_METHODS)
FIRST_SHARE = 0.5  # of a search's exact scores, made for the first flip: the others use what it found


@dataclass(frozen=True)
class HotFlipSettings:
    """How hard the attack tries.

    `candidates` flips a step are scored exactly on average, FIRST_SHARE of all at the first step, `random_candidates`
    of these random; the first gradient is averaged over the input and `noisy_gradients` noisy copies of it. `beam`
    partial attacks are kept, `restarts` starts are made. `loss`: what is raised, the loss of the "reference" or of the
    model's "own_output" (its clean summary). `success_threshold`: relative ROUGE-L drop that counts as success, for
    examples whose clean ROUGE-L is at least `min_clean_rouge`. `method`: "gradient"; "greedy": the gradient-free
    control with the same number of forward passes; "metric": candidates by gradient and at random, chosen by generated
    ROUGE-L; "word_importance": the same without any gradient. `metric_...`: what these two may spend (see
    MetricSettings).
    `gradient_norms`: write down the norm of the gradient at the clean input. `protect`: words that hold a content word
    of the reference stay as they are.
    """

    num_flips: int = 5
    candidates: int = 37
    random_candidates: int = 4
    beam: int = 1
    restarts: int = 1
    loss: str = "reference"
    success_threshold: float = 0.15
    min_clean_rouge: float = 0.05
    seed: int = 0
    method: str = "gradient"
    noisy_gradients: int = 2
    gradient_norms: bool = True
    protect: bool = False
    metric_positions: int = 128
    metric_replacements: int = 16
    metric_rounds: int = 12
    metric_summaries: int = 200

    @property
    def scores(self) -> list[int]:
        """Flips that are scored exactly at each step: most at the first, whose findings the others use."""
        total = self.candidates * self.num_flips
        first = max(round(FIRST_SHARE * total), self.candidates)
        rest = [part * (total - first) // max(self.num_flips - 1, 1) for part in range(self.num_flips)]
        return [first, *(b - a for a, b in itertools.pairwise(rest))]

    @property
    def passes(self) -> int:
        """Forward passes that a search by loss makes on one example, a gradient counted as GRADIENT_COST of them."""
        each = (self.candidates + GRADIENT_COST) * self.beam
        return (self.num_flips * each + GRADIENT_COST * self.noisy_gradients) * self.restarts

    @property
    def metric(self) -> MetricSettings:
        """The budget of the search by the metric."""
        return MetricSettings(
            num_flips=self.num_flips,
            positions=self.metric_positions,
            replacements=self.metric_replacements,
            rounds=self.metric_rounds,
            summaries=self.metric_summaries,
            threshold=self.success_threshold,
            guided=self.method == "metric",
        )

    def __post_init__(self) -> None:
        if self.loss not in LOSSES:
            raise UsageError(f"attack loss {self.loss!r}: must be one of {', '.join(LOSSES)}")
        if self.method not in METHODS:
            raise UsageError(f"attack method {self.method!r}: must be one of {', '.join(METHODS)}")
        for name in ("num_flips", "candidates", "beam", "restarts", "metric_positions", "metric_replacements",
                     "metric_rounds", "metric_summaries"):  # fmt: skip
            if getattr(self, name) < 1:
                raise UsageError(f"HotFlip {name} = {getattr(self, name)}: must be at least 1")
        if self.noisy_gradients < 0:
            raise UsageError(f"HotFlip noisy_gradients = {self.noisy_gradients}: must be at least 0")
        if not 0 <= self.random_candidates <= self.candidates:
            raise UsageError(
                f"HotFlip random_candidates = {self.random_candidates}: must lie between 0 and candidates"
                f" ({self.candidates})"
            )


def attack_examples(
    context: AttackContext,
    victim: Victim,
    examples: Sequence[Example],
    settings: HotFlipSettings,
    *,
    cache_dir: Path,
    clean_file: Path | None = None,
    every_budget: bool = True,
) -> list[HotFlipRecord]:
    """Attack `examples` on one model; one record per example, in the order of `examples`.

    `clean_file`: where the unattacked summaries are kept, for attacks on the same examples to share.
    `every_budget`: summarise the attack at each budget 1..num_flips, not only the final one.

    Finished blocks lie in `cache_dir` and are not done again. The numbers do not depend on the order of the examples,
    on interruptions, or on `context.batch_tokens` (up to ties within 1e-6 nats). An example that cannot be attacked has
    a record with its `skipped` reason. Raises Interrupted (saved) when asked to stop.
    """
    blocks = blocks_of([example.id for example in examples])
    items = context.encode(examples)
    if settings.protect:
        items = [protected(context.view, item) for item in items]
    fingerprints = [
        _fingerprint(context, victim, settings, every_budget, [items[i] for i in block]) for block in blocks
    ]
    paths = [cache_dir / f"block_{b:04d}.json" for b in range(len(blocks))]
    done = [load_records(path, mark, HotFlipRecord) for path, mark in zip(paths, fingerprints, strict=True)]
    if any(rows is None for rows in done):
        clean = clean_summaries(context, victim, items, done_file=clean_file or cache_dir / "clean.jsonl")
        objective: Objective | None = None
        attacked: list[HotFlipRecord] = []  # attackable so far, for the progress bar
        with progress(total=len(items), label=f"{victim.key}: {settings.method}", unit="example") as bar:
            for b, block in enumerate(blocks):
                rows = done[b]
                if rows is None:
                    block_items, block_clean = [items[i] for i in block], clean.part(block)
                    search_file = cache_dir / f"search_{b:04d}.json"
                    found = load_records(search_file, fingerprints[b], Found)
                    if found is None:
                        fine = [item for item in items if item.problem is None]
                        objective = objective or search_objective(context, victim, fine)
                        found = _search_block(context, victim, settings, objective, block_items, block_clean)
                        save_cached(search_file, fingerprints[b], found)
                    rows = done[b] = make_records(
                        context,
                        victim,
                        block_items,
                        block_clean,
                        found,
                        method=settings.method,
                        num_flips=settings.num_flips,
                        threshold=settings.success_threshold,
                        every_budget=every_budget,
                    )
                    save_cached(paths[b], fingerprints[b], rows)
                bar.update(len(block))
                attacked += attackable(rows)
                if attacked:
                    success, gain = (
                        column(attacked, "success").mean(),
                        column(attacked, "loss_increase").mean(),
                    )
                    bar.set_postfix(success=f"{success:.1%}", loss=f"+{gain:.3f}")
                context.check_stop()
    by_index = {
        i: record for block, rows in zip(blocks, done, strict=True) for i, record in zip(block, rows or [], strict=True)
    }
    return [by_index[i] for i in range(len(examples))]


def _fingerprint(
    context: AttackContext, victim: Victim, settings: HotFlipSettings, curve: bool, items: Sequence[EncodedText]
) -> str:
    content = [(item.id, item.ids, item.labels, item.summary) for item in items]
    # What another kind of search may spend decides nothing here: to change it throws away no finished attack.
    by_metric = (settings.metric, TRIED_TOGETHER) if settings.method in METRIC_METHODS else ()
    by_loss = (settings.scores, settings.random_candidates, settings.noisy_gradients, settings.beam,
               settings.restarts, CONSTANTS) if settings.method != "word_importance" else ()  # fmt: skip
    shared = (settings.method, settings.loss, settings.num_flips, settings.success_threshold,
              settings.min_clean_rouge, settings.seed, settings.gradient_norms, settings.protect)  # fmt: skip
    return context.fingerprint(victim.key, victim.fingerprint, shared, by_metric, by_loss, curve, content)


def _search_block(
    context: AttackContext,
    victim: Victim,
    settings: HotFlipSettings,
    objective: Objective,
    items: Sequence[EncodedText],
    clean: Clean,
) -> list[Found]:
    """What the search found for each example of a block."""
    began = time.perf_counter()
    skipped = [item.problem for item in items]
    for k, rouge in enumerate(clean.rouges):
        if skipped[k] is None and rouge is not None and not reaches_threshold(rouge, settings.min_clean_rouge):
            skipped[k] = LOW_CLEAN_ROUGE
    attackable_rows = [k for k, reason in enumerate(skipped) if reason is None]
    if not attackable_rows:
        return [Found(reason) for reason in skipped]
    rows = attackable_rows
    labels = target_labels(context, settings, [items[k] for k in rows], [clean.texts[k] for k in rows])
    targets = Targets(labels, objective.device)
    losses = objective.losses(
        [np.asarray(items[k].ids) for k in attackable_rows], targets, np.arange(len(attackable_rows))
    )
    for k, loss in zip(attackable_rows, losses, strict=True):
        if not math.isfinite(loss):
            skipped[k] = LOSS_NOT_FINITE
    kept = [n for n, loss in enumerate(losses) if math.isfinite(loss)]
    attackable_rows, labels = [attackable_rows[n] for n in kept], [labels[n] for n in kept]
    if not attackable_rows:
        return [Found(reason) for reason in skipped]
    targets = Targets(labels, objective.device)
    chosen = [items[k] for k in attackable_rows]
    if settings.method in METRIC_METHODS:
        rouges = [given(clean.rouges[k]) for k in attackable_rows]
        trajectories = _by_metric(
            context, victim, settings, objective, chosen, targets, losses[kept].tolist(), rouges=rouges
        )
        best = measured(context, victim, trajectories, labels)
    else:
        trajectories = _by_loss(context, settings, objective, chosen, targets, losses[kept].tolist())
        best = climbed(context, victim, trajectories, labels)
    seconds = (time.perf_counter() - began) / max(len(items), 1)
    found = [Found(reason) for reason in skipped]
    for k, trajectory, states in zip(attackable_rows, trajectories, best, strict=True):
        trace = search_trace(trajectory, states, norms=settings.gradient_norms, seconds=seconds)
        found[k] = Found(None if trajectory.queries + trajectory.generations else NO_LEGAL_FLIP, trace)
    return found


def target_labels(
    context: AttackContext, settings: HotFlipSettings, items: Sequence[EncodedText], clean: Sequence[str]
) -> list[TokenIds]:
    """The ids whose loss the attack raises: those of the references, or of the `clean` summaries."""
    return [*context.labels(clean)] if settings.loss == "own_output" else [item.labels for item in items]


def _by_loss(
    context: AttackContext,
    settings: HotFlipSettings,
    objective: Objective,
    items: Sequence[EncodedText],
    targets: Targets,
    losses: Sequence[float],
) -> list[SearchTrajectory]:
    """The search by loss."""
    proposer = CoordinateProposer(
        objective,
        context.legal,
        items,
        targets,
        random_candidates=settings.random_candidates,
        noisy_gradients=settings.noisy_gradients,
        guided=settings.method != "greedy",
    )
    return search(
        objective,
        context.legal,
        items,
        targets,
        losses,
        proposer,
        scores=settings.scores,
        beam=settings.beam,
        restarts=settings.restarts,
        seed=settings.seed,
    )


def _by_metric(
    context: AttackContext,
    victim: Victim,
    settings: HotFlipSettings,
    objective: Objective,
    items: Sequence[EncodedText],
    targets: Targets,
    losses: Sequence[float],
    *,
    rouges: Sequence[float],
) -> list[SearchTrajectory]:
    """The search by generated summaries, in the shape of one by loss.

    Where it does not succeed with one flip, what the search by loss finds is a candidate at every budget: a change that
    helps only together with another one is seen by the loss alone. So it never succeeds less often than that search.
    A black box has no loss to ask.
    """
    asks = settings.method == "metric" and settings.metric_summaries > settings.num_flips
    budget = settings.metric
    if asks:  # summaries of what the loss finds are part of the budget
        budget = replace(budget, summaries=budget.summaries - settings.num_flips)
    proposer = FlipProposer(context, objective, items, targets, budget)
    clean = [State(np.asarray(item.ids, dtype=np.int64), 0.0) for item in items]
    searched = metric_search(context, victim, items, clean, rouges, proposer, budget, seed=settings.seed)
    trajectories = [
        SearchTrajectory(
            one.example,
            0,
            [one.state],
            one.rng,
            best=one.best,
            gradients=one.gradients,
            retried_gradients=one.retried_gradients,
            bad_gradients=one.bad_gradients,
            generations=one.generations,
        )
        for one in searched
    ]
    late = [e for e, one in enumerate(searched) if asks and not one.succeeded(one.rouges[1], budget)]
    if not late:
        return trajectories
    few = Targets([targets.rows[e] for e in late], objective.device)
    by_loss = _by_loss(context, settings, objective, [items[e] for e in late], few, [losses[e] for e in late])
    inputs = [state.ids for one in by_loss for state in one.best[1:]]
    texts = summaries(context, victim, inputs)
    scores = rouge_l(context, texts, [items[e].summary for e in late for _ in range(settings.num_flips)])
    for e, other, row in zip(late, by_loss, scores.reshape(len(late), -1).tolist(), strict=True):
        own, one = searched[e], trajectories[e]
        lowest = (own.rouges[0], own.best[0])
        one.best = [own.best[0]]
        for pairs in zip(
            zip(own.rouges[1:], own.best[1:], strict=True), zip(row, other.best[1:], strict=True), strict=True
        ):
            lowest = min(lowest, *pairs, key=lambda pair: round(pair[0], 9))  # of equals the earlier one
            one.best.append(lowest[1])
        one.generations += settings.num_flips
        one.queries, one.bad_losses = other.queries, other.bad_losses
        for cost in ("gradients", "retried_gradients", "bad_gradients"):
            setattr(one, cost, getattr(one, cost) + getattr(other, cost))
    return trajectories
