"""The sentences of the verdict about causes: the comparison at equal quality, and what each control reproduces."""

from __future__ import annotations

from collections.abc import Mapping

from utils.analysis.attribution import ArmAttribution, Reproduced
from utils.analysis.multi_seed import SeedFigure, SeedResults
from utils.analysis.quality_curve import Matched
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


def attribution_sentence(found: Mapping[str, ArmAttribution]) -> str:
    """How much of the difference between monotonic and baseline each control arm reproduces; empty without any."""
    if not found:
        return ""
    for measure, title in (("success_reproduced", "worst-case success"), ("drop_reproduced", "mean ROUGE-L drop")):
        shares = {arm: one for arm, named in found.items() if (one := getattr(named, measure)) is not None}
        if shares:
            each = [f"{arm} reproduces {_share(one)}" for arm, one in shares.items()]
            without = [arm for arm in found if arm not in shares]
            note = f" (not known for {', '.join(without)}: no difference on the common examples)" if without else ""
            return f"Of the difference in {title} between monotonic and baseline {', '.join(each)}{note}."
    success = [f"{arm} {100 * one.success_vs_baseline.difference:+.1f} points" for arm, one in found.items()]
    return (
        "No difference between monotonic and baseline is shown that a control could reproduce; worst-case success "
        f"against baseline: {', '.join(success)}."
    )


def _share(one: Reproduced) -> str:
    return f"{100 * one.share:.0f} % [{100 * one.lower:.0f}, {100 * one.upper:.0f}]"


def attribution_over_seeds(results: SeedResults) -> str:
    """The same over seeds, and which arms some seeds lack; empty without any arm."""
    each = []
    for arm, one in results.attribution.items():
        share = "" if one.reproduced is None else f", {100 * one.reproduced:.0f} % of monotonic's"
        each.append(f"{arm} {_points(one.success_minus_baseline)}{share}")
    words = f"Worst-case success of the controls against baseline, over seeds: {'; '.join(each)}." if each else ""
    return " ".join([*([words] if words else []), *(f"{line}." for line in results.arms_left_out)])


def _points(one: SeedFigure) -> str:
    if one.mean is None or one.lower is None or one.upper is None:
        return "not in every seed"
    return f"{100 * one.mean:+.1f} points [{100 * one.lower:+.1f}, {100 * one.upper:+.1f}]"
