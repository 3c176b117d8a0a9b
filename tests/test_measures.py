"""Drops and thresholds against exact arithmetic: a drop that equals the threshold counts, one below it never."""

from fractions import Fraction

import numpy as np
import pytest

from utils.analysis.measures import improved_rate, reaches_threshold, relative_drop, relative_gain, success_rate

THRESHOLDS = ("0.05", "0.10", "0.15", "0.20", "0.25", "0.30", "0.333", "0.50")


def f_measure(common: int, words: int, reference: int) -> float:
    """ROUGE's F as rouge_score computes it, in floating point."""
    precision, recall = common / words, common / reference
    return 2 * precision * recall / (precision + recall) if common else 0.0


@pytest.mark.parametrize("threshold", THRESHOLDS)
def test_every_pair_of_word_counts_up_to_100_is_judged_as_by_fractions(threshold):
    exact, at_threshold, rounded_below = Fraction(threshold), 0, 0
    for total in range(1, 101):  # words of the clean summary that the reference has too
        for kept in range(101):  # those of the attacked one
            drop = 1 - Fraction(kept, total)
            # Both summaries as long as the reference: F = common / 100. And as shares of a perfect score.
            for clean, attacked in ((f_measure(total, 100, 100), f_measure(kept, 100, 100)), (1.0, kept / total)):
                found = relative_drop(clean, attacked)
                assert reaches_threshold(found, float(threshold)) == (drop >= exact), (kept, total)
                at_threshold += drop == exact
                rounded_below += drop == exact and found < float(threshold)
    if threshold == "0.15":
        assert at_threshold == 10 and rounded_below > 0  # 17 of 20 up to 85 of 100: the case is there, and bites


def test_summaries_of_unequal_lengths_too():
    rng = np.random.default_rng(0)
    for _ in range(20_000):
        reference, before, after = rng.integers(1, 101, 3).tolist()
        common = int(rng.integers(1, min(reference, before) + 1)), int(rng.integers(0, min(reference, after) + 1))
        exact = 1 - Fraction(2 * common[1], reference + after) / Fraction(2 * common[0], reference + before)
        drop = relative_drop(f_measure(common[0], before, reference), f_measure(common[1], after, reference))
        for threshold in THRESHOLDS:
            assert reaches_threshold(drop, float(threshold)) == (exact >= Fraction(threshold))


def test_arrays_are_judged_as_their_elements_are():
    drops = np.array([relative_drop(20 / 100, kept / 100) for kept in range(21)])  # 1.0 down to 0.0 by 0.05
    assert reaches_threshold(drops, 0.15).tolist() == [kept <= 17 for kept in range(21)]
    assert success_rate(drops, 0.15) == 18 / 21 and improved_rate(drops, 0.15) == 0.0
    assert improved_rate(np.array([relative_drop(0.20, 0.23)]), 0.15) == 1.0  # rose by exactly 15 %
    assert success_rate(np.zeros(0), 0.15) is None
    assert not reaches_threshold(float("nan"), 0.0)


def test_a_clean_score_of_zero_has_nothing_to_lose():
    assert relative_drop(0.0, 0.0) == relative_drop(0.0, 0.5) == 0.0
    assert relative_drop(0.5, 0.75) == -0.5
    assert relative_gain(2.0, 2.5) == 0.25 and relative_gain(0.0, 1.0) is None
