"""Which way the answer points: three examples and two models worked out by hand, from summaries to the sentences.

Everything below is small enough for a pencil. Elsewhere results are compared with results; here they are compared with
what a person computes, so that swapped models, signs or words cannot pass.

The references are four words of one sentence each ("a b c d"). ROUGE F of a summary is 2 * common / (words + 4), for
ROUGE-L with the common words in order.

Evaluation. Summaries, and their ROUGE-L against "a b c d":

    example   baseline              monotonic
    1         a b c d      1.00     a b c x      2*3/8 = 0.75
    2         a b c d      1.00     a b x y      2*2/8 = 0.50
    3         a b c x      0.75     a b          2*2/6 = 2/3
    mean               11/12                  23/36
    monotonic minus baseline: -0.25, -0.50, -1/12, mean -5/18 = -0.2778: the constraint costs quality
    words of all summaries: baseline 12, monotonic 10, references 12: brevity 1 and 10/12
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from scipy import stats

from utils.analysis.claims import Outcome
from utils.analysis.evaluation_summary import evaluation_results
from utils.analysis.final import Findings
from utils.analysis.hotflip_summary import hotflip_results
from utils.analysis.quality_curve import matched
from utils.analysis.records import (
    HotFlipRecord,
    Prediction,
    RandomTrigger,
    TriggerFound,
    TriggerRecord,
    TriggerSearch,
)
from utils.analysis.results import EvaluationResults, HotFlipResults, TriggerResults
from utils.analysis.sections import SectionKey
from utils.analysis.trigger_summary import trigger_results
from utils.evaluation.predictions import score_summaries
from utils.reports import result_tables, verdict
from utils.reports.verdict import compared_triggers, cost_sentence, final_results

LEARNED = TriggerFound(trigger_ids=[7], trigger_text="of", dev_gain=1.0, dev_rouge_change=-0.1)
CHOSEN: dict[str, Any] = {"dev_rouge_change": -0.1, "chosen_from": "search", "by_loss": LEARNED}
RANDOM_TRIGGER = RandomTrigger(
    trigger_ids=[8], trigger_text="r", dev_gain=0, dev_rouge_change=0.0, dev_gain_mean=0, draws=1
)

pytestmark = pytest.mark.slow

MODELS = ("standard", "baseline", "monotonic")
CI = {"samples": 200, "seed": 0, "confidence": 0.95}
REFERENCE = "a b c d"
SUMMARIES = {
    "standard": ["x y z w", "x y z w", "a y z w"],
    "baseline": ["a b c d", "a b c d", "a b c x"],
    "monotonic": ["a b c x", "a b x y", "a b"],
}
THRESHOLD = 0.15


def predicted() -> list[Prediction]:
    ids = ["1", "2", "3"]
    return [
        row
        for model in MODELS
        for row in score_summaries("cnn_dm", model, ids, SUMMARIES[model], [REFERENCE] * 3, processes=1)
    ]


@pytest.fixture(scope="module")
def predictions() -> list[Prediction]:
    return predicted()


@pytest.fixture(scope="module")
def evaluation(predictions: list[Prediction]) -> EvaluationResults:
    return evaluation_results(predictions, ["cnn_dm"], **CI)


def test_quality_and_its_differences(evaluation: EvaluationResults) -> None:
    cells = evaluation.datasets["cnn_dm"]
    assert cells["baseline"].rougeL.mean == pytest.approx(11 / 12)
    assert cells["monotonic"].rougeL.mean == pytest.approx(23 / 36)
    assert cells["standard"].rougeL.mean == pytest.approx(1 / 12)  # one word of four, once in three examples
    assert cells["baseline"].brevity == 1.0 and cells["monotonic"].brevity == pytest.approx(10 / 12)
    assert cells["monotonic"].length.mean == pytest.approx(10 / 3) and cells["monotonic"].length.min == 2
    test = evaluation.comparisons["cnn_dm"]["rougeL"]
    assert (test.mean_a, test.mean_b) == (pytest.approx(11 / 12), pytest.approx(23 / 36))
    assert test.difference == pytest.approx(-5 / 18) and test.lower <= test.difference <= test.upper < 0
    assert test.cohens_dz == pytest.approx((-5 / 18) / np.std([-0.25, -0.5, -1 / 12], ddof=1))
    # All three differences are negative: of the 8 ways to sign them 2 are as extreme.
    assert test.p_value == pytest.approx(2 / 8)
    assert test.against_standard["baseline"].difference == pytest.approx(11 / 12 - 1 / 12)
    assert test.against_standard["monotonic"].difference == pytest.approx(23 / 36 - 1 / 12)


# Attacks. Clean ROUGE-L, ROUGE-L under attack and losses, chosen so that every model has its own pattern:
#
#     example          baseline                                monotonic
#              clean attacked drop  loss                clean attacked drop   loss
#     1        0.80  0.40     50 %  1.0 -> 3.0          0.60  0.60      0 %   2.0 -> 2.1
#     2        0.50  0.425    15 %  1.0 -> 2.0          0.50  0.45     10 %   2.0 -> 2.3
#     3        0.40  0.20     50 %  1.0 -> 1.6          0.40  0.50    -25 %   2.0 -> 2.2
#     success       3 of 3 (15 % is the threshold: it counts)    0 of 3
#     mean drop     115/3 %                             -5 %
#     loss rise     (2 + 1 + 0.6) / 3 = 1.2             (0.1 + 0.3 + 0.2) / 3 = 0.2
#     ROUGE change  (-0.4 - 0.075 - 0.2) / 3 = -0.225   (0 - 0.05 + 0.1) / 3 = 1/60
#     monotonic's score rose by 15 % or more once (25 %): improved 1/3; baseline's never
ATTACKS = {
    "baseline": [(0.80, 0.40, 1.0, 3.0), (0.50, 0.425, 1.0, 2.0), (0.40, 0.20, 1.0, 1.6)],
    "monotonic": [(0.60, 0.60, 2.0, 2.1), (0.50, 0.45, 2.0, 2.3), (0.40, 0.50, 2.0, 2.2)],
    "standard": [(0.20, 0.10, 3.0, 3.5)] * 3,
}
DROPS = {"baseline": [0.5, 0.15, 0.5], "monotonic": [0.0, 0.1, -0.25], "standard": [0.5] * 3}


def hotflip_record(pattern: str, number: int, **changes: object) -> HotFlipRecord:
    clean, attacked, clean_loss, attacked_loss = ATTACKS[pattern][number % 3]
    drop = DROPS[pattern][number % 3]
    values: dict[str, object] = {
        "section": f"attack/{pattern}",
        "id": str(number + 1),
        "model": pattern,
        "method": "gradient",
        "skipped": None,
        "clean_rougeL": clean,
        "attacked_rougeL": attacked,
        "relative_drop": drop,
        "success": drop >= THRESHOLD,
        "clean_loss": clean_loss,
        "attacked_loss": attacked_loss,
        "loss_increase": attacked_loss - clean_loss,
    }
    return HotFlipRecord(**values | changes)  # type: ignore[arg-type]


def hotflip_of(copies: int = 1, swapped: bool = False) -> HotFlipResults:
    """The results of the three examples, each written `copies` times; `swapped`: with the two models exchanged."""
    return hotflip_results(hotflip_sections(copies, swapped), MODELS, threshold=THRESHOLD, **CI)


def hotflip_sections(copies: int = 1, swapped: bool = False) -> dict[SectionKey, list[HotFlipRecord]]:
    numbers = range(3 * copies)
    other = {"baseline": "monotonic", "monotonic": "baseline", "standard": "standard"}
    sections: dict[SectionKey, list[HotFlipRecord]] = {}
    for model in MODELS:
        of = other[model] if swapped else model
        sections[SectionKey("attack", model)] = [hotflip_record(of, n, model=model) for n in numbers]
        # The control changes nothing at all: no drop, no rise.
        still = {"attacked_rougeL": ATTACKS[of][0][0], "relative_drop": 0.0, "success": False, "loss_increase": 0.0}
        sections[SectionKey("random", model)] = [hotflip_record(of, n, model=model, **still) for n in numbers]
        for target in MODELS:
            if target != model:  # flips found elsewhere do nothing either, but for one: monotonic's on baseline's first
                of_target = other[target] if swapped else target
                replayed = [hotflip_record(of_target, n, model=target, **still) for n in numbers]
                if (model, target) == ("monotonic", "baseline"):
                    replayed[0] = dataclasses.replace(replayed[0], relative_drop=0.2, success=True)
                sections[SectionKey("transfer", target, source=model)] = replayed
    return sections


def test_hotflip_and_its_differences() -> None:
    results = hotflip_of()
    baseline, monotonic = results.models["baseline"], results.models["monotonic"]
    assert (baseline.success_rate, monotonic.success_rate) == (1.0, 0.0)
    assert baseline.mean_degradation == pytest.approx(1.15 / 3)
    assert monotonic.mean_degradation == pytest.approx(-0.05)
    assert (baseline.improved_rate, monotonic.improved_rate) == (0.0, pytest.approx(1 / 3))
    assert baseline.mean_loss_increase == pytest.approx(1.2) and monotonic.mean_loss_increase == pytest.approx(0.2)
    assert baseline.delta_rougeL == pytest.approx(-0.225) and monotonic.delta_rougeL == pytest.approx(1 / 60)
    assert baseline.relative_loss_increase == pytest.approx(1.2) and monotonic.relative_loss_increase == pytest.approx(
        0.1
    )
    main = results.comparisons.baseline_vs_monotonic
    assert main is not None and main.loss_increase is not None
    assert (main.success.rate_a, main.success.rate_b, main.success.difference) == (1.0, 0.0, -1.0)
    assert (main.success.only_a, main.success.only_b, main.success.both) == (3, 0, 0)
    assert main.success.p_value == pytest.approx(stats.binomtest(3, 3).pvalue)  # 2 * (1/2)^3
    assert main.relative_drop.difference == pytest.approx(-0.05 - 1.15 / 3)
    assert main.loss_increase.difference == pytest.approx(0.2 - 1.2)
    assert main.delta_rougeL.difference == pytest.approx(1 / 60 + 0.225)
    against = results.comparisons.attack_minus_control["baseline"]["random"]
    assert against.success.difference == 1.0 and against.loss_increase is not None
    assert against.loss_increase.difference == pytest.approx(1.2)  # the attack minus its control
    assert results.transfer_matrix["monotonic"]["baseline"].success_rate == pytest.approx(1 / 3)  # found on monotonic
    assert results.transfer_matrix["baseline"]["monotonic"].success_rate == 0.0
    assert results.transfer_matrix["baseline"]["baseline"].success_rate == 1.0


# Triggers: one type. ROUGE-L 0.5 before; after it baseline has 0.1, 0.2, 0.3 (change -0.3), monotonic 0.5, 0.5, 0.35
# (change -0.05). Losses rise by 1.0 and by 0.2.
AFTER = {"baseline": [0.1, 0.2, 0.3], "monotonic": [0.5, 0.5, 0.35], "standard": [0.4, 0.4, 0.4]}
RISE = {"baseline": 1.0, "monotonic": 0.2, "standard": 0.5}


@pytest.fixture(scope="module")
def triggers() -> TriggerResults:
    return triggers_of(trigger_sections())


TriggerSections = dict[SectionKey, list[object]]


def triggers_of(sections: TriggerSections, *more: str) -> TriggerResults:
    return trigger_results(sections, MODELS, ["lead", *more], threshold=THRESHOLD, **CI)


def trigger_sections(kind: str = "lead", own: float = 1.0, gains: dict[str, float] | None = None) -> TriggerSections:
    """Searches and records of one type; `own`: strength of a model's own trigger; `gains`: on held-out text."""

    def records(source: str, target: str, strength: float) -> list[TriggerRecord]:
        return [
            TriggerRecord(
                id=str(n),
                model=target,
                source=source,
                trigger_type=kind,
                skipped=None,
                relative_drop=strength * (0.5 - after) / 0.5,
                success=strength * (0.5 - after) / 0.5 >= THRESHOLD,
                clean_loss=1.0,
                attacked_loss=1.0 + strength * RISE[target],
                loss_increase=strength * RISE[target],
                **{f"clean_{m}": 0.5 for m in ("rouge1", "rouge2", "rougeL")},
                **{f"attacked_{m}": 0.5 - strength * (0.5 - after) for m in ("rouge1", "rouge2", "rougeL")},
            )
            for n, after in enumerate(AFTER[target])
        ]

    sections: TriggerSections = {}
    for model in MODELS:
        sections[SectionKey("search", model, kind)] = [
            TriggerSearch(
                trigger_ids=[7], trigger_text=f"of {model}", trigger_type=kind, source=model,
                dev_gain=gains[model] if gains else 1.0,
                **CHOSEN | {"dev_rouge_change": -0.1 * (gains[model] if gains else 1.0)},
                method="gradient", restarts=[], num_dev=1, iterations=1, halfway_trigger_ids=[], curve=[],
                converged=True, forward_rows=1, gradient_rows=1, seconds=0.0,
                random_control=RANDOM_TRIGGER,
            )
        ]  # fmt: skip
        sections[SectionKey("random", model, kind)] = [*records(model, model, 0.0)]
        for target in MODELS:
            sections[SectionKey("attack", target, kind, model)] = [
                *records(model, target, own if model == target else 0.1)
            ]
    return sections


