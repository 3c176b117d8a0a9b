"""Doubts about an attack: each cause raises its own, a sound attack none, and none rests on too few examples."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from utils.analysis.attack_warnings import (
    doubling_matters,
    hotflip_warnings,
    raised,
    stronger,
    stronger_elsewhere,
    trigger_warnings,
)
from utils.analysis.comparisons import Advantage, AttackTests, AttackWarning, PairedTest, SuccessTest
from utils.analysis.records import (
    TriggerFound,
)
from utils.analysis.results import (
    BudgetPoint,
    Fidelity,
    HotFlipCell,
    HotFlipComparisons,
    HotFlipFigures,
    HotFlipResults,
    HotFlipTransfer,
    LongBudgetPoint,
    ModelTriggers,
    RandomControl,
    SecondHalf,
    TriggerCell,
    TriggerResults,
    TriggerTransfer,
    WorstPerExample,
    WorstTrigger,
)
from utils.analysis.suite_records import WorstCase

COUNTS = {"num_examples": 100, "num_attackable": 100, "num_skipped": 0, "skipped": {}, "threshold": 0.15}


def _figures(rate: float, gain: float) -> HotFlipFigures:
    return HotFlipFigures(
        **COUNTS, num_short_articles=0, success_rate=rate, mean_degradation=rate, mean_loss_increase=gain
    )


def _tests(
    *, loss: tuple[float, float], success: float = 0.0, common: int = 50, sd: float = 0.1, rouge: float = 0.0
) -> AttackTests:
    """Tests with these mean losses of both sides and this difference of success rates."""
    p: dict[str, object] = {"p_value": 1.0, "lower": 0.0, "upper": 0.0, "minimum_detectable_difference": None}
    lost, gained = round(common * max(-success, 0)), round(common * max(success, 0))
    rates = {"rate_a": 0.5, "rate_b": 0.5 + success, "difference": success}
    counts = {"n": common, "both": 0, "only_a": lost, "only_b": gained, "neither": common - lost - gained}
    none = {"n": common, "cohens_dz": 0.0, "sd": sd} | p
    same = PairedTest(mean_a=0.0, mean_b=0.0, difference=0.0, **none)
    rise = PairedTest(mean_a=loss[0], mean_b=loss[1], difference=loss[1] - loss[0], **none)
    success_test = SuccessTest(**counts, **rates, **p)
    return AttackTests(
        num_common=common, success=success_test, relative_drop=same, delta_rougeL=replace(same, difference=rouge),
        loss_increase=rise, nll_increase=rise,
    )  # fmt: skip


def _advantage(success: float, loss: float, n: int = 100) -> Advantage:
    return Advantage(n=n, success=success, success_sd=0.1, loss=loss, loss_sd=0.1)


def _doubts(
    *,
    transfer: Advantage | None = None,
    greedy: tuple[float, float] = (0.0, 0.7),
    random: float = 0.2,
    doubled: float = 0.0,
    doubled_loss: float = 1.0,
    common: int = 50,
    **values: object,
) -> set[str]:
    """The warnings about a model that is fine but for `values`."""
    flips = [
        BudgetPoint(flips=k, success_rate=rate, success_rate_best_so_far=rate, mean_degradation=0, mean_loss_increase=0)
        for k, rate in enumerate(values.pop("budget", (0.2, 0.4, 0.5)), 1)
    ]
    fine: dict[str, object] = {
        **vars(_figures(0.5, 1.0)),
        "zero_gradient_count": 0,
        "taylor_fidelity_spearman": Fidelity(pooled=0.5, mean=0.5, sd=0.2, examples=50, pairs=100),
        "budget_curve": flips,
        "controls": {"random": _figures(0.2, 0.2), "greedy": _figures(0.4, 0.7), "all_replaced": _figures(0.99, 3.0)},
        "suite": {},
        "worst_case": WorstCase(num_attackable=100, success_rate=0.5, mean_degradation=0.5),
    }
    model = HotFlipCell(**fine | values)
    other = HotFlipCell(**fine | {"controls": {}, "budget_curve": None})
    cells = {
        ("baseline", "monotonic"): _figures(0.1, 0.1),
        ("monotonic", "baseline"): _figures(0.1, 0.1),
    }
    matrix = {
        source: {
            target: HotFlipTransfer(
                num_attackable=100,
                success_rate=cells.get((source, target), model).success_rate,
                mean_degradation=0.5,
                mean_loss_increase=cells.get((source, target), model).mean_loss_increase,
                advantage=transfer if (source, target) == ("baseline", "monotonic") else None,
            )
            for target in ("baseline", "monotonic")
        }
        for source in ("baseline", "monotonic")
    }
    tests = {
        "random": _tests(loss=(random, 1.0), common=common),
        "greedy": _tests(loss=(greedy[1], 1.0), success=greedy[0], common=common),
        "double": _tests(loss=(doubled_loss, 1.0), success=doubled, common=common),
    }
    results = HotFlipResults(
        models={"baseline": other, "monotonic": model},
        transfer_matrix=matrix,
        comparisons=HotFlipComparisons(
            attack_minus_control={"monotonic": tests, "baseline": {}}, controls_baseline_vs_monotonic={}
        ),
        warnings=[],
    )
    found = hotflip_warnings(results)
    assert all(doubt.model == "monotonic" and doubt.message for doubt in found)
    return {doubt.warning for doubt in found}


def test_a_trigger_that_the_loss_misled_is_named_with_its_test() -> None:
    """Random (a), learned by loss (b): the loss rises more; ROUGE-L falls less, or falls more."""
    (doubt,) = _trigger_doubts(surrogate=_tests(loss=(0.05, 0.3), rouge=0.1))
    assert doubt.warning == "surrogate_mismatch" and "p = 1" in doubt.message and doubt.n == 50
    assert not _trigger_doubts(surrogate=_tests(loss=(0.05, 0.3), rouge=-0.1))
    assert not _trigger_doubts(surrogate=_tests(loss=(0.3, 0.05), rouge=0.1))  # the loss did not rise: nothing misled


def _trigger_doubts(
    *, converged: bool = True, halfway: SecondHalf | None = None, surrogate: AttackTests | None = None
) -> list[AttackWarning]:
    return trigger_warnings(_triggers(converged=converged, halfway=halfway, surrogate=surrogate))


def _triggers(
    *, converged: bool = True, halfway: SecondHalf | None = None, surrogate: AttackTests | None = None,
    transferred: Advantage | None = None,
) -> TriggerResults:  # fmt: skip
    figures = {**COUNTS, "success_rate": 0.5, "mean_degradation": 0.5, "clean": None, "attacked": None,
               "delta_rougeL": -0.1, "trigger_ids": [5], "trigger_text": "x", "dev_gain": 1.0,
               "dev_rouge_change": -0.1}  # fmt: skip
    cell = TriggerCell(
        **figures, nll_increase=1.0, trigger_type="lead", source="baseline", method="gradient", restarts=[], num_dev=1,
        iterations=1, halfway_trigger_ids=[], curve=[], converged=converged, halfway=halfway, forward_rows=1,
        gradient_rows=1, seconds=0.0, control_comparison=_tests(loss=(0.2, 1.0)), chosen_from="search",
        by_loss=TriggerFound(trigger_ids=[5], trigger_text="x", dev_gain=1.0, dev_rouge_change=-0.1),
        surrogate_comparison=surrogate or _tests(loss=(0.2, 1.0), rouge=-0.1),
        random_control=RandomControl(**figures, nll_increase=0.2, dev_gain_mean=0.1, draws=1),
    )  # fmt: skip
    worst = WorstTrigger(worst_type="lead", per_example=WorstPerExample(
        num_attackable=100, success_rate=0.5, mean_degradation=0.5, delta_rougeL=-0.1))  # fmt: skip
    models = {"baseline": ModelTriggers(types={"lead": cell}, worst=worst)}
    from_other = TriggerTransfer(
        num_attackable=100, success_rate=0.5, mean_degradation=0.5, delta_rougeL=-0.1, nll_increase=1.0,
        advantage=transferred,
    )  # fmt: skip
    matrix = {"lead": {"baseline": {}, "monotonic": {"baseline": from_other}}}
    return TriggerResults(models=models, transfer_matrix=matrix, comparisons={}, warnings=[])


def test_a_stronger_trigger_of_another_model_is_seen_and_one_as_strong_is_not() -> None:
    """A rise of 1 nat: beyond 5 % of it, or two points of success, on at least 20 examples."""
    for beyond in (_advantage(0.1, 0.01), _advantage(0.0, 0.2), _advantage(0.2, -0.1)):
        assert stronger_elsewhere(_triggers(transferred=beyond), "baseline", "lead")
    for within in (_advantage(0.0, 0.0), _advantage(0.01, 0.04), _advantage(-0.2, -0.2), _advantage(0.2, 0.2, n=19)):
        assert not stronger_elsewhere(_triggers(transferred=within), "baseline", "lead")
    assert not stronger_elsewhere(_triggers(), "baseline", "lead")


def test_two_points_of_success_from_twice_the_iterations_are_not_converged() -> None:
    assert _trigger_doubts() == []
    half = SecondHalf(num_common=100, success_change=0.1, nll_change=0.0, advantage=_advantage(0.1, 0.0))
    assert doubling_matters(half, 1.0)
    assert not doubling_matters(replace(half, advantage=_advantage(0.02, 0.0)), 1.0)  # within the margin
    assert not doubling_matters(replace(half, advantage=_advantage(0.1, 0.0, n=19)), 1.0)  # too few examples
    assert doubling_matters(replace(half, advantage=_advantage(0.0, 0.1)), 1.0)  # by the loss alone
    (doubt,) = _trigger_doubts(converged=False, halfway=half)
    assert doubt.warning == "not_converged" and "lead" in doubt.message and "success +10.0%" in doubt.message


def test_a_sound_attack_raises_no_warning() -> None:
    assert _doubts() == set()


def test_each_warning_has_its_cause() -> None:
    assert _doubts(greedy=(-0.2, 1.01)) == {"possibly_masked_gradients"}
    # More success by less loss: what misleads is the loss, not the gradient.
    assert _doubts(greedy=(-0.2, 0.9)) == {"surrogate_mismatch"}
    assert _doubts(transfer=_advantage(0.1, -0.1)) == {"surrogate_mismatch"}
    assert _doubts(greedy=(0.0, 1.15)) == {"possibly_masked_gradients"}  # by the loss alone
    assert _doubts(greedy=(0.0, 1.04)) == set()  # within five per cent of the attack's own rise
    assert _doubts(transfer=_advantage(0.1, 0.01)) == {"possibly_masked_gradients"}
    assert _doubts(random=0.99) == {"no_better_than_random"}
    assert _doubts(zero_gradient_count=50) == {"zero_gradients"}
    assert _doubts(zero_gradient_count=2) == set()  # of 100: not shown to be more than one in a hundred
    weak = Fidelity(pooled=0.5, mean=0.02, sd=0.2, examples=50, pairs=100)
    assert _doubts(taylor_fidelity_spearman=weak) == {"low_taylor_fidelity"}
    assert _doubts(budget=(0.8, 0.5)) == {"budget_not_monotone"}
    assert _doubts(budget=(0.6, 0.55)) == set()  # five of a hundred examples: not beyond chance
    assert _doubts(doubled=-0.2) == {"not_converged"}
    assert _doubts(doubled_loss=1.2) == {"not_converged"}
    assert _doubts(controls={"all_replaced": _figures(0.3, 3.0)}) == {"no_collapse"}
    long = [
        LongBudgetPoint(
            flips=flips, success_rate=rate, num_examples=100, perturbed_share=0, mean_degradation=0,
            mean_loss_increase=0,
        )
        for flips, rate in ((5, 0.5), (10, 0.8), (None, 0.97))
    ]  # fmt: skip
    assert _doubts(long_budget_curve=long) == set()
    weaker = [*long[:2], replace(long[2], success_rate=0.5)]
    assert _doubts(long_budget_curve=weaker) == {"budget_not_monotone", "no_collapse"}
    assert "nothing_attackable" in _doubts(num_attackable=0)


def test_no_doubt_rests_on_fewer_than_twenty_examples() -> None:
    everything = {"greedy": (-1.0, 2.0), "random": 2.0, "doubled": -1.0, "doubled_loss": 2.0}
    assert len(_doubts(**everything, common=20)) == 3 and _doubts(**everything, common=19) == set()


@pytest.mark.slow
def test_rivals_that_are_equally_strong_raise_no_doubt() -> None:
    """As docs/statistics.md says: four rivals of the very same strength, and noise from example to example.

    Before, the larger of two equal means was enough, and 99 % of runs had a doubt.
    """
    rng = np.random.default_rng(0)

    def doubtful(n: int, spread: float, stronger_by: float) -> float:
        """Share of 1,000 runs with a doubt; `spread`: standard deviation of an example's rise, whose mean is 1."""
        runs = 0
        for _ in range(1000):
            own, rivals = spread * rng.normal(size=n), spread * rng.normal(size=(4, n)) + stronger_by
            gains = rivals - own
            figures = zip(gains.mean(axis=1), gains.std(axis=1, ddof=1), strict=True)
            found = [Advantage(n=n, success=0.0, success_sd=0.3, loss=mean, loss_sd=sd) for mean, sd in figures]
            checks = [s for one in found for s in stronger(one, 1.0, "possibly_masked_gradients", rival="x beats")]
            runs += bool(raised("", checks))
        return runs / 1000

    assert doubtful(60, 0.3, 0.0) <= 0.02 and doubtful(1500, 0.3, 0.0) == 0 and doubtful(1500, 1.0, 0.0) <= 0.02
    assert 0.01 <= doubtful(60, 0.3, 0.05) <= 0.05  # at the margin itself: the level of the test
    assert doubtful(60, 0.3, 0.25) > 0.9 and doubtful(1500, 1.0, 0.25) > 0.99
