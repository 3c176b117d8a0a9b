"""Which way the answer over seeds points: the hand-worked world of test_direction.py, trained twice.

Two seeds. Differences of worst-case success, monotonic minus baseline, [seeds, examples]; in the second seed the
attack leaves baseline's second example alone (and its loss rises by 0.4 instead of 1):

    seed 1    -1  -1  -1     mean -1        Mean -5/6. MS_seed = 3 * 2 * (1/6)^2 = 1/6, MS_example = 1/6,
    seed 2    -1   0  -1     mean -2/3      MS_rest = 1/6: variance (1/6) / 6, t = -5 on (1/6)^2 / (1/6)^2 = 1 degree
              -1 -1/2 -1                    of freedom, p = 0.126; 12.7 / 6 on either side, cut at -1 and 1.

ROUGE-L: baseline's third summary is "a b c d" in the second seed (1.00, not 0.75):

    seed 1    -0.25  -0.50  -1/12    mean -10/36      Mean -23/72 = -0.3194. MS_seed = 6 * (1/24)^2 = 0.0104,
    seed 2    -0.25  -0.50  -1/3     mean -13/36      MS_example = 0.0498, MS_rest = 0.0104: variance 0.0498 / 6,
                                                      standard error 0.0911, t = -3.51 on 1.92 degrees of freedom:
                                                      0.0498^2 / (0.0104 * 0.0498 + 0.0394^2 / 2).

Triggers: +0.4, +0.3, +0.05 in both seeds: mean 0.25, the t-test over three examples, t = 2.40 on 2.
"""

from __future__ import annotations

import dataclasses
import html
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from tests.test_direction import (
    CI,
    MODELS,
    REFERENCE,
    THRESHOLD,
    findings_of,
    hotflip_record,
    hotflip_sections,
    predicted,
    trigger_sections,
    triggers_of,
)
from utils.analysis.attribution import ArmAttribution
from utils.analysis.evaluation_summary import evaluation_results
from utils.analysis.hotflip_summary import hotflip_results
from utils.analysis.multi_seed import SeedResults, SeedRun, aggregate
from utils.analysis.records import (
    HotFlipRecord,
    Prediction,
    given,
    rows_of,
)
from utils.analysis.sections import SectionKey
from utils.analysis.seed_differences import crossed_test
from utils.core.codec import to_json
from utils.core.files import write_jsonl
from utils.evaluation.predictions import score_summaries
from utils.reports import multi_seed
from utils.reports.multi_seed_figures import draw_all
from utils.reports.verdict import final_results, verdict_over_seeds


@pytest.fixture(scope="module")
def predictions() -> list[Prediction]:
    return predicted()


def seed_of(
    number: int, directory: Path, rows: list[Prediction], sections: dict[SectionKey, list[HotFlipRecord]]
) -> SeedRun:
    """A seed in permanent storage: its files, and the final results made from them."""
    words = trigger_sections()
    write_jsonl(directory / "predictions.jsonl", map(to_json, rows))
    write_jsonl(directory / "hotflip_records.jsonl", rows_of(sections))
    write_jsonl(directory / "uat_records.jsonl", rows_of(words))
    hotflip = hotflip_results(sections, MODELS, threshold=THRESHOLD, **CI)
    final = final_results(findings_of(evaluation_results(rows, ["cnn_dm"], **CI), hotflip, triggers_of(words)))
    metadata = {"run_id": "r", "config_fingerprint": "f", "checkpoints": {}, "code": {"commit": "c", "dirty": False}}
    return SeedRun(number, directory, final, metadata)


def two_seeds(tmp_path: Path, predictions: list[Prediction], copies: int = 1, swapped: bool = False) -> SeedResults:
    weaker = hotflip_sections(copies)
    if copies == 1:
        attack = weaker[SectionKey("attack", "baseline")]
        attack[1] = hotflip_record(
            "baseline", 1, attacked_rougeL=0.5, relative_drop=0.0, success=False, loss_increase=0.4
        )
    better = [
        *[row for row in predictions if (row.model, row.id) != ("baseline", "3")],
        *score_summaries("cnn_dm", "baseline", ["3"], ["a b c d"], [REFERENCE], processes=1),
    ]
    better.sort(key=lambda row: (MODELS.index(row.model), row.id))
    first, second = hotflip_sections(copies, swapped), hotflip_sections(copies, swapped) if swapped else weaker
    return aggregate([seed_of(1, tmp_path / "1", predictions, first), seed_of(2, tmp_path / "2", better, second)])


