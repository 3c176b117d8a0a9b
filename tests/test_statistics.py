"""Statistics against SciPy, closed forms and simulation: intervals cover what they say, tests hold their level."""

import numpy as np
import pytest
from scipy import stats

from tests.seed_simulation import Design, designs, simulate
from utils.analysis.bootstrap import bootstrap_ci
from utils.analysis.statistics import (
    cohens_dz,
    compare_models,
    corrected,
    crossed_difference,
    detectable_success,
    holm,
    mcnemar,
    minimum_detectable_difference,
    permutation_test,
    wilson_interval,
)


def test_the_bootstrap_interval_covers_as_it_says():
    rng = np.random.default_rng(0)
    inside = 0
    for experiment in range(1000):
        lower, upper = bootstrap_ci(rng.gamma(4.0, 0.05, 120), samples=400, seed=experiment)[1:]
        inside += lower <= 0.2 <= upper
    assert 930 <= inside <= 970


@pytest.mark.slow
def test_the_paired_interval_covers():
    rng = np.random.default_rng(1)
    inside = 0
    for experiment in range(1000):
        a = rng.normal(0.3, 0.1, 200)
        found = compare_models(a, a + rng.normal(0.0, 0.05, 200), samples=1000, seed=experiment, permutations=1)
        inside += found.lower <= 0.0 <= found.upper
    assert 930 <= inside <= 970


def test_the_permutation_test_holds_its_level_and_finds_what_is_there():
    rng = np.random.default_rng(2)
    null = found = 0
    for _ in range(400):
        a = rng.normal(0.3, 0.1, 40)
        null += permutation_test(a, a + rng.normal(0.0, 0.05, 40), permutations=500) < 0.05
        found += permutation_test(a, a + rng.normal(0.04, 0.05, 40), permutations=500) < 0.05
    assert 6 <= null <= 36 and found > 380


def test_they_agree_with_scipy_and_closed_forms():
    rng = np.random.default_rng(3)
    a = rng.normal(0.3, 0.1, 60)
    b = a + rng.normal(0.02, 0.05, 60)
    assert permutation_test(a, b) == pytest.approx(stats.ttest_rel(a, b).pvalue, abs=0.01)
    assert cohens_dz(a, b) == pytest.approx(stats.ttest_rel(b, a).statistic / 60**0.5) and cohens_dz(a, a) == 0.0
    z = stats.norm.ppf(0.975)  # Wilson 1927: the roots of (p - share)^2 = z^2 p (1 - p) / n
    n, share = 40, 17 / 40
    roots = np.roots([1 + z * z / n, -(2 * share + z * z / n), share * share])
    assert wilson_interval(17, 40) == pytest.approx((share, min(roots), max(roots)))
    assert wilson_interval(0, 0) == (0.0, 0.0, 1.0) and wilson_interval(5, 5)[2] == 1.0


@pytest.mark.slow
def test_mcnemar_holds_its_level():
    rng = np.random.default_rng(7)
    rejected = 0
    for _ in range(1000):
        drawn = rng.choice(4, size=200, p=[0.4, 0.1, 0.1, 0.4])
        rejected += mcnemar(drawn < 2, (drawn == 0) | (drawn == 2)).p_value < 0.05
    assert 15 <= rejected <= 65  # exact, so on the safe side


def test_mcnemar_counts_the_discordant_pairs():
    a, b = [1, 1, 1, 0, 0, 1], [1, 0, 0, 0, 1, 0]
    assert mcnemar(a, b).p_value == pytest.approx(stats.binomtest(1, 4).pvalue)
    assert mcnemar([0, 1], [0, 1]).p_value == 1.0


@pytest.mark.slow
def test_the_interval_of_a_difference_of_paired_rates_covers():
    rng = np.random.default_rng(4)
    for joint in ([0.5, 0.2, 0.1, 0.2], [0.05, 0.02, 0.01, 0.92]):  # both, only a, only b, neither
        inside = 0
        for _ in range(1000):
            drawn = rng.choice(4, size=80, p=joint)
            found = mcnemar(drawn < 2, (drawn == 0) | (drawn == 2))
            inside += found.lower <= joint[2] - joint[1] <= found.upper
        assert 930 <= inside <= 995  # on the safe side where successes are rare
    assert (mcnemar([], []).lower, mcnemar([], []).upper) == pytest.approx((-0.98, 0.98), abs=0.01)


def test_holm_steps_down():
    assert holm({"a": 0.01, "b": 0.04, "c": 0.03}) == pytest.approx({"a": 0.03, "b": 0.06, "c": 0.06})


def test_a_family_keeps_its_tests_and_gains_their_corrected_p_values():
    tests = {name: mcnemar([1] * ones + [0] * 3, [0] * ones + [0, 1, 0]) for name, ones in (("a", 9), ("b", 6))}
    family = corrected(tests)
    assert family["a"].p_value_holm == pytest.approx(2 * stats.binomtest(1, 10).pvalue)  # the smaller one: times two
    assert family["b"].p_value_holm == pytest.approx(stats.binomtest(1, 7).pvalue) and family["b"].family_size == 2
    assert family["a"].difference == tests["a"].difference and tests["a"].p_value_holm is None


