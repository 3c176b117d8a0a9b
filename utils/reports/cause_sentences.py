"""The sentences of the verdict about causes: the comparison at equal quality, and what each control reproduces."""

from __future__ import annotations

from collections.abc import Mapping

from configs.arms import ARMS
from utils.analysis.attribution import ArmAttribution, Reproduced
from utils.analysis.explanations import QUALITY, Explanations, explanations, measure_explained
from utils.analysis.multi_seed import SeedResults
from utils.analysis.quality_curve import Matched
from utils.analysis.seed_differences import SeedTest
from utils.core.names import MONOTONIC


def matched_sentence(found: Matched, confidence: float) -> str:
    """The verdict's sentence about monotonic at equal quality; empty where QUALITY_CURVE_EXAMPLES is 0."""
    if not found.num_examples:
        return ""
    one = found.against_baseline.get(MONOTONIC)
    lacking = f" Without {len(found.missing)} snapshots that are gone: {found.missing[0]}." if found.missing else ""
    if one is None:
        return f"At equal quality nothing can be compared: no clean ROUGE-L is reached by both models.{lacking}"
    points = f"{100 * one.difference:+.1f} points [{100 * one.lower:+.1f}, {100 * one.upper:+.1f}]"
    if one.upper < 0:
        answer = "monotonic is harder to attack than baseline"
    elif one.lower > 0:
        answer = "monotonic is easier to attack than baseline"
    else:
        answer = "no difference is shown"
    return (
        f"At equal quality (ROUGE-L {one.quality:.3f}, between snapshots of both trainings) {answer}: success "
        f"{100 * one.arm:.1f} % on monotonic, {100 * one.baseline:.1f} % on baseline, {points} at "
        f"{100 * confidence:.0f} %, by a small attack on {found.num_examples} examples.{lacking}"
    )


def attribution_sentence(found: Mapping[str, ArmAttribution], matched: Matched) -> str:
    """How much of the difference between monotonic and baseline each control arm reproduces, and what is left to
    explain it; empty without any arm."""
    if not found:
        return ""
    measure = measure_explained(found)
    if measure is None:
        success = [f"{arm} {100 * one.success_vs_baseline.difference:+.1f} points" for arm, one in found.items()]
        return (
            "No difference between monotonic and baseline is shown that a control could reproduce; worst-case success "
            f"against baseline: {', '.join(success)}."
        )
    shares: dict[str, Reproduced | None] = {arm: getattr(one, measure) for arm, one in found.items()}
    each = [f"{arm} reproduces {_share(one)}" for arm, one in shares.items() if one is not None]
    without = [arm for arm, one in shares.items() if one is None]
    note = f" (not known for {', '.join(without)}: no difference on the common examples)" if without else ""
    title = {"success_reproduced": "worst-case success", "drop_reproduced": "mean ROUGE-L drop"}[measure]
    whole = f"Of the difference in {title} between monotonic and baseline {', '.join(each)}{note}."
    return f"{whole} {_explanation(explanations(shares, matched))}"


def _explanation(found: Explanations) -> str:
    """Which explanation is left, in one or two sentences."""
    said = []
    if found.explaining:
        arms = [f"{arm} ({ARMS[arm].summary})" for arm in found.explaining if arm != QUALITY]
        if arms:
            said.append(f"More than half of it comes without the constraint: {', '.join(arms)}.")
        if QUALITY in found.explaining:
            said.append("More than half of it is gone at equal quality: monotonic is the worse model.")
    elif found.only_the_sign_is_left:
        excluded = [arm for arm in found.excluded if arm != QUALITY]
        said.append(
            f"The sign constraint is the explanation left: {', '.join(excluded)} and lower quality each account for "
            "less than half."
        )
    if found.undecided:
        names = ["lower quality" if name == QUALITY else name for name in found.undecided]
        said.append(f"Whether {', '.join(names)} would explain half of it is not decided.")
    if found.parts and not found.explaining:
        said.append(f"{', '.join(found.parts)} alone reproduce{'s' * (len(found.parts) == 1)} more than half.")
    return " ".join(said)


def _share(one: Reproduced) -> str:
    return f"{100 * one.share:.0f} % [{100 * one.lower:.0f}, {100 * one.upper:.0f}]"


def attribution_over_seeds(results: SeedResults) -> str:
    """The same over seeds, and which arms some seeds lack; empty without any arm."""
    each = []
    for arm, one in results.attribution.items():
        share = "" if one.reproduced is None else f", {_share(one.reproduced)} of monotonic's"
        each.append(f"{arm} {_points(one.success_vs_baseline)}{share}")
    words = f"Worst-case success of the controls against baseline, over seeds: {'; '.join(each)}." if each else ""
    return " ".join([*([words] if words else []), *(f"{line}." for line in results.arms_left_out)])


def _points(one: SeedTest) -> str:
    found = one.outcome()
    if found is None:
        return "not tested (fewer than two examples in every seed)"
    return f"{100 * found.difference:+.1f} points [{100 * found.lower:+.1f}, {100 * found.upper:+.1f}]"