def test_differences_over_seeds(tmp_path: Path, predictions: list[Prediction]) -> None:
    results = two_seeds(tmp_path, predictions)
    tests = results.monotonic_minus_baseline
    success = tests["worst-case success"]
    assert success.differences == pytest.approx([-1, -2 / 3]) and success.difference == pytest.approx(-5 / 6)
    assert (success.mean_a, success.mean_b) == (pytest.approx(5 / 6), 0.0)
    assert success.p_value == pytest.approx(2 * stats.t.cdf(-5, 1)) and (success.lower, success.upper) == (-1.0, 1.0)
    rouge = tests["cnn_dm rougeL"]
    assert rouge.differences == pytest.approx([-10 / 36, -13 / 36]) and rouge.difference == pytest.approx(-23 / 72)
    law = stats.t(1.9161, loc=-23 / 72, scale=0.0910755)
    assert rouge.p_value == pytest.approx(2 * law.sf(0), rel=1e-3)
    assert rouge.lower == pytest.approx(max(-1, law.ppf(0.025)), rel=1e-3) and rouge.upper == pytest.approx(
        law.ppf(0.975), rel=1e-3
    )
    # A loss of 0.01 or more: the differences and 0.01 have the same spread, and their mean is below 0.
    assert results.non_inferiority_p == pytest.approx(law.cdf(-0.01), rel=1e-3)
    # Worst-case losses rise by 2, 1, 0.6 and 2, 0.4, 0.6 on baseline, by 0.1, 0.3, 0.2 on monotonic.
    assert tests["worst-case loss rise"].differences == pytest.approx([-1.0, -0.8])
    assert tests["HotFlip loss rise"].difference == pytest.approx(-0.9)
    assert tests["worst-case ROUGE-L drop"].differences == pytest.approx([-0.35, -0.3])
    trigger = tests["worst trigger ROUGE-L change"]
    assert trigger.difference == pytest.approx(0.25)
    assert trigger.p_value == pytest.approx(stats.ttest_1samp([0.4, 0.3, 0.05], 0).pvalue)
    assert {test.agree for test in tests.values()} == {2} and {test.num_common for test in tests.values()} == {3}


def seed_with_arms(
    number: int,
    directory: Path,
    predictions: list[Prediction],
    sections: dict[SectionKey, list[HotFlipRecord]],
    arms: list[str],
) -> SeedRun:
    """A seed whose per-example files have control arms, with baseline's summaries; its other figures of them are not
    read over seeds."""
    rows = [dataclasses.replace(row, model=arm) for arm in arms for row in predictions if row.model == "baseline"]
    run = seed_of(number, directory, predictions, {key: v for key, v in sections.items() if key.model not in arms})
    write_jsonl(run.directory / "hotflip_records.jsonl", rows_of(sections))
    write_jsonl(run.directory / "predictions.jsonl", map(to_json, [*predictions, *rows]))
    results = run.results
    worst = given(results.hotflip.comparisons.baseline_vs_monotonic_worst_case)
    quality = results.evaluation.comparisons["cnn_dm"]["rougeL"].against_standard["baseline"]
    one_seed = ArmAttribution(
        success_vs_baseline=worst.success, success_vs_monotonic=worst.success, rougeL_vs_baseline=quality,
        rougeL_vs_monotonic=quality, success_reproduced=None, drop_reproduced=None, loss_reproduced=None,
    )  # fmt: skip
    hotflip = dataclasses.replace(
        results.hotflip, models=results.hotflip.models | dict.fromkeys(arms, results.hotflip.models["baseline"])
    )
    cells = results.evaluation.datasets
    cells = {key: models | dict.fromkeys(arms, models["baseline"]) for key, models in cells.items()}
    evaluation = dataclasses.replace(results.evaluation, datasets=cells)
    attribution = dict.fromkeys(arms, one_seed)
    results = dataclasses.replace(results, attribution=attribution, hotflip=hotflip, evaluation=evaluation)
    return dataclasses.replace(run, results=results)


