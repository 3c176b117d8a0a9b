"""Attack success at equal quality: curves worked by hand, simulated models whose truth is known, snapshots kept."""

import numpy as np
import pytest

from utils.analysis.quality_curve import Matched, QualityRow, matched
from utils.attacks.quality import kept_snapshots
from utils.core.codec import from_json, to_json
from utils.core.paths import Paths
from utils.core.results import write_result
from utils.reports.cause_sentences import matched_sentence
from utils.training.snapshots import snapshot_steps, snapshots

SMALL = {"candidates": 8, "missing": [], "samples": 300, "seed": 0, "confidence": 0.95}


def quality_row(arm, step, name, clean, success):
    """A broken summary has lost half of its words, and 2 nats; null throughout where it could not be attacked."""
    lost = None if success is None else float(success)
    return QualityRow(arm=arm, step=step, epoch=step / 10, id=name, clean_rougeL=clean, success=success,
                      relative_drop=lost and lost / 2, loss_increase=lost and 2 * lost)  # fmt: skip


def rows(arm, curve, n=40):
    """Rows of `n` examples: at each (clean ROUGE-L, success rate) of `curve` the first rate * n are broken."""
    return [
        quality_row(arm, step, f"e{i:03}", clean, i < round(rate * n))
        for step, (clean, rate) in enumerate(curve, 1)
        for i in range(n)
    ]


def test_a_worked_example():
    """Baseline .4 -> .8 with success .5 -> .9: at monotonic's best, .7, it is .5 + .4 * 3/4 = .8; monotonic .6."""
    found = matched(rows("baseline", [(0.4, 0.5), (0.8, 0.9)]) + rows("monotonic", [(0.3, 0.1), (0.7, 0.6)]), **SMALL)
    one = found.against_baseline["monotonic"]
    assert (one.quality, one.baseline, one.arm, one.difference) == pytest.approx((0.7, 0.8, 0.6, -0.2))
    assert one.lower < -0.2 < one.upper < 0
    assert one.left_of_final.share == pytest.approx(2 / 3)  # the last snapshots: .6 against .9
    # What is lost is half of the words of what is broken, and 2 nats: the same share is left, in its own unit.
    drop, rise = (found.differences(measure)["monotonic"] for measure in ("relative_drop", "loss_increase"))
    assert (drop.baseline, drop.arm, drop.lower) == pytest.approx((0.4, 0.3, one.lower / 2))
    assert (rise.baseline, rise.arm, rise.upper) == pytest.approx((1.6, 1.2, one.upper * 2))
    assert drop.left_of_final.share == rise.left_of_final.share == pytest.approx(2 / 3)
    assert "mean relative ROUGE-L drop 30.0 % on monotonic, 40.0 % on baseline, -10.0 [" in matched_sentence(
        found, "relative_drop", 0.95
    )
    assert "mean loss rise +1.200 nats on monotonic" in matched_sentence(found, "loss_increase", 0.95)
    assert [point.success_rate for point in found.curves["baseline"]] == pytest.approx([0.5, 0.9])
    assert from_json(Matched, to_json(found)) == found
    said = matched_sentence(found, "success", 0.95)
    assert "ROUGE-L 0.700" in said and "harder" in said and "60.0 % on monotonic, 80.0 % on baseline" in said


def test_a_worse_model_that_only_looks_robust_shows_no_difference_at_equal_quality():
    line = [(0.2, 0.1), (0.5, 0.4), (0.8, 0.9)]
    found = matched(rows("baseline", line) + rows("monotonic", line[:2]), **SMALL)
    one = found.against_baseline["monotonic"]
    assert one.quality == 0.5 and one.difference == pytest.approx(0.0) and one.lower <= 0 <= one.upper
    assert one.left_of_final.share == 0 and one.left_of_final.upper < 0.5
    assert "no difference is shown" in matched_sentence(found, "success", 0.95)


def test_curves_without_a_common_quality_are_not_compared():
    found = matched(rows("baseline", [(0.6, 0.5), (0.8, 0.9)]) + rows("monotonic", [(0.1, 0.0), (0.3, 0.1)]), **SMALL)
    assert found.against_baseline == {"monotonic": None}
    assert "no clean ROUGE-L is reached by both" in matched_sentence(found, "success", 0.95)


def test_what_is_not_attackable_counts_for_quality_alone():
    some = [quality_row("baseline", 1, str(i), 0.0 if i < 5 else 0.6, None if i < 5 else i < 8) for i in range(15)]
    (point,) = matched(some, **SMALL).curves["baseline"]
    assert point.num_attackable == 10 and point.clean_rougeL == pytest.approx(0.4) and point.success_rate == 0.3


def test_the_interval_covers_the_true_difference():
    """80 simulated experiments: examples with a robustness of their own, success at equal quality differs by 0.15."""
    covered = 0
    for world in range(80):
        rng = np.random.default_rng(world)
        hardness = rng.uniform(0, 1, 150)
        made = []
        for arm, shift in (("baseline", 0.0), ("monotonic", -0.15)):
            for step, quality in enumerate((0.3, 0.6, 0.9), 1):
                broken = hardness < quality * 0.8 + shift  # true rate at quality q: 0.8 q + shift
                made += [quality_row(arm, step, str(i), quality, bool(b)) for i, b in enumerate(broken)]
        one = matched(made, **SMALL | {"samples": 200, "seed": world}).against_baseline["monotonic"]
        covered += one.lower <= -0.15 <= one.upper
    assert covered >= 70  # 95 % of 80 is 76; fewer than 70 would be a level below 0.9


def test_switched_off_and_gone_snapshots_are_said():
    off = matched([], **SMALL)
    assert off.num_examples == 0 and matched_sentence(off, "success", 0.95) == ""
    line = [(0.4, 0.5), (0.8, 0.9)]
    gone = matched(rows("baseline", line) + rows("monotonic", line), **SMALL | {"missing": ["monotonic after step 9"]})
    assert "Without 1 snapshots that are gone: monotonic after step 9" in matched_sentence(gone, "success", 0.95)


def test_snapshots_are_log_spaced_in_the_first_epoch_and_at_every_epoch(tmp_path):
    assert snapshot_steps(160) == [10, 20, 40, 80]
    assert snapshot_steps(3) == [1, 2] and snapshot_steps(1) == []
    assert [step for step, _ in snapshots(tmp_path, 160, 2)] == [10, 20, 40, 80, 160, 320]


def test_a_snapshot_that_is_gone_is_one_line_and_the_others_are_attacked(tmp_path, caplog):
    paths = Paths(tmp_path, tmp_path)
    history = {"total_steps": 320, "epochs": [{}, {}]}
    for arm in ("baseline", "no_ffn"):
        write_result(paths.results(1) / f"{arm}_training_history.json", history, {})
        for step, directory in snapshots(paths.training(1, arm), 160, 2):
            if (arm, step) != ("no_ffn", 40):
                directory.mkdir(parents=True)
                (directory / "config.json").write_text("{}")
    cells, missing = kept_snapshots(paths, 1, ["standard", "baseline", "no_ffn"])
    assert [(arm, step, epoch) for arm, step, epoch, _ in cells if arm == "no_ffn"] == [
        ("no_ffn", 10, 0.0625), ("no_ffn", 20, 0.125), ("no_ffn", 80, 0.5), ("no_ffn", 160, 1.0), ("no_ffn", 320, 2.0)
    ]  # fmt: skip
    (line,) = missing
    assert line.startswith("no_ffn after step 40 (") and len(caplog.records) == 1 and line in caplog.text
