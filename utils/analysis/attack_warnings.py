"""Robust, or only hard to differentiate? The checks of the attacks; warning_texts.py puts what they find in words.

An attack that follows gradients can fail because the model resists, or because its gradients mislead ("gradient
masking", Athalye et al. 2018). The signs are in Carlini et al. 2019: a gradient-free or transferred attack that does
better, success that does not grow with the budget, zero gradients, first-order gains that predict nothing.

Every check is a one-sided test that what was seen exceeds a margin, at 5 %; where one check looks at several rivals,
Holm over all of one model's. None speaks from fewer than 20 examples, 12 where every legal move is tried on each.
docs/statistics.md has the simulated false rates.
Torch-free.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from scipy import stats

from utils.analysis.comparisons import Advantage, AttackTests, AttackWarning, PairedTest
from utils.analysis.records import given
from utils.analysis.results import (
    BudgetPoint,
    HotFlipCell,
    HotFlipResults,
    HotFlipTransfer,
    LongBudgetPoint,
    SecondHalf,
    TriggerCell,
    TriggerResults,
)
from utils.analysis.statistics import exceeds, holm
from utils.analysis.suite_records import FoundOfPossible
from utils.analysis.warning_texts import ranked, warning
from utils.core.names import BASELINE, MONOTONIC

ALPHA = 0.05
ENOUGH = 20  # examples: fewer say nothing
MARGIN = 0.02  # of the success rate: two points
LOSS_MARGIN = 0.05  # of the attack's own mean loss rise: what another attack may add without being stronger
ENOUGH_FOUND = 12  # examples of which the best move is known: some of CEILING_EXAMPLES = 20 are not attackable
LEAST_FOUND = 0.5  # share of the best single flip's loss rise that an attack with good gradients finds at least
UNEQUAL = 0.05  # of what is possible: how much less an attack may find on one of the compared models
COLLAPSE = 0.9  # success rate that is expected where nothing of the text is left
LOW_FIDELITY = 0.1  # Spearman correlation of predicted and exact gain
ZERO_GRADIENTS = 0.01  # share of inputs without any gradient


@dataclass(frozen=True)
class Suspicion:
    """A warning that its test has still to let through."""

    text: str
    n: int
    p_value: float
    margin: float
    figures: dict[str, Any]


def raised(model: str, suspicions: Sequence[Suspicion]) -> list[AttackWarning]:
    """Those on enough examples whose Holm-corrected p-value, over all that were looked at together, is below 5 %."""
    enough = [s for s in suspicions if s.n >= ENOUGH]
    adjusted = holm({number: s.p_value for number, s in enumerate(enough)})
    return [
        warning(model, s.text, n=s.n, p_value=adjusted[number], margin=s.margin, **s.figures)
        for number, s in enumerate(enough)
        if adjusted[number] < ALPHA
    ]


def hotflip_warnings(results: HotFlipResults) -> list[AttackWarning]:
    """What is doubtful about the HotFlip results, the gravest first; an empty list means that no check failed."""
    found: list[AttackWarning] = []
    for key, model in results.models.items():
        if not model.num_attackable:
            found.append(warning(key, "nothing_attackable", n=model.num_examples))
            continue
        sources = {source: row[key] for source, row in results.transfer_matrix.items() if source != key}
        tests = results.comparisons.attack_minus_control[key]
        for check in (
            _masking(model, tests, sources),
            _surrogate(tests),
            _gradients(model),
            _budget(model.num_attackable, model.budget_curve or []),
            _long_budget(model.long_budget_curve or []),
            _collapse(model),
            _doubling(tests.get("double")),
        ):
            found += raised(key, list(check))
        found += little_found(key, model.found_of_possible)
        found += _chance(key, "the attack", "random flips of equal budget", tests.get("random"))
    found += unequal_search(results.comparisons.found_of_possible_baseline_vs_monotonic, "the first flip")
    return ranked(found)


def advantage_of_control(tests: AttackTests) -> Advantage:
    """How much more a control (a) does than the attack (b): the tests are the attack's minus the control's."""
    loss = given(tests.loss_increase if tests.loss_increase is not None else tests.nll_increase)
    n, success = tests.num_common, tests.success
    change = 0.0 - success.difference
    square = (success.only_a + success.only_b) / n - change**2 if n else 0.0
    return Advantage(
        n=n,
        success=change,
        success_sd=(max(square, 0.0) * n / (n - 1)) ** 0.5 if n > 1 else 0.0,
        loss=0.0 - loss.difference,
        loss_sd=loss.sd,
    )


def stronger(other: Advantage, own_rise: float, name: str, **figures: object) -> Iterator[Suspicion]:
    """The other attack's success, or its loss rise, exceeds the attack's own by more than a margin."""
    shares = exceeds(other.n, other.success, other.success_sd, MARGIN)
    yield Suspicion(f"{name}/success", other.n, shares, MARGIN, {"change": other.success, **figures})
    margin = LOSS_MARGIN * max(own_rise, 0.0)
    losses = exceeds(other.n, other.loss, other.loss_sd, margin)
    yield Suspicion(f"{name}/loss", other.n, losses, margin, {"change": other.loss, **figures})


def _masking(
    model: HotFlipCell, tests: Mapping[str, AttackTests], transferred: Mapping[str, HotFlipTransfer]
) -> Iterator[Suspicion]:
    """Attacks that need no gradient of this model must not beat the one that has it."""
    controls = {"greedy": "a gradient-free search beats", "random": "random flips beat"}
    rivals = {words: advantage_of_control(tests[name]) for name, words in controls.items() if name in tests}
    for source, cell in transferred.items():
        if cell.advantage is not None:
            rivals[f"flips found on {source} beat"] = cell.advantage
    for words, rival in rivals.items():
        yield from _masked_or_misled(rival, given(model.mean_loss_increase), words)


def _masked_or_misled(rival: Advantage, own_rise: float, words: str) -> Iterator[Suspicion]:
    """A rival that succeeds more though it raises the loss less hides no gradient: the loss misleads the attack."""
    for suspicion in stronger(rival, own_rise, "possibly_masked_gradients", rival=words):
        misled = suspicion.text.endswith("/success") and rival.loss <= 0
        yield replace(suspicion, text="surrogate_mismatch/rival") if misled else suspicion


def little_found(key: str, found: FoundOfPossible | None) -> Iterator[AttackWarning]:
    """The first flip must reach a good share of the best one."""
    if found is None or found.by_loss is None or found.by_loss_sd is None or found.by_loss_examples < ENOUGH_FOUND:
        return
    mean, n = found.by_loss.mean, found.by_loss_examples
    p = exceeds(n, -mean, found.by_loss_sd, -LEAST_FOUND)
    if p < ALPHA:
        yield warning(key, "possibly_masked_gradients/found", n=n, p_value=p, margin=LEAST_FOUND, share=mean)


def unequal_search(test: PairedTest | None, attack: str) -> Iterator[AttackWarning]:
    """The attack must not find less of what is possible on one of the two models: that is no robustness of it."""
    if test is None or test.n < ENOUGH_FOUND:
        return
    p = min(1.0, 2 * exceeds(test.n, abs(test.difference), test.sd, UNEQUAL))  # either model may be the one
    if p < ALPHA:
        pairs = sorted([(test.mean_a, BASELINE), (test.mean_b, MONOTONIC)])
        (own, key), (other, rival) = pairs
        yield warning(
            key, "unequal_search", n=test.n, p_value=p, margin=UNEQUAL, attack=attack, own=own, other=other, rival=rival
        )


def _surrogate(tests: Mapping[str, AttackTests]) -> Iterator[Suspicion]:
    """Attacks that choose by generated ROUGE-L must not succeed much more often than the one that chooses by loss."""
    for name, words in (("metric", "choosing by ROUGE-L"), ("word_importance", "a black box that chooses by ROUGE-L")):
        if name in tests:
            more = advantage_of_control(tests[name])
            p = exceeds(more.n, more.success, more.success_sd, MARGIN)
            yield Suspicion("surrogate_mismatch/hotflip", more.n, p, MARGIN, {"change": more.success, "rival": words})


def _gradients(model: HotFlipCell) -> Iterator[Suspicion]:
    """A gradient must be there, and predict what a flip gains."""
    n, zero = model.num_attackable, model.zero_gradient_count or 0
    p = float(stats.binom.sf(zero - 1, n, ZERO_GRADIENTS))
    yield Suspicion("zero_gradients", n, p, ZERO_GRADIENTS, {"zero": zero, "attackable": n})
    found = model.taylor_fidelity_spearman
    if found is not None and found.mean is not None:
        p = exceeds(found.examples, -found.mean, found.sd, -LOW_FIDELITY)
        yield Suspicion("low_taylor_fidelity", found.examples, p, LOW_FIDELITY, {"fidelity": found.mean})


def _chance(key: str, attack: str, control: str, tests: AttackTests | None) -> Iterator[AttackWarning]:
    """Here the attack has to prove itself: what is not shown to beat chance is doubtful."""
    if tests is None or tests.num_common < ENOUGH:
        return
    random = advantage_of_control(tests)
    p = exceeds(random.n, 0.0 - random.loss, random.loss_sd, 0.0)
    if p >= ALPHA:
        change = 0.0 - random.loss
        yield warning(key, "no_better_than_random", n=random.n, attack=attack, control=control, change=change, p=p)


def _fall(n: int, before: float, after: float, flips: str) -> Suspicion:
    """Success falls. Examples are the same on both sides; taking them for independent errs on the safe side."""
    lost, spread = before - after, (before * (1 - before) + after * (1 - after)) ** 0.5
    p = exceeds(n, lost, spread, MARGIN)
    return Suspicion("budget_not_monotone", n, p, MARGIN, {"lost": lost, "flips": flips})


def _budget(n: int, curve: Sequence[BudgetPoint]) -> Iterator[Suspicion]:
    """Within the budget success must not fall with more flips."""
    for before, after in itertools.pairwise(curve):
        yield _fall(n, before.success_rate, after.success_rate, f"{after.flips} flips")


def _long_budget(curve: Sequence[LongBudgetPoint]) -> Iterator[Suspicion]:
    """With more and more flips success must grow, and with every token open next to nothing may be left."""
    for before, after in itertools.pairwise(curve):
        flips = "every token open" if after.flips is None else f"{after.flips} flips"
        yield _fall(after.num_examples, before.success_rate, after.success_rate, flips)
    if curve:
        yield _too_few("no_collapse/attack", curve[-1].num_examples, curve[-1].success_rate, COLLAPSE)


def _too_few(text: str, n: int, rate: float, expected: float) -> Suspicion:
    p = float(stats.binom.cdf(round(rate * n), n, expected))
    return Suspicion(text, n, p, expected, {"rate": rate})


def _collapse(model: HotFlipCell) -> Iterator[Suspicion]:
    """Where every token is replaced, the summary must be lost."""
    replaced = model.controls.get("all_replaced")
    if replaced is not None and replaced.num_attackable:
        yield _too_few("no_collapse/score", replaced.num_attackable, given(replaced.success_rate), COLLAPSE)


def _doubling(double: AttackTests | None) -> Iterator[Suspicion]:
    """Twice the candidates must add next to nothing. The tests are the attack's minus the doubled one's."""
    if double is not None and double.num_common:
        own = given(double.loss_increase).mean_b
        yield from _unfinished(advantage_of_control(double), own, "not_converged/hotflip")


def _unfinished(gained: Advantage, own_rise: float, text: str, **figures: object) -> Iterator[Suspicion]:
    """More work gains more than a margin, by success or by loss: one suspicion, by the surer of the two."""
    both = list(stronger(gained, own_rise, text))
    surer = min(both, key=lambda suspicion: suspicion.p_value)
    shown = {"success": gained.success, "loss": gained.loss, **figures}
    yield Suspicion(text, surer.n, min(1.0, len(both) * surer.p_value), surer.margin, shown)


def trigger_warnings(results: TriggerResults) -> list[AttackWarning]:
    """What is doubtful about the universal triggers, the gravest first."""
    found: list[AttackWarning] = []
    for key, triggers in results.models.items():
        rivals: list[Suspicion] = []
        unfinished: list[Suspicion] = []
        for kind, cell in triggers.types.items():
            rivals += _rivals(results, key, kind)
            unfinished += second_half(kind, cell.halfway, cell.nll_increase)
            attack, control = f"the {kind} trigger", "the best random trigger"
            found += _chance(key, attack, control, cell.control_comparison)
            found += _misled_trigger(key, kind, cell)
        found += raised(key, rivals) + raised(key, unfinished)
    found += unequal_search(results.found_of_possible_baseline_vs_monotonic, "the last token of the triggers")
    return ranked(found)


def _misled_trigger(key: str, kind: str, cell: TriggerCell) -> Iterator[AttackWarning]:
    """The trigger learned by loss is shown to raise the loss more than the best random one, and not seen to harm more.

    The sentence has the paired test of the difference in ROUGE-L.
    """
    tests = cell.surrogate_comparison
    risen, change = given(tests.nll_increase), tests.delta_rougeL
    if tests.num_common < ENOUGH or change.difference < 0:
        return
    rise = risen.difference
    if exceeds(risen.n, rise, risen.sd, 0.0) < ALPHA:
        yield warning(
            key, "surrogate_mismatch/trigger", n=tests.num_common, kind=kind, rise=rise, change=change.difference,
            lower=change.lower, upper=change.upper, p=change.p_value,
            chosen="a random one" if cell.chosen_from == "random" else "a learned one",
        )  # fmt: skip


def stronger_elsewhere(results: TriggerResults, model: str, kind: str) -> bool:
    """Whether a trigger of this type from another search or model is shown to be stronger than the model's own."""
    return bool(raised(model, list(_rivals(results, model, kind))))


def _rivals(results: TriggerResults, model: str, kind: str) -> Iterator[Suspicion]:
    """Triggers found without gradients, or on another model, must not be stronger."""
    cell = results.models[model].types[kind]
    free = cell.gradient_free_control
    rivals = {f"{kind}: a trigger found without gradients beats": free.advantage if free is not None else None}
    for source, row in results.transfer_matrix[kind].items():
        if source != model:
            rivals[f"{kind}: the trigger found on {source} beats"] = row[model].advantage
    for words, rival in rivals.items():
        if rival is not None and cell.nll_increase is not None:
            yield from _masked_or_misled(rival, cell.nll_increase, words)


def second_half(kind: str, half: SecondHalf | None, own_rise: float | None) -> Iterator[Suspicion]:
    """What twice the iterations added to a trigger search."""
    if half is not None and half.advantage is not None and own_rise is not None:
        yield from _unfinished(half.advantage, own_rise, "not_converged/triggers", kind=kind)


def doubling_matters(half: SecondHalf, own_rise: float | None) -> bool:
    """Whether twice the iterations changed success or loss beyond the margins, on enough examples to say so."""
    return bool(raised("", list(second_half("", half, own_rise))))