def test_control_arms_over_seeds(tmp_path: Path, predictions: list[Prediction]) -> None:
    """sign_frozen breaks two and one of three texts where baseline breaks all; no_ffn is in the first seed alone.

    Arm minus baseline is [[0, 0, -1], [0, -1, -1]]: mean -1/2, MS_seed 1/6, MS_example 1/2, MS_rest 1/6, so the error
    is sqrt((1/6 + 1/3) / 6) with (1/2)^2 / ((1/12) + (1/18)) = 1.8 degrees of freedom. Monotonic is at -1 everywhere.
    """
    runs = []
    for number, broken in ((1, (0, 1)), (2, (0,))):
        sections, arms = hotflip_sections(1), ["sign_frozen", "no_ffn"][: 3 - number]
        for arm in arms:
            still = {"attacked_rougeL": 0.6, "relative_drop": 0.0, "success": False, "loss_increase": 0.0}
            sections[SectionKey("attack", arm)] = [
                hotflip_record("baseline", n, model=arm, **({} if n in broken else still)) for n in range(3)
            ]
        runs.append(seed_with_arms(number, tmp_path / str(number), predictions, sections, arms))
    found = aggregate(runs)
    assert list(found.attribution) == ["sign_frozen"]
    one = found.attribution["sign_frozen"]
    change, law = one.success_vs_baseline, stats.t(1.8, loc=-0.5, scale=12**-0.5)
    assert change.differences == pytest.approx([-1 / 3, -2 / 3]) and (change.mean_a, change.mean_b) == (1.0, 0.5)
    assert change.difference == pytest.approx(-0.5) and change.p_value == pytest.approx(2 * law.sf(0))
    assert one.success_vs_monotonic.difference == pytest.approx(0.5)  # the arm minus monotonic, which breaks nothing
    assert one.rougeL_vs_baseline.difference == 0 and one.rougeL_vs_monotonic.mean_b > one.rougeL_vs_monotonic.mean_a
    assert change.family_size == 4 and change.p_value_holm >= change.p_value
    assert one.reproduced is None  # three signs that agree show no difference to reproduce: p = 2^-2
    assert found.arms_left_out == ["no_ffn was trained in seed 1 alone: no figure over seeds has it"]
    made = multi_seed.tables(to_json(multi_seed.combined(runs, 0.95, [])))
    (table,) = [one for one in made if one.name == "attribution"]
    # By scipy: 2 * t(1.8).sf(sqrt(12) / 2) = 0.239, and the quantile over sqrt(12) is 1.384.
    assert table.rows[0] == (
        "sign_frozen - baseline: success, points",
        "-50.0 [-100.0, +88.4]",
        "0.239",
        "0.717",
        "3",
        "-",
    )
    assert table.rows[1][:2] == ("sign_frozen - monotonic: success, points", "+50.0 [-88.4, +100.0]")
    sentence = verdict_over_seeds(found).attribution
    assert "sign_frozen -50.0 points [" in sentence and "no_ffn was trained in seed 1 alone" in sentence


