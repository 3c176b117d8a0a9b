"""What is written down about a HotFlip attack: per example, everything that the results are computed from."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from scipy.stats import spearmanr

from utils.analysis.measures import loss_increase, reaches_threshold, relative_drop
from utils.analysis.records import Flip, HotFlipRecord, SearchTrace
from utils.attacks.context import AttackContext, Victim, exact_losses, rouge_l, summaries
from utils.attacks.encoding import EncodedText, attacked_document, reads_as, reference_positions
from utils.attacks.hotflip.proposals import SearchTrajectory, State
from utils.attacks.legal_tokens import TokenIds


@dataclass
class Clean:
    """A model's unattacked side of some examples: summaries and their ROUGE-L (None: the example has a problem)."""

    texts: list[str]
    rouges: list[float | None]

    def part(self, rows: Sequence[int]) -> Clean:
        """That of the examples `rows`."""
        return Clean([self.texts[i] for i in rows], [self.rouges[i] for i in rows])


def clean_summaries(context: AttackContext, victim: Victim, items: Sequence[EncodedText], *, done_file: Path) -> Clean:
    """The unattacked side of `items`; finished summaries are kept in `done_file`."""
    fine = [i for i, item in enumerate(items) if item.problem is None]
    texts = summaries(
        context, victim, [items[i].ids for i in fine], done_file=done_file, label=f"{victim.key}: clean summaries"
    )
    scores = rouge_l(context, texts, [items[i].summary for i in fine])
    clean = Clean([""] * len(items), [None] * len(items))
    for i, text, score in zip(fine, texts, scores.tolist(), strict=True):
        clean.texts[i], clean.rouges[i] = text, score
    return clean


@dataclass(frozen=True)
class Found:
    """What the search found for one example: nothing where it was `skipped` before the search."""

    skipped: str | None
    search: SearchTrace | None = None


def search_trace(
    trajectory: SearchTrajectory, states: Sequence[State], *, norms: bool = True, seconds: float = 0.0
) -> SearchTrace:
    """The record of one search from its best states with 0..num_flips flips; `norms`: keep the gradient's norm."""
    final = states[-1]
    return SearchTrace(
        losses=[state.loss for state in states],
        budgets=[[[flip.position, flip.new] for flip in state.flips] for state in states],
        flips=[
            Flip(
                position=flip.position,
                old=flip.old,
                new=flip.new,
                predicted_gain=number(flip.predicted),
                actual_gain=round(gain, 6),
                random=flip.random,
            )
            for flip, gain in zip(final.flips, final.gains, strict=True)
        ],
        steps=trajectory.steps,
        queries=trajectory.queries,
        gradients=trajectory.gradients,
        generations=trajectory.generations,
        bad_losses=trajectory.bad_losses,
        retried_gradients=trajectory.retried_gradients,
        bad_gradients=trajectory.bad_gradients,
        gradient_norm=number(trajectory.gradient_norm) if norms else None,
        zero_gradient=bool(trajectory.gradient_norm == 0.0),
        fidelity=_fidelity([p for p in trajectory.pairs if p[2]]),
        fidelity_top=_fidelity([p for p in trajectory.pairs if not p[2]]),
        fidelity_pairs=[[round(a, 5), round(b, 5)] for a, b, random in trajectory.pairs if random],
        seconds=round(seconds, 5),
    )


def _fidelity(pairs: Sequence[tuple[float, float, bool]]) -> float | None:
    """Spearman correlation of predicted and actual gain; None where either does not vary or pairs are too few."""
    if len(pairs) < 4:
        return None
    predicted, actual = np.array([p[0] for p in pairs]), np.array([p[1] for p in pairs])
    if np.ptp(predicted) == 0 or np.ptp(actual) == 0:
        return None
    return number(float(spearmanr(predicted, actual).statistic))


def number(value: float) -> float | None:
    return round(float(value), 6) if math.isfinite(value) else None


def attacked_ids(item: EncodedText, flips: Sequence[Sequence[int]]) -> list[int]:
    """The input with `flips` ([position, token] pairs) written into it."""
    ids = list(item.ids)
    for position, token in flips:
        ids[position] = token
    return ids


