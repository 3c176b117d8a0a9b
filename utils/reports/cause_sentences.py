"""The sentences of the verdict about causes: the comparison at equal quality, and what each control reproduces."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from configs.arms import ARMS
from utils.analysis.attribution import ArmAttribution, Reproduced
from utils.analysis.claims import Measure
from utils.analysis.explanations import QUALITY, Explanations, explanations
from utils.analysis.multi_seed import SeedResults
from utils.analysis.quality_curve import Matched
from utils.analysis.seed_differences import SeedTest, outcomes_over_seeds
from utils.core.names import MONOTONIC
from utils.reports.measure_words import NAMES, change, level


def matched_sentence(found: Matched, measure: Measure, confidence: float) -> str:
    """The verdict's sentence about monotonic at equal quality, by the measure that the answer reads; empty where
    QUALITY_CURVE_EXAMPLES is 0."""
    if not found.num_examples:
        return ""
    one = found.differences(measure).get(MONOTONIC)
    lacking = f" Without {len(found.missing)} snapshots that are gone: {found.missing[0]}." if found.missing else ""
    if one is None:
        return f"At equal quality nothing can be compared: no clean ROUGE-L is reached by both models.{lacking}"
    if one.upper < 0:
        answer = "monotonic is harder to attack than baseline"
    elif one.lower > 0:
        answer = "monotonic is easier to attack than baseline"
    else:
        answer = "no difference is shown"
    name = NAMES[measure].removeprefix("worst-case ")
    return (
        f"At equal quality (ROUGE-L {one.quality:.3f}, between snapshots of both trainings) {answer}: {name} "
        f"{level(measure, one.arm)} on monotonic, {level(measure, one.baseline)} on baseline, {change(measure, one)} "
        f"at {100 * confidence:.0f} %, by a small attack on {found.num_examples} examples.{lacking}"
    )


def attribution_sentence(
    found: Mapping[str, ArmAttribution], matched: Matched, measure: Measure, *, shown: bool
) -> str:
    """How much of the difference between monotonic and baseline each control arm reproduces, and what is left to
    explain it; empty without any arm.

    measure: the one that the answer reads; shown: whether that shows a difference at all.
    """
    if not found:
        return ""
    shares = {arm: one.reproduced(measure) for arm, one in found.items()}
    if not shown:
        success = [f"{arm} {100 * one.success_vs_baseline.difference:+.1f} points" for arm, one in found.items()]
        return f"{_nothing_shown(measure)}; worst-case success against baseline: {', '.join(success)}."
    at_equal_quality = matched.differences(measure).get(MONOTONIC)
    return f"{_shares(shares, measure)} {_explanation(explanations(shares, at_equal_quality))}"


def _nothing_shown(measure: Measure) -> str:
    return f"No difference between monotonic and baseline in {NAMES[measure]} is shown that a control could reproduce"


def _shares(shares: Mapping[str, Reproduced | None], measure: Measure) -> str:
    each = [f"{arm} reproduces {_share(one)}" for arm, one in shares.items() if one is not None]
    without = [arm for arm, one in shares.items() if one is None]
    note = f" (not known for {', '.join(without)}: no difference on the common examples)" if without else ""
    told = f"{', '.join(each) or 'no share is known'}{note}"
    return f"Of the difference in {NAMES[measure]} between monotonic and baseline {told}."


def _explanation(found: Explanations) -> str:
    """Which explanation is left, in one or two sentences."""
    sentences = []
    if found.explaining:
        arms = [f"{arm} ({ARMS[arm].summary})" for arm in found.explaining if arm != QUALITY]
        if arms:
            sentences.append(f"More than half of it comes without the constraint: {', '.join(arms)}.")
        if QUALITY in found.explaining:
            sentences.append("More than half of it is gone at equal quality: monotonic is the worse model.")
    elif found.only_the_sign_is_left:
        excluded = [arm for arm in found.excluded if arm != QUALITY]
        sentences.append(
            f"The sign constraint is the explanation left: {', '.join(excluded)} and lower quality each account for "
            "less than half."
        )
    if found.undecided:
        names = ["lower quality" if name == QUALITY else name for name in found.undecided]
        sentences.append(f"Whether {', '.join(names)} would explain half of it is not decided.")
    if found.parts and not found.explaining:
        sentences.append(f"{', '.join(found.parts)} alone reproduce{'s' * (len(found.parts) == 1)} more than half.")
    return " ".join(sentences)


def _share(one: Reproduced) -> str:
    return f"{100 * one.share:.0f} % [{100 * one.lower:.0f}, {100 * one.upper:.0f}]"


def attribution_over_seeds(results: SeedResults) -> str:
    """The same over seeds, by the measure of the answer over seeds, and which arms some seeds lack; empty without any
    arm."""
    words = [f"{line}." for line in results.arms_left_out]
    shares = {arm: one.reproduced for arm, one in results.attribution.items()}
    if not shares:
        return " ".join(words)
    measure, found = results.measure, outcomes_over_seeds(results.monotonic_minus_baseline)
    if measure is None or not found[measure].shown(1 - results.confidence):
        each = [f"{arm} {_points(one.success_vs_baseline)}" for arm, one in results.attribution.items()]
        told = f"{_nothing_shown(measure or 'success')}; worst-case success against baseline: {'; '.join(each)}."
    else:
        cause = explanations(shares, None)
        cause = replace(cause, undecided=tuple(name for name in cause.undecided if name != QUALITY))
        told = " ".join(filter(None, (_shares(shares, measure), _explanation(cause)))) + (
            " Whether lower quality would explain it is asked within each seed only."
        )
    return " ".join([f"Over {len(results.seeds)} seeds: {told[0].lower()}{told[1:]}", *words])


def _points(one: SeedTest) -> str:
    found = one.outcome()
    if found is None:
        return "not tested (fewer than two examples in every seed)"
    return f"{100 * found.difference:+.1f} points [{100 * found.lower:+.1f}, {100 * found.upper:+.1f}]"