def test_shares_over_seeds_are_of_the_measure_that_the_answer_reads(
    tmp_path: Path, predictions: list[Prediction]
) -> None:
    """Every text is broken on every model: success is at its ceiling, the mean drop is read, and so are the shares.

    The interval beside the one by bisection: every share s on a grid for which part - s * whole is not shown to differ
    from 0 by a two-way analysis of variance that is written out here.
    """
    rng, arms, runs, drops = np.random.default_rng(3), ["sign_frozen", "no_ffn"], [], []
    text = rng.uniform(-0.1, 0.1, 12)
    for number in (1, 2, 3):
        means = {"baseline": 0.6, "monotonic": 0.4, "sign_frozen": 0.55, "no_ffn": 0.42}
        drop = {model: mean + text + rng.normal(0, 0.03, 12) + rng.normal(0, 0.01) for model, mean in means.items()}
        sections = hotflip_sections(4)
        for model, values in drop.items():
            sections[SectionKey("attack", model)] = [
                hotflip_record("baseline", n, model=model, relative_drop=x, success=True, loss_increase=float(x))
                for n, x in enumerate(values.tolist())
            ]
        runs.append(seed_with_arms(number, tmp_path / str(number), predictions, sections, arms))
        drops.append(drop)
    found = aggregate(runs)
    assert found.measure == "relative_drop" and found.hotflip["baseline"].worst_case_success_rate.mean == 1.0
    values = {model: np.array([drop[model] for drop in drops]) for model in drops[0]}
    whole = values["monotonic"] - values["baseline"]
    for arm, kind in (("sign_frozen", "excluded"), ("no_ffn", "explaining")):
        part, share = values[arm] - values["baseline"], given(found.attribution[arm].reproduced)
        accepted = [s for s in np.arange(-0.5, 2, 0.002) if p_crossed(part - s * whole) >= 0.05]
        assert share.share == pytest.approx(part.mean() / whole.mean())
        assert (share.lower, share.upper) == pytest.approx((min(accepted), max(accepted)), abs=0.0025)
        assert (share.upper < 0.5) if kind == "excluded" else (share.lower > 0.5)
    answer = verdict_over_seeds(found)
    assert "monotonic is harder to attack than baseline by mean relative ROUGE-L drop" in answer.attack
    assert answer.attribution.startswith(
        "Over 3 seeds: of the difference in mean relative ROUGE-L drop between monotonic and baseline sign_frozen rep"
    )
    assert "More than half of it comes without the constraint: no_ffn (" in answer.attribution
    assert "not decided" not in answer.attribution and "asked within each seed only" in answer.attribution
    (table,) = [t for t in multi_seed.tables(to_json(multi_seed.combined(runs, 0.95, []))) if t.name == "attribution"]
    assert table.rows[0][-1].endswith("]") and "difference in mean relative ROUGE-L drop from baseline" in table.note


def p_crossed(values: NDArray[np.float64]) -> float:
    """p-value of mean 0 of values [seeds, examples] by docs/statistics.md: Obuchowski and Rockette's variance,
    (S - 1) / share degrees of freedom for the seeds' part, N - 1 for the examples'."""
    seeds, examples = values.shape
    rows, columns = values.mean(1), values.mean(0)
    rest = values - rows[:, None] - columns + values.mean()
    ms_seed, ms_example = examples * rows.var(ddof=1), seeds * columns.var(ddof=1)
    more = max(ms_example - (rest**2).sum() / ((seeds - 1) * (examples - 1)), 0.0)
    total = ms_seed + more
    freedom = total**2 / (ms_seed * total / (seeds - 1) + more**2 / (examples - 1))
    return float(2 * stats.t.sf(abs(values.mean()) / (total / values.size) ** 0.5, freedom))


def test_the_verdict_over_seeds(tmp_path: Path, predictions: list[Prediction]) -> None:
    answer = verdict_over_seeds(two_seeds(tmp_path, predictions))
    first, line = answer.attack.split(" All measures, monotonic minus baseline: ")
    assert first == (
        "Over 2 seeds monotonic is not shown to be harder or easier to attack than baseline by worst-case success (the "
        "share of summaries that the strongest of all attacks spoils): 0.0 % on monotonic against 83.3 % on baseline, "
        "-83.3 [-100.0, +100.0] points on 3 examples common to all seeds, of this sign in 2 of 2 seeds (p = 0.126)."
    )
    assert line.startswith("worst-case success -83.3 [") and "mean relative ROUGE-L drop -32.5 [" in line
    assert "mean loss rise -0.900 [" in line and "success of HotFlip alone -83.3 [" in line
    assert answer.cost.startswith(
        "Over 2 seeds monotonic's ROUGE-L on CNN/DM is not shown to differ from baseline's: -0.3194 [-0.7282, +0.0893] "
        "(p = 0.07"
    )
    assert (
        "a loss of more than 0.7282 is ruled out" in answer.cost
        and "the margin of 0.01: not shown (one-sided p = 0.9" in answer.cost
    )
    assert answer.cost.endswith("The difference has this sign in 2 of 2 seeds.")
    assert answer.triggers.startswith(
        "Over 2 seeds universal triggers, each model's chosen on held-out text, are not shown to harm one of the "
        "models more than the other: ROUGE-L changes by -0.050 on monotonic and by -0.300 on baseline, a difference of "
        "+0.250 ["
    )
    assert "on 3 examples common to all seeds, of this sign in 2 of 2 seeds (p = 0.138, Holm 0." in answer.triggers
    assert answer.doubt == answer.matched == answer.attribution == ""