def make_records(
    context: AttackContext,
    victim: Victim,
    items: Sequence[EncodedText],
    clean: Clean,
    found: Sequence[Found],
    *,
    method: str,
    num_flips: int,
    threshold: float,
    every_budget: bool,
) -> list[HotFlipRecord]:
    """Summarise and score the attacks of one block at every budget, and write down one record per example."""
    records = [
        HotFlipRecord(
            id=item.id,
            model=victim.key,
            method=method,
            skipped=one.skipped,
            search=one.search,
            attackable_positions=len(item.attackable),
            short_article=len(item.attackable) < num_flips,
            clean_ids=list(item.ids),
            labels=list(item.labels),
            reference=item.summary,
            clean_prediction=text,
            clean_rougeL=rouge,
        )
        for item, one, text, rouge in zip(items, found, clean.texts, clean.rouges, strict=True)
    ]
    budgets = {i: one.search.budgets for i, one in enumerate(found) if one.skipped is None and one.search}
    first = 1 if every_budget else -1
    inputs = {i: [attacked_ids(items[i], flips) for flips in states[first:]] for i, states in budgets.items()}
    # All budgets of all examples are summarised in one call, so that batches are full; `outcomes` sorts them out again.
    flat = [ids for states in inputs.values() for ids in states]
    texts = summaries(context, victim, flat)
    scores = rouge_l(context, texts, [items[i].summary for i, states in inputs.items() for _ in states])
    each = zip(texts, scores.tolist(), strict=True)
    outcomes = {i: [next(each) for _ in states] for i, states in inputs.items()}  # (summary, ROUGE-L) at each budget
    documents = {i: attacked_document(context.view, items[i], states[-1]) for i, states in inputs.items()}
    typable = reads_as(
        context.view,
        list(documents.values()),
        [states[-1] for states in inputs.values()],
        prefix=context.prefix,
        max_input_length=context.max_input_length,
    )
    losses = exact_losses(
        context,
        victim,
        [ids for i, states in inputs.items() for ids in (items[i].ids, states[-1])],
        [items[i].labels for i in inputs for _ in range(2)],
    ).reshape(-1, 2)  # [examples, (clean, attacked)]
    for n, (i, states) in enumerate(inputs.items()):
        before, after = losses[n].tolist()
        drops = [relative_drop(clean.rouges[i] or 0.0, score) for _, score in outcomes[i]]
        num_changed = len(budgets[i][-1])
        legal = bool(typable[n]) or not context.legal.typable
        shared = reference_positions(context.view, items[i])
        records[i] = replace(
            records[i],
            attacked_ids=states[-1],
            num_flips=num_changed,
            perturbed_share=num_changed / max(items[i].end - items[i].start, 1),
            clean_loss=number(before),
            attacked_loss=number(after),
            loss_increase=number(loss_increase(before, after)),
            attacked_prediction=outcomes[i][-1][0],
            attacked_rougeL=outcomes[i][-1][1],
            relative_drop=drops[-1],
            success=legal and reaches_threshold(drops[-1], threshold),
            legal=legal,
            attacked_document=documents[i],
            typable=bool(typable[n]),
            reference_flips=sum(position in shared for position, _ in budgets[i][-1]),
            budget_rougeL=[score for _, score in outcomes[i]] if every_budget else None,
            budget_drop=drops if every_budget else None,
        )
    return records


def climbed(
    context: AttackContext, victim: Victim, trajectories: Sequence[SearchTrajectory], labels: Sequence[TokenIds]
) -> list[list[State]]:
    """The budget states of each search by loss with float32 losses: a bf16 search only ranked them.

    Where it was wrong about a step, the smaller attack stays.
    """
    states = [one.best for one in trajectories]
    found = []
    for row, losses in zip(states, _exact(context, victim, states, labels), strict=True):
        kept: list[State] = []
        for state, loss in zip(row, losses, strict=True):
            kept.append(replace(state, loss=loss) if not kept or loss > kept[-1].loss else kept[-1])
        found.append(kept)
    return found


def measured(
    context: AttackContext, victim: Victim, trajectories: Sequence[SearchTrajectory], labels: Sequence[TokenIds]
) -> list[list[State]]:
    """The budget states of each search by metric with float32 losses; the last one's gains are what each flip did."""
    chains = [list(itertools.accumulate(one.best[-1].flips, lambda state, flip: state.child(flip, 0.0),
                                        initial=one.best[0])) for one in trajectories]  # fmt: skip
    states = [[*one.best, *chain] for one, chain in zip(trajectories, chains, strict=True)]
    found = []
    for one, losses in zip(trajectories, _exact(context, victim, states, labels), strict=True):
        count = len(one.best)
        row = [replace(state, loss=loss) for state, loss in zip(one.best, losses[:count], strict=True)]
        gains = tuple(after - before for before, after in itertools.pairwise(losses[count:]))
        found.append([*row[:-1], replace(row[-1], gains=gains)])
    return found


def _exact(
    context: AttackContext, victim: Victim, states: Sequence[Sequence[State]], labels: Sequence[TokenIds]
) -> list[list[float]]:
    """Float32 losses of each example's `states`."""
    flat = [(state.ids, label) for row, label in zip(states, labels, strict=True) for state in row]
    losses = iter(np.round(exact_losses(context, victim, *zip(*flat, strict=True)), 6).tolist()) if flat else iter(())
    return [[next(losses) for _ in row] for row in states]