def test_triggers_and_their_differences(triggers: TriggerResults) -> None:
    baseline, monotonic = (triggers.models[model].types["lead"] for model in ("baseline", "monotonic"))
    assert baseline.delta_rougeL == pytest.approx(-0.3) and monotonic.delta_rougeL == pytest.approx(-0.05)
    assert baseline.success_rate == 1.0 and monotonic.success_rate == pytest.approx(1 / 3)
    test = triggers.comparisons["lead"]
    assert test.delta_rougeL.difference == pytest.approx(0.25) and test.nll_increase is not None
    assert test.nll_increase.difference == pytest.approx(0.2 - 1.0)
    assert test.success.difference == pytest.approx(-2 / 3)
    assert baseline.control_comparison.nll_increase is not None
    assert baseline.control_comparison.nll_increase.difference == pytest.approx(1.0)  # the trigger minus its control
    assert triggers.transfer_matrix["lead"]["monotonic"]["baseline"].nll_increase == pytest.approx(0.1)


# ---- the sentences -------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class OneSet:
    """What the sentences take from a data set."""

    title: str = "CNN/DM"
    role: str = "test"


@dataclasses.dataclass(frozen=True)
class SomeData:
    """What the sentences take from the data."""

    attack_dataset: str = "cnn_dm"
    sets: dict[str, OneSet] = dataclasses.field(default_factory=lambda: {"cnn_dm": OneSet()})
    missing: dict[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Audited:
    """What the sentences take from the audit of the constraint."""

    monotone_ffn_blocks: bool = True


@dataclasses.dataclass(frozen=True)
class Trained:
    """What the sentences, and several seeds, take from a training."""

    best_validation_loss: float = 1.0
    total_seconds: float = 1.0
    audit: Audited = Audited()


def findings_of(evaluation: EvaluationResults, hotflip: HotFlipResults, triggers: TriggerResults) -> Findings:
    """What the sentences and tables of results are made from; set-up, data and trainings play no part in them."""

    trained: dict[str, object] = {f"{arm}_training": Trained() for arm in ("baseline", "monotonic")}
    off = matched([], candidates=8, missing=[], **CI)
    nothing: dict[str, object] = {"setup": None, "control_training": {}, "mechanism": {}, "attribution": {}, **trained}
    return Findings(
        confidence=0.95, quality_margin=0.01, evaluation=evaluation, hotflip=hotflip, uat=triggers, data=SomeData(),
        matched=off,
        warnings=[*triggers.warnings, *hotflip.warnings], missing_datasets={}, sources={}, **nothing,
    )  # fmt: skip


# Worst case, the strongest of attack, random flips (which change nothing) and flips found elsewhere:
#
#     example   baseline: drop, loss rise      monotonic: drop, loss rise
#     1         50 %   +2.0                     0 %   +0.1
#     2         15 %   +1.0                    10 %   +0.3
#     3         50 %   +0.6                     0 %   +0.2   (its attack raised ROUGE-L; random flips left it)
#     success   3 of 3                         0 of 3
#     mean      115/3 = 38.3 %, +1.200         10/3 = 3.3 %, +0.200
#     monotonic minus baseline: success -100 points, drop -35 points, loss rise -1 nat


def test_harder_is_said_where_fewer_attacks_succeed(evaluation: EvaluationResults, triggers: TriggerResults) -> None:
    """Four copies of the examples, so that the test has something to say: 12 successes against none, p = 2 / 2^12.

    It is in no family. Agresti and Min's interval: -12 / 14 +- 1.96 * sqrt(13 - 144 / 14) / 14, cut at -1: [-1, -.626].
    HotFlip alone is in a family of four: 4 * 2 / 2^12 = 0.002. Cost: t = (-5/18 + 0.01) / (0.2097 / sqrt(3)) = -2.21,
    so a loss of at least the margin has p = P(T2 > -2.21) = 0.921.
    """
    final = final_results(findings_of(evaluation, hotflip_of(copies=4), triggers))
    first, line = final.verdict.attack.split(" All measures, monotonic minus baseline: ")
    assert first == (
        "For this pair of trainings monotonic is harder to attack than baseline by worst-case success (the share of "
        "summaries that the strongest of all attacks spoils): 0.0 % on monotonic against 100.0 % on baseline, "
        "-100.0 [-100.0, -62.6] points on 12 common examples (p < 0.001)."
    )
    parts = line.split("; ")
    assert parts[0] == "worst-case success -100.0 [-100.0, -62.6] points (p < 0.001)"
    assert parts[1].startswith("mean relative ROUGE-L drop -35.0 [-4") and "Holm" in parts[1]
    assert parts[2].startswith("mean loss rise -1.000 [-1.") and "Holm" in parts[2]
    assert parts[3] == "success of HotFlip alone -100.0 [-100.0, -62.6] points (p < 0.001, Holm 0.002)."
    assert final.verdict.cost.startswith(
        "For this pair of trainings monotonic's ROUGE-L on CNN/DM is not shown to differ from baseline's: -0.2778 [-0.5"
    )
    assert final.verdict.cost.endswith(
        "Not worse than baseline by more than the margin of 0.01: not shown (one-sided p = 0.921)."
    )
    assert final.verdict.triggers.startswith(
        "For this pair of trainings universal triggers, each model's chosen on held-out text, are not shown to harm "
        "one of the models more than the other: ROUGE-L changes by -0.050 on monotonic (lead) and by -0.300 on "
        "baseline (lead), a difference of +0.250 [+0."
    )
    assert final.verdict.doubt == ""


def test_easier_is_said_where_more_attacks_succeed(evaluation: EvaluationResults, triggers: TriggerResults) -> None:
    final = final_results(findings_of(evaluation, hotflip_of(copies=4, swapped=True), triggers))
    assert "monotonic is easier to attack than baseline" in final.verdict.attack
    # One summary of baseline fell to flips found on monotonic (a drop of 20 %): 1 of 12, and 11 differ. The interval:
    # 11 / 14 +- 1.96 * sqrt(12 - 121 / 14) / 14 = 0.786 +- 0.257.
    assert "100.0 % on monotonic against 8.3 % on baseline, +91.7 [+52.9, +100.0] points" in final.verdict.attack


def test_nothing_is_said_where_the_test_shows_nothing(evaluation: EvaluationResults, triggers: TriggerResults) -> None:
    final = final_results(findings_of(evaluation, hotflip_of(copies=1), triggers))  # 3 against 0: p = 0.25
    assert "monotonic is not shown to be harder or easier to attack than baseline" in final.verdict.attack


def attacked(drops: dict[str, float], rises: dict[str, float]) -> HotFlipResults:
    """Twelve examples, on each of which every attack costs a model this much."""
    sections: dict[SectionKey, list[HotFlipRecord]] = {}
    for model in MODELS:
        same = {
            "relative_drop": drops[model],
            "success": drops[model] >= THRESHOLD,
            "attacked_rougeL": 0.5 * (1 - drops[model]),
            "clean_rougeL": 0.5,
        }
        for n in range(12):  # losses that are not all alike: a mean of `rises`, with a deviation
            rise = {"loss_increase": rises[model] + 0.1 * (n % 2) - 0.05}
            record = hotflip_record(model, n, model=model, **same, **rise)
            sections.setdefault(SectionKey("attack", model), []).append(record)
            for target in MODELS:
                if target != model:
                    still = hotflip_record(target, n, model=target, relative_drop=0.0, loss_increase=-1.0)
                    sections.setdefault(SectionKey("transfer", target, source=model), []).append(still)
    return hotflip_results(sections, MODELS, threshold=THRESHOLD, **CI)


RISES = {"standard": 1.0, "baseline": 1.2, "monotonic": 0.2}


BY_DROP = "to attack than baseline by mean relative ROUGE-L drop (worst case):"
BY_RISE = (
    "harder to attack than baseline by mean loss rise (worst case): +0.200 nats on monotonic against +1.200 nats on"
)
ALL, NONE = "monotonic 100.0 %, baseline 100.0 %", "monotonic 0.0 %, baseline 0.0 %"


@pytest.mark.parametrize(
    ("baseline", "monotonic", "measure", "limits", "answer"),
    [
        (0.4, 0.2, "relative_drop", [f"ceiling: {ALL}"],
         f"harder {BY_DROP} 20.0 % on monotonic against 40.0 % on baseline, -20.0 ["),
        (0.2, 0.4, "relative_drop", [f"ceiling: {ALL}"],
         f"easier {BY_DROP} 40.0 % on monotonic against 20.0 % on baseline, +20.0 ["),
        (0.1, 0.05, "relative_drop", [f"floor: {NONE}"],
         f"harder {BY_DROP} 5.0 % on monotonic against 10.0 % on baseline, -5.0 ["),
        (0.0, 0.005, "loss_increase", [f"floor: {NONE}", "floor: monotonic 0.5 %, baseline 0.0 %"], BY_RISE),
        (0.95, 0.99, "loss_increase", [f"ceiling: {ALL}", "ceiling: monotonic 99.0 %, baseline 95.0 %"], BY_RISE),
        (0.4, 0.1, "success", [],
         "harder to attack than baseline by worst-case success (the share of summaries that the strongest of all "
         "attacks spoils): 0.0 % on monotonic against 100.0 % on baseline"),
    ],
)  # fmt: skip
def test_a_measure_at_its_ceiling_or_floor_is_named_and_the_next_is_read(
    evaluation: EvaluationResults, triggers: TriggerResults, baseline, monotonic, measure, limits, answer
) -> None:
    drops = {"standard": 0.5, "baseline": baseline, "monotonic": monotonic}
    found = final_results(findings_of(evaluation, attacked(drops, RISES), triggers)).verdict
    first, then = found.attack.split("For this pair of trainings monotonic is ")
    assert first.count("cannot tell the models apart") == len(limits) and found.measure == measure
    assert all(first.count(f"is at its {words};") == 1 for words in limits) and then.startswith(answer)
    assert "mean loss rise -1.000 [" in then.split("All measures")[1]  # all stand in the line, whichever is read


def test_the_cost_says_direction_and_the_loss_that_is_ruled_out() -> None:
    def said(difference: float, lower: float, upper: float, p: float, not_worse: float) -> str:
        one = Outcome(0.5, 0.5 + difference, difference, lower, upper, p, 2 * p)
        return cost_sentence("For this pair of trainings", "CNN/DM", one, not_worse, 0.01, 0.05)

    less = said(-0.02, -0.03, -0.01, 0.001, 0.9)
    assert "ROUGE-L on CNN/DM is lower than baseline's: -0.0200 [-0.0300, -0.0100] (p = 0.001, Holm 0.002)" in less
    assert (
        "a loss of more than 0.0300 is ruled out" in less and "margin of 0.01: not shown (one-sided p = 0.900)" in less
    )
    more = said(0.02, 0.01, 0.03, 0.001, 0.0001)
    assert "is higher than baseline's: +0.0200" in more and "any loss is ruled out" in more
    assert "Not worse than baseline by more than the margin of 0.01: shown (one-sided p < 0.001)" in more
    open_ = said(-0.001, -0.006, 0.004, 0.7, 0.001)  # no difference is shown, and none is claimed to be absent
    assert "is not shown to differ from baseline's" in open_ and "a loss of more than 0.0060 is ruled out" in open_
    assert "margin of 0.01: shown (one-sided p = 0.001)" in open_
    assert "margin of 0.01: not shown" in said(-0.001, -0.011, 0.009, 0.9, 0.02)  # the interval reaches beyond it
    assert "margin of 0.01: not shown" in said(-0.001, -0.009, 0.007, 0.8, 0.03)  # one-sided: half of alpha
    assert "lower than" not in said(-0.02, -0.03, -0.01, 0.04, 0.9)  # 0.08 after Holm
    barely = said(0.01, 0.001, 0.02, 0.04, 0.001)  # the interval is above 0, the corrected p-value is 0.08
    assert "any loss" not in barely and "a loss of more than 0.0000 is ruled out" in barely


def test_each_models_trigger_is_the_one_of_held_out_text(evaluation: EvaluationResults) -> None:
    """A second type, half as strong: baseline changes by -0.15, monotonic by -0.025. On held-out text monotonic's gains
    more than its lead, baseline's less: monotonic (tail) is compared with baseline (lead), though lead does more harm
    to monotonic too. -0.025 + 0.3 = +0.275."""
    first = trigger_sections("lead", gains={"standard": 1.0, "baseline": 1.0, "monotonic": 0.5})
    second = trigger_sections("tail", own=0.5, gains={"standard": 0.5, "baseline": 0.5, "monotonic": 1.0})
    triggers = triggers_of(first | second, "tail")
    assert triggers.worst_comparison is not None
    assert triggers.worst_comparison.delta_rougeL.difference == pytest.approx(0.275)
    found = final_results(findings_of(evaluation, hotflip_of(), triggers)).verdict.triggers
    assert "by -0.025 on monotonic (tail) and by -0.300 on baseline (lead), a difference of +0.275 [" in found


def test_less_harm_where_another_search_did_better_says_so(
    evaluation: EvaluationResults, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the two models the one that is harmed less, and its own type of trigger, are what is asked for."""
    first = trigger_sections("lead", gains={"standard": 1.0, "baseline": 1.0, "monotonic": 1.0})
    triggers = triggers_of(first)
    asked = []

    def stronger(_: TriggerResults, model: str, kind: str) -> bool:
        asked.append((model, kind))
        return True

    monkeypatch.setattr(verdict, "stronger_elsewhere", stronger)
    found = verdict.triggers_sentence(triggers, 2.0)  # of three examples nothing is shown below a p-value of 1
    assert "harm monotonic less than baseline" in found and asked == [("monotonic", "lead")]
    assert "But on monotonic a lead trigger from another search is stronger" in found
    assert "another search" not in verdict.triggers_sentence(triggers, 0.05)
    monkeypatch.setattr(verdict, "stronger_elsewhere", lambda *_: False)
    assert "another search" not in verdict.triggers_sentence(triggers, 2.0)


def test_triggers_harm_less_where_rouge_falls_less() -> None:
    def said(a: float, b: float, p: float) -> str:
        one = Outcome(a, b, b - a, b - a - 0.1, b - a + 0.1, p, p)
        kinds = {"baseline": " (lead)", "monotonic": " (tail)"}
        return compared_triggers("For this pair of trainings", one, kinds, "on 12 common examples", 0.05)

    assert (
        "harm monotonic less than baseline: ROUGE-L changes by -0.100 on monotonic (tail) and by -0.300 on baseline ("
        in (said(-0.3, -0.1, 0.01))
    )
    assert "harm monotonic more than baseline" in said(-0.1, -0.3, 0.01) and "of -0.200 [" in said(-0.1, -0.3, 0.01)
    assert "are not shown to harm one of the models more" in said(-0.1, -0.3, 0.2)


def test_tables_name_the_models_whose_figures_they_show(
    evaluation: EvaluationResults, triggers: TriggerResults
) -> None:
    results = final_results(findings_of(evaluation, hotflip_of(copies=4), triggers))
    rows = {row[0]: row for row in result_tables.hotflip(results).rows}
    assert rows["baseline"][1].startswith("100.0 %") and rows["monotonic"][1].startswith("0.0 %")
    assert rows["baseline"][2].startswith("38.3 %") and rows["monotonic"][3].startswith("+0.200")
    compared = {row[0]: row for row in result_tables.comparisons(results).rows}
    assert compared["CNN/DM ROUGE-L"][1].startswith("-0.2778")
    tests = {row[0]: row for row in result_tables.attack_tests(results).rows}
    assert tests["HotFlip success, points"][1].startswith("-100.0")
    assert tests["HotFlip NLL rise"][1].startswith("-1.000")
