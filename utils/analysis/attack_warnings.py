"""Robust, or only hard to differentiate? The checks of the attacks; warning_texts.py puts what they find in words.

An attack that follows gradients can fail because the model resists, or because its gradients mislead ("gradient
masking", Athalye et al. 2018). The signs are in Carlini et al. 2019: a gradient-free or transferred attack that does
better, success that does not grow with the budget, zero gradients, first-order gains that predict nothing.
Torch-free.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence

from utils.analysis.measures import relative_gain
from utils.analysis.records import given
from utils.analysis.results import (
    AttackTests,
    AttackWarning,
    BudgetPoint,
    HotFlipCell,
    HotFlipFigures,
    HotFlipResults,
    HotFlipTransfer,
    LongBudgetPoint,
    SecondHalf,
    TriggerCell,
    TriggerResults,
    TriggerTransfer,
)
from utils.analysis.warning_texts import UNFINISHED, UNFINISHED_BY, warning

MARGIN = 0.02  # two points of success rate: below this a difference says nothing
LOSS_MARGIN = 0.05  # of the mean loss gain: what a converged attack may still add with twice the work
ENOUGH = 50  # examples: with fewer, one example is more than two points
ONE_EXAMPLE = 1.5  # examples that success may fall by: one alone says nothing
COLLAPSE = 0.9  # success rate that is expected where nothing of the text is left
LOW_FIDELITY = 0.1  # Spearman correlation of predicted and exact gain
ZERO_GRADIENTS = 0.01  # share of inputs without any gradient


def hotflip_warnings(results: HotFlipResults) -> list[AttackWarning]:
    """What is doubtful about the HotFlip results, model by model; an empty list means that no check failed."""
    found: list[AttackWarning] = []
    for key, model in results.models.items():
        if not model.num_attackable:
            found.append(warning(key, "nothing_attackable"))
            continue
        sources = {source: row[key] for source, row in results.transfer_matrix.items() if source != key}
        tests = results.comparisons.attack_minus_control[key]
        found += [
            *_masking(key, model, sources),
            *_gradients(key, model),
            *_chance(key, tests),
            *_budget(key, model.budget_curve or []),
            *_long_budget(key, model.long_budget_curve or []),
            *_collapse(key, model),
            *_doubling(key, tests.get("double")),
        ]
    return found


def _masking(key: str, model: HotFlipCell, transferred: Mapping[str, HotFlipTransfer]) -> Iterator[AttackWarning]:
    """Attacks that need no gradient of this model must not beat the one that has it."""
    rivals: dict[str, HotFlipFigures | HotFlipTransfer | None] = {
        "a gradient-free search beats": model.controls.get("greedy"),
        "random flips beat": model.controls.get("random"),
    }
    rivals |= {f"flips found on {source} beat": cell for source, cell in transferred.items()}
    rate, gain = given(model.success_rate), given(model.mean_loss_increase)
    for rival, figures in rivals.items():
        if figures is None or not figures.num_attackable:
            continue
        other_rate, other_gain = given(figures.success_rate), given(figures.mean_loss_increase)
        if other_rate > rate + MARGIN:
            yield warning(key, "possibly_masked_gradients/success", rival=rival, other=other_rate, own=rate)
        elif other_gain > gain:
            yield warning(key, "possibly_masked_gradients/loss", rival=rival, other=other_gain, own=gain)


def _gradients(key: str, model: HotFlipCell) -> Iterator[AttackWarning]:
    """A gradient must be there, and predict what a flip gains."""
    zero = model.zero_gradient_count or 0
    if zero > ZERO_GRADIENTS * model.num_attackable:
        yield warning(key, "zero_gradients", zero=zero, attackable=model.num_attackable)
    fidelity = model.taylor_fidelity_spearman
    if fidelity is not None and fidelity.mean is not None and fidelity.mean < LOW_FIDELITY:
        yield warning(key, "low_taylor_fidelity", fidelity=fidelity.mean)


def _chance(key: str, tests: Mapping[str, AttackTests]) -> Iterator[AttackWarning]:
    if "random" in tests and given(tests["random"].loss_increase).difference <= 0:
        yield warning(key, "no_better_than_random")


def _budget(key: str, curve: Sequence[BudgetPoint]) -> Iterator[AttackWarning]:
    """Within the budget success must not fall with more flips."""
    for before, after in itertools.pairwise(curve):
        if after.success_rate < before.success_rate - MARGIN:
            yield warning(key, "budget_not_monotone/within", flips=after.flips)
            return


def _long_budget(key: str, curve: Sequence[LongBudgetPoint]) -> Iterator[AttackWarning]:
    """With more and more flips success must grow, and with every token open next to nothing may be left."""
    for before, after in itertools.pairwise(curve):
        lost = before.success_rate - after.success_rate
        if lost > max(MARGIN, ONE_EXAMPLE / after.num_examples):
            flips = "every token open" if after.flips is None else f"{after.flips} flips"
            yield warning(key, "budget_not_monotone/beyond", lost=lost, flips=flips)
    if curve and curve[-1].success_rate < COLLAPSE:
        yield warning(key, "no_collapse/attack", rate=curve[-1].success_rate)


def _collapse(key: str, model: HotFlipCell) -> Iterator[AttackWarning]:
    """Where every token is replaced, the summary must be lost."""
    replaced = model.controls.get("all_replaced")
    if replaced is not None and given(replaced.success_rate) < max(COLLAPSE, given(model.success_rate)):
        yield warning(key, "no_collapse/score", rate=given(replaced.success_rate))


def _doubling(key: str, double: AttackTests | None) -> Iterator[AttackWarning]:
    """Twice the candidates must add next to nothing. The tests are the attack's minus the doubled one's."""
    if double is None or not double.num_common:
        return
    loss = given(double.loss_increase)
    change, gain = 0.0 - double.success.difference, relative_gain(loss.mean_b, loss.mean_a) or 0.0
    if gain > LOSS_MARGIN or (abs(change) >= MARGIN and double.num_common >= ENOUGH):
        yield warning(key, "not_converged/hotflip", change=change, gain=gain, examples=double.num_common)


def trigger_warnings(results: TriggerResults) -> list[AttackWarning]:
    """What is doubtful about the universal triggers, model by model."""
    found: list[AttackWarning] = []
    for key, triggers in results.models.items():
        for kind, cell in triggers.types.items():
            sources = {s: row[key] for s, row in results.transfer_matrix[kind].items() if s != key}
            found += _rivals(key, kind, cell, sources)
        unfinished = [_unfinished(kind, cell) for kind, cell in triggers.types.items() if not _settled(cell)]
        if unfinished:
            found.append(warning(key, "not_converged/triggers", types=", ".join(unfinished)))
    return found


def _rivals(
    key: str, kind: str, cell: TriggerCell, transferred: Mapping[str, TriggerTransfer]
) -> Iterator[AttackWarning]:
    """Triggers found by chance, without gradients, or on another model must not be stronger."""
    own = cell.nll_increase
    if own is None:
        return
    random, free = cell.random_control.nll_increase, cell.gradient_free_control
    if random is not None and random >= own:
        yield warning(key, "no_better_than_random/trigger", kind=kind)
    if free is not None and free.nll_increase is not None and free.nll_increase > own:
        yield warning(key, "possibly_masked_gradients/free_trigger", kind=kind, other=free.nll_increase, own=own)
    for source, other in transferred.items():
        if other.nll_increase is not None and other.nll_increase > own:
            yield warning(
                key,
                "possibly_masked_gradients/transferred_trigger",
                kind=kind,
                source=source,
                other=other.nll_increase,
                own=own,
            )


def _settled(cell: TriggerCell) -> bool:
    return cell.converged or cell.nll_increase is None


def _unfinished(kind: str, cell: TriggerCell) -> str:
    half = cell.halfway
    if half is None or not half.num_common:
        return UNFINISHED.format(kind=kind)
    return UNFINISHED_BY.format(kind=kind, success=half.success_change, nll=half.nll_change)


def doubling_matters(half: SecondHalf) -> bool:
    """Whether twice the iterations changed success by two points or more, on enough examples to say so."""
    return half.num_common >= ENOUGH and abs(given(half.success_change)) >= MARGIN
