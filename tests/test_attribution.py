"""Attribution: hand-worked shares, planted causes, one Holm family."""

import numpy as np
import pytest

from utils.analysis.attribution import TESTS, AttributionResults, attribution, reproduced
from utils.analysis.quality_curve import matched
from utils.analysis.records import HotFlipRecord
from utils.analysis.statistics import holm
from utils.core.codec import from_json, to_json
from utils.reports.cause_sentences import attribution_sentence

CI = {"samples": 400, "seed": 0, "confidence": 0.95}
NO_CURVE = matched([], candidates=8, missing=[], **CI)


def record(model, n, drop):
    """The worst case of one example: a relative drop, and no more."""
    return HotFlipRecord(
        id=f"e{n:03}", model=model, method="gradient", skipped=None, search=None, attackable_positions=9,
        short_article=False, clean_ids=[1], labels=[1], reference="r", clean_prediction="p", clean_rougeL=0.8,
        relative_drop=float(drop), loss_increase=0.1, success=drop >= 0.15,
    )  # fmt: skip


def world(rates, n=200, seed=0):
    """Worst-case records: of each model the share `rates[model]` of the examples is broken, the most fragile first."""
    fragility = np.random.default_rng(seed).permutation(n) / n
    return {
        model: [record(model, i, 0.5 if fragility[i] < rate else 0.0) for i in range(n)]
        for model, rate in rates.items()
    }


def rouge(rates, n=200):
    return {model: {f"e{i:03}": 0.5 + 0.001 * (i % 7) for i in range(n)} for model in rates}


def test_a_worked_example():
    """baseline 80 %, monotonic 40 %, half 60 %, all 40 %, none 80 %: half, all and nothing of it are reproduced."""
    rates = {"baseline": 0.8, "monotonic": 0.4, "sign_frozen": 0.6, "no_ffn": 0.4, "wi_only": 0.8}
    found = attribution(world(rates), rouge(rates), threshold=0.15, ci=CI)
    shares = {arm: one.success_reproduced for arm, one in found.items()}
    assert {arm: round(one.share, 6) for arm, one in shares.items()} == {"sign_frozen": 0.5, "no_ffn": 1, "wi_only": 0}
    assert shares["sign_frozen"].lower < 0.5 < shares["sign_frozen"].upper < 1 and shares["no_ffn"].lower == 1
    one = found["sign_frozen"]
    assert one.success_vs_baseline.difference == pytest.approx(-0.2) and one.success_vs_baseline.rate_b == 0.6
    assert one.success_vs_monotonic.difference == pytest.approx(0.2)
    raw = {(arm, name): getattr(a, name).p_value for arm, a in found.items() for name in TESTS}
    for (arm, name), adjusted in holm(raw).items():  # three arms, four tests each: one family of twelve
        test = getattr(found[arm], name)
        assert test.family_size == 12 and test.p_value_holm == pytest.approx(adjusted)
    said = attribution_sentence(found, NO_CURVE, "success", shown=True)
    assert "no_ffn reproduces 100 % [100, 100]" in said and "sign_frozen reproduces 50 % [" in said
    assert to_json(from_json(AttributionResults, to_json(AttributionResults(arms=found)))) == to_json(found)


def test_a_share_is_told_only_of_a_difference_that_the_verdict_shows_too():
    """5 of 200 against none: McNemar's exact p is 2 / 2^5 = 0.0625, though a percentile interval leaves 0 out."""
    rates = {"baseline": 0.025, "monotonic": 0.0, "sign_frozen": 0.0}
    found = attribution(world(rates), rouge(rates), threshold=0.15, ci=CI)["sign_frozen"]
    assert found.success_vs_baseline.p_value == 0.0625 and found.success_reproduced is None
    rates["baseline"] = 0.03  # 6 of 200: p = 0.03125
    assert attribution(world(rates), rouge(rates), threshold=0.15, ci=CI)["sign_frozen"].success_reproduced is not None


def test_nothing_is_attributed_where_no_difference_is_shown():
    rates = {"baseline": 0.8, "monotonic": 0.8, "sign_frozen": 0.6}
    found = attribution(world(rates), rouge(rates), threshold=0.15, ci=CI)
    assert found["sign_frozen"].success_reproduced is None and found["sign_frozen"].drop_reproduced is None
    assert "No difference between monotonic and baseline in worst-case success is shown" in attribution_sentence(
        found, NO_CURVE, "success", shown=False
    )
    assert attribution_sentence({}, NO_CURVE, "success", shown=False) == ""


def test_examples_that_one_model_lacks_are_left_out():
    rates = {"baseline": 0.5, "monotonic": 0.25, "no_ffn": 0.5}
    records = world(rates)
    records["no_ffn"] = records["no_ffn"][:120]
    assert attribution(records, rouge(rates), threshold=0.15, ci=CI)["no_ffn"].success_vs_baseline.n == 120


def test_the_interval_of_the_share_covers_it():
    """200 worlds of 300 examples, true rates .8, .4 and .6: the 95 % interval has the true share of one half in it."""
    covered = 0
    for n in range(200):
        rng = np.random.default_rng(n)
        draws = rng.uniform(size=300) * 0.5  # what makes an example fragile on every model
        values = [(draws + rng.uniform(size=300) * 0.5 < rate).astype(float) for rate in (0.7, 0.4, 0.55)]

        share = (_rate(0.55) - _rate(0.7)) / (_rate(0.4) - _rate(0.7))
        one = reproduced(*values, ci=CI)
        covered += one is not None and one.lower <= share <= one.upper
    assert 180 <= covered <= 199


def _rate(t):
    """P(u + v < t) of u, v uniform on [0, 1/2]: the distribution function of a triangle."""
    return 2 * t * t if t <= 0.5 else 1 - 2 * (1 - t) ** 2