@pytest.mark.slow
def test_the_smallest_detectable_difference_is_found_in_four_of_five_experiments():
    n, sd = 50, 0.1
    smallest = minimum_detectable_difference(n, sd)
    rng = np.random.default_rng(4)
    found = np.mean([stats.ttest_1samp(rng.normal(smallest, sd, n), 0.0).pvalue < 0.05 for _ in range(2000)])
    assert 0.77 <= found <= 0.83
    # SciPy's noncentral t has holes in its tails; an experiment must not end in one.
    values = [minimum_detectable_difference(n, 1.0) for n in (*range(2, 400), 819, 1500, 11490)]
    assert all(np.isfinite(values)) and all(np.diff(values) < 0)
    assert minimum_detectable_difference(1, 0.1) is None and minimum_detectable_difference(9, 0.0) == 0.0


def test_comparing_two_models_that_are_one_says_so():
    scores = np.linspace(0, 1, 50)
    result = compare_models(scores, scores)
    assert (result.difference, result.p_value, result.cohens_dz, result.n) == (0, 1.0, 0, 50)


def test_the_difference_over_seeds_by_hand():
    """Two seeds, three examples: d = [[1, 2, 3], [3, 2, 7]].

    Means: seeds 2 and 4, examples 2, 2 and 5, all 3. MS_seed = 3 * (1 + 1) / 1 = 6; MS_example = 2 * (1 + 1 + 4) / 2
    = 6; what is left [[0, 1, -1], [0, -1, 1]], MS_rest = 4 / 2 = 2. Variance of the mean (6 + 6 - 2) / 6 = 5 / 3;
    freedom 10^2 / (6 * 10 / 1 + 4^2 / 2) = 100 / 68.
    """
    found = crossed_difference([[1, 2, 3], [3, 2, 7]])
    law = stats.t(100 / 68, loc=3, scale=(5 / 3) ** 0.5)
    assert found == pytest.approx(
        {"difference": 3, "lower": law.ppf(0.025), "upper": law.ppf(0.975), "p_value": 2 * law.cdf(0)}
    )
    narrow = crossed_difference([[1, 2, 3], [3, 2, 7]], confidence=0.5)
    assert (narrow["lower"], narrow["upper"]) == (pytest.approx(law.ppf(0.25)), pytest.approx(law.ppf(0.75)))


def test_where_only_one_of_them_varies_the_difference_over_seeds_is_a_t_test():
    one = np.random.default_rng(0).normal(0.3, 1.0, 20)
    for values in (np.repeat(one[None, :], 4, axis=0), np.repeat(one[:, None], 4, axis=1)):
        found, test = crossed_difference(values), stats.ttest_1samp(one, 0)
        interval = test.confidence_interval()
        assert found["p_value"] == pytest.approx(test.pvalue)
        assert (found["lower"], found["upper"]) == (pytest.approx(interval.low), pytest.approx(interval.high))


def test_the_difference_over_seeds_of_degenerate_values():
    nothing = {"difference": 0.0, "lower": 0.0, "upper": 0.0, "p_value": 1.0}
    assert crossed_difference(np.zeros((3, 8))) == nothing
    for value in (0.1, -1.0):  # all signs agree: as likely as eight heads, or eight tails
        found = crossed_difference(np.full((3, 8), value))
        assert found == pytest.approx({"difference": value, "lower": value, "upper": value, "p_value": 2 / 2**8})
    for shape in ((1, 8), (3, 1), (3, 0), (8,)):
        with pytest.raises(ValueError, match="at least 2 of each"):
            crossed_difference(np.zeros(shape))
    for bad in (np.nan, np.inf):
        with pytest.raises(ValueError, match="NaN or infinite"):
            crossed_difference([[0.0, bad], [0.0, 0.1]])
    with pytest.raises(ValueError, match="between 0 and 1"):
        crossed_difference(np.zeros((2, 2)), confidence=95)


@pytest.mark.slow
def test_the_interval_over_seeds_covers_in_every_world():
    """docs/statistics.md has the table at 3,000 replications; here 150, close to 95 % all together."""
    found = [simulate(design, 150, seed=number) for number, design in enumerate(designs())]
    assert len(found) == 24
    assert all(0.89 <= rates.coverage <= 0.997 and rates.power > 0.95 for rates in found)
    assert 0.94 <= np.mean([rates.coverage for rates in found]) <= 0.97
    assert 0.03 <= np.mean([rates.level for rates in found]) <= 0.06


@pytest.mark.slow
def test_it_covers_for_successes_too_also_where_they_are_rare():
    worlds = [
        Design(seeds, spread, 0.4, examples=300, binary=True, rate=rate)
        for seeds in (3, 5)
        for spread, rate in ((0.0, 0.5), (0.02, 0.5), (0.0, 0.05), (0.005, 0.05), (0.0, 0.95))
    ]
    found = [simulate(design, 300, seed=number, effect=-0.03).coverage for number, design in enumerate(worlds)]
    assert min(found) >= 0.91 and 0.94 <= np.mean(found) <= 0.98


@pytest.mark.slow
def test_the_detectable_difference_of_rates_is_found_in_four_of_five_experiments():
    rng = np.random.default_rng(6)
    for n, discordant in ((60, 6), (200, 60), (1500, 300)):
        smallest = detectable_success(n, discordant)
        share = max(smallest, discordant / n)
        differing = rng.binomial(n, share, 1000)
        rarer = rng.binomial(differing, (share - smallest) / (2 * share))
        found = [stats.binomtest(int(k), int(d)).pvalue <= 0.05 for k, d in zip(rarer, differing, strict=True) if d]
        assert 0.77 <= np.sum(found) / 1000 <= 0.88  # an exact test of counts: in steps
    assert detectable_success(0, 0) is None and detectable_success(3, 3) is None  # 3 of 3: p = 0.25 at best
    assert detectable_success(1500, 300, alpha=0.05 / 12) > detectable_success(1500, 300)