def test_over_seeds_the_words_turn_with_the_signs(tmp_path: Path, predictions: list[Prediction]) -> None:
    """Twelve differences of -1 in both seeds: no spread to judge by, twelve signs that agree, p = 2 / 2^12. The
    interval is that of one seed: 12 / 14 -+ 1.96 sqrt(13 - 144 / 14) / 14 = 0.857 -+ 0.231 (Agresti and Min).
    """
    harder = verdict_over_seeds(two_seeds(tmp_path / "a", predictions, copies=4)).attack
    assert "Over 2 seeds monotonic is harder to attack than baseline by worst-case success" in harder
    assert "0.0 % on monotonic against 100.0 % on baseline, -100.0 [-100.0, -62.6] points on 12 examples" in harder
    easier = verdict_over_seeds(two_seeds(tmp_path / "b", predictions, copies=4, swapped=True)).attack
    assert "Over 2 seeds monotonic is easier to attack than baseline by worst-case success" in easier
    assert "100.0 % on monotonic against 8.3 % on baseline, +91.7 [" in easier


def test_what_is_alike_everywhere_is_not_called_certain() -> None:
    """Every attack succeeds on both models in three seeds: the difference is 0, known as well as from one seed's 20
    examples, 1.96 sqrt(1) / 22 = 0.089; and no seed's difference points anywhere.
    """
    alike = {"baseline": dict.fromkeys(map(str, range(20)), 1.0), "monotonic": dict.fromkeys(map(str, range(20)), 1.0)}
    test = crossed_test([alike] * 3, confidence=0.95, bound=1)
    assert (test.difference, test.p_value, test.agree) == (0.0, 1.0, 0)
    assert test.lower == pytest.approx(-0.0891, abs=1e-4) and test.upper == pytest.approx(0.0891, abs=1e-4)


@pytest.mark.slow
def test_tables_text_and_page_over_seeds(tmp_path: Path, predictions: list[Prediction]) -> None:
    over = two_seeds(tmp_path, predictions)
    answer = verdict_over_seeds(over)
    results = to_json(over) | {"verdict": to_json(answer), "mixed": []}
    metadata = {"timestamp": "now", "host": "here", "versions": {}, "profile": "full", "full_test_sets": True}
    rows = {row[0]: row for row in multi_seed.tables(results)[0].rows}
    assert rows["worst-case success"][1:] == ("-0.8333 [-1.0000, +1.0000]", "0.126", "-", "2 of 2", "3")
    assert rows["CNN/DM ROUGE-L"][1].startswith("-0.3194 [") and rows["lead trigger"][1].startswith("+0.25")
    quality = {row[0]: row for row in multi_seed.tables(results)[1].rows}
    # Means over seeds: baseline 11/12 and 1, monotonic 23/36 twice, standard 1/12: one model, no spread.
    assert quality["CNN/DM ROUGE-L baseline"][1] == "0.9583" and quality["CNN/DM ROUGE-L monotonic"][1] == "0.6389"
    assert quality["CNN/DM ROUGE-L standard"][1:4] == ("0.0833", "-", "-")
    attack = {row[0]: row for row in multi_seed.tables(results)[2].rows}
    assert (
        attack["baseline success, worst case"][1] == "0.8333" and attack["monotonic success, worst case"][1] == "0.0000"
    )
    text = " ".join(multi_seed.text(results, metadata).split())
    alternative = draw_all(results, tmp_path / "figures")
    page = html.unescape(multi_seed.page(results, metadata, tmp_path / "figures", alternative))
    for sentence in (answer.attack, answer.cost, answer.triggers):
        assert sentence in text and sentence in page
    assert "-0.8333 [-1.0000, +1.0000]" in page and "± 0" not in page
    assert all(len(line) <= 80 for line in multi_seed.text(results, metadata).splitlines())
    for link in ("multi_seed_summary.txt", "multi_seed_results.json", "tables/comparison.tex", "figures/rouge.pdf"):
        assert f'href="{link}"' in page
    assert "python scripts/verify_results.py DIR" in page
    assert alternative["trade_off"].count("baseline: ROUGE-L 0.958, HotFlip success 83 %") == 1
