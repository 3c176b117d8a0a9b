"""Statistics against SciPy, closed forms and simulation: intervals cover what they say, tests hold their level."""

import numpy as np
import pytest
from scipy import stats

from utils.analysis.bootstrap import bootstrap_ci, paired_bootstrap
from utils.analysis.statistics import (
    cliffs_delta,
    cohens_dz,
    compare_models,
    holm,
    mcnemar,
    mcnemar_exact,
    minimum_detectable_difference,
    paired_t_test,
    permutation_test,
    rank_biserial,
    wilcoxon_test,
    wilson_interval,
)


def test_the_bootstrap_interval_covers_as_it_says():
    rng = np.random.default_rng(0)
    inside = 0
    for experiment in range(1000):
        lower, upper = bootstrap_ci(rng.gamma(4.0, 0.05, 120), samples=400, seed=experiment)[1:]
        inside += lower <= 0.2 <= upper
    assert 930 <= inside <= 970


def test_the_bca_interval_covers_and_is_scipys():
    rng = np.random.default_rng(5)
    inside = 0
    for experiment in range(1000):
        lower, upper = bootstrap_ci(rng.beta(2.0, 6.0, 120), samples=400, seed=experiment, method="bca")[1:]
        inside += lower <= 0.25 <= upper
    assert 930 <= inside <= 970
    skewed = rng.gamma(0.5, 0.2, 60)
    found = bootstrap_ci(skewed, samples=20_000, method="bca")[1:]
    theirs = stats.bootstrap((skewed,), np.mean, n_resamples=20_000, method="BCa", rng=1).confidence_interval
    assert found == pytest.approx(tuple(theirs), rel=0.02)
    assert found[0] > bootstrap_ci(skewed, samples=20_000)[1]  # the percentile interval lies too low here


def test_the_paired_interval_covers_and_its_p_value_holds_its_level():
    rng = np.random.default_rng(1)
    inside = rejected = 0
    for experiment in range(1000):
        a = rng.normal(0.3, 0.1, 200)
        found = paired_bootstrap(a, a + rng.normal(0.0, 0.05, 200), samples=1000, seed=experiment)
        inside += found["lower"] <= 0.0 <= found["upper"]
        rejected += found["p_value"] < 0.05
    assert 930 <= inside <= 970 and 30 <= rejected <= 75


@pytest.mark.parametrize("test", [lambda a, b: permutation_test(a, b, permutations=500), paired_t_test, wilcoxon_test])
def test_paired_tests_hold_their_level_and_find_what_is_there(test):
    rng = np.random.default_rng(2)
    null = found = 0
    for _ in range(400):
        a = rng.normal(0.3, 0.1, 40)
        null += test(a, a + rng.normal(0.0, 0.05, 40)) < 0.05
        found += test(a, a + rng.normal(0.04, 0.05, 40)) < 0.05
    assert 6 <= null <= 36 and found > 380


def test_they_agree_with_scipy():
    rng = np.random.default_rng(3)
    a = rng.normal(0.3, 0.1, 60)
    b = a + rng.normal(0.02, 0.05, 60)
    assert paired_t_test(a, b) == pytest.approx(stats.ttest_rel(a, b).pvalue)
    assert wilcoxon_test(a, b) == pytest.approx(stats.wilcoxon(b - a).pvalue, rel=0.2)
    assert permutation_test(a, b) == pytest.approx(stats.ttest_rel(a, b).pvalue, abs=0.01)
    assert mcnemar_exact(3, 12) == pytest.approx(stats.binomtest(3, 15).pvalue)
    low, high = stats.binomtest(17, 40).proportion_ci(method="wilson")
    assert wilson_interval(17, 40) == pytest.approx((17 / 40, low, high))


def test_effect_sizes_are_those_of_their_closed_forms():
    rng = np.random.default_rng(6)
    a, b = rng.normal(0.3, 0.1, 40), rng.normal(0.35, 0.1, 40)
    difference = b - a
    assert cohens_dz(a, b) == pytest.approx(stats.ttest_rel(b, a).statistic / 40**0.5)
    less = stats.wilcoxon(difference, alternative="greater").statistic  # sum of the positive ranks
    assert rank_biserial(a, b) == pytest.approx(2 * less / (40 * 41 / 2) - 1)
    assert cliffs_delta(a, b) == pytest.approx(2 * stats.mannwhitneyu(b, a).statistic / 1600 - 1)
    assert (cohens_dz(a, a), rank_biserial(a, a), cliffs_delta(a, a)) == (0.0, 0.0, 0.0)


def test_mcnemar_holds_its_level():
    rng = np.random.default_rng(7)
    rejected = 0
    for _ in range(1000):
        drawn = rng.choice(4, size=200, p=[0.4, 0.1, 0.1, 0.4])
        rejected += mcnemar(drawn < 2, (drawn == 0) | (drawn == 2))["p_value"] < 0.05
    assert 15 <= rejected <= 65  # exact, so on the safe side


def test_mcnemar_counts_the_discordant_pairs():
    a, b = [1, 1, 1, 0, 0, 1], [1, 0, 0, 0, 1, 0]
    assert mcnemar(a, b)["p_value"] == pytest.approx(stats.binomtest(1, 4).pvalue)
    assert mcnemar([0, 1], [0, 1])["p_value"] == 1.0


def test_the_interval_of_a_difference_of_paired_rates_covers():
    rng = np.random.default_rng(4)
    for joint in ([0.5, 0.2, 0.1, 0.2], [0.05, 0.02, 0.01, 0.92]):  # both, only a, only b, neither
        inside = 0
        for _ in range(1000):
            drawn = rng.choice(4, size=80, p=joint)
            found = mcnemar(drawn < 2, (drawn == 0) | (drawn == 2))
            inside += found["lower"] <= joint[2] - joint[1] <= found["upper"]
        assert 930 <= inside <= 995  # on the safe side where successes are rare
    assert (mcnemar([], [])["lower"], mcnemar([], [])["upper"]) == pytest.approx((-0.98, 0.98), abs=0.01)


def test_holm_steps_down():
    assert holm({"a": 0.01, "b": 0.04, "c": 0.03}) == pytest.approx({"a": 0.03, "b": 0.06, "c": 0.06})


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
    assert result["difference"] == 0 and result["p_value"] == 1.0 and result["ties"] == 50
    assert all(np.isfinite(value) for value in result.values() if isinstance(value, float))
