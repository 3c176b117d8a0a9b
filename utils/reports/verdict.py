"""The answer in sentences: made here from the figures, and nowhere else."""

from __future__ import annotations

from utils.analysis.final import FinalResults, Findings, Verdict
from utils.analysis.multi_seed import HOTFLIP_SUCCESS, SeedResults
from utils.analysis.records import given
from utils.analysis.results import AttackWarning, PairedTest, SuccessTest, Test, TriggerResults
from utils.core.names import BASELINE, HEADLINE_METRIC, MODEL_KEYS, MONOTONIC, TRAINED_KEYS
from utils.reports.table import p_value, signed

LIMITS = (
    "One training seed: differences between trainings are not in these intervals. Treat the result as preliminary.",
    "ROUGE compares words with one reference; it does not measure whether a summary is true.",
    "White-box attacks of this budget were tried; a model they do not break may break under another attack.",
)


def final_results(findings: Findings) -> FinalResults:
    """The figures of a seed with the answer in words."""
    return FinalResults(**vars(findings), verdict=verdict(findings), limits=[_monotone(findings), *LIMITS])


def _monotone(findings: Findings) -> str:
    """What the constraint makes monotone, as the audit of the exported model found it."""
    found = given(findings.monotonic_training.audit)
    if found.monotone_ffn_blocks:
        layers = "The feed-forward layers of `monotonic` are monotone; the network is not"
        return f"{layers}: attention, norms and residuals are not."
    fell = f"{found.violations:,} of {found.comparisons:,} outputs fell though an input rose"
    return f"The feed-forward layers of `monotonic` have no negative weight, but are not monotone: {fell}."


def verdict(findings: Findings) -> Verdict:
    """One sentence each for attack, triggers and cost, and the doubt, with the figures behind the first and the last.

    Differences are monotonic minus baseline: side a of the tests is baseline, side b monotonic.
    """
    success = given(findings.hotflip.comparisons.baseline_vs_monotonic).success
    compared = findings.evaluation.comparisons[findings.data.attack_dataset][HEADLINE_METRIC]
    quality = PairedTest(**{name: value for name, value in vars(compared).items() if name != "against_standard"})
    return Verdict(
        attack=attack_sentence(success, 1 - findings.confidence),
        triggers=triggers_sentence(findings.uat),
        cost=cost_sentence(quality, findings.data.sets[findings.data.attack_dataset].title),
        doubt=doubt_sentence(findings.warnings),
        success=success,
        quality=quality,
    )


def attack_sentence(success: SuccessTest, alpha: float) -> str:
    """Whether HotFlip succeeds less often on monotonic (b) than on baseline (a)."""
    if not success.n:
        return "HotFlip says nothing: no example could be attacked on both baseline and monotonic."
    points = signed(100 * success.difference, [100 * success.lower, 100 * success.upper], digits=1)
    return (
        f"Monotonic is {_answer(success.difference, _adjusted(success) < alpha)} to attack than baseline: HotFlip "
        f"succeeds on {100 * success.rate_b:.1f} % of its summaries and on {100 * success.rate_a:.1f} % of baseline's "
        f"({points} points on {success.n} common examples, McNemar {_holm(success)}, Holm-corrected)."
    )


def _answer(difference: float, shown: bool) -> str:
    if not shown:
        return "not shown to be harder or easier"
    return "harder" if difference < 0 else "easier"


def triggers_sentence(uat: TriggerResults) -> str:
    """The worst universal trigger of both trained models, each with its interval."""
    worst = []
    for model in TRAINED_KEYS:
        kind = uat.models[model].worst.worst_type
        if kind:
            cell = uat.models[model].types[kind]
            worst.append(f"{signed(cell.delta_rougeL, cell.delta_rougeL_ci)} on {model} ({kind})")
    if not worst:
        return "No universal trigger was measured."
    return f"The worst universal trigger changes ROUGE-L by {' and by '.join(worst)}."


def cost_sentence(quality: PairedTest, title: str) -> str:
    """What the constraint costs in quality: monotonic (b) minus baseline (a)."""
    change = signed(quality.difference, [quality.lower, quality.upper], digits=4)
    return f"On {title} monotonic's ROUGE-L differs from baseline's by {change} ({_holm(quality)}, Holm-corrected)."


def doubt_sentence(warnings: list[AttackWarning]) -> str:
    """Which models may only be hard to differentiate; empty where there is none."""
    masked = {w.model for w in warnings if w.warning == "possibly_masked_gradients" and w.model in MODEL_KEYS}
    if not masked:
        return ""
    return (
        f"Doubt: gradient-free or transferred attacks beat the white-box attack on {' and '.join(sorted(masked))}: "
        "robustness there is possibly masked gradients."
    )


def verdict_over_seeds(results: SeedResults) -> str:
    """The answer over seeds; only a test over seeds decides, as a seed is what was drawn anew."""
    test, wide = results.monotonic_minus_baseline[HOTFLIP_SUCCESS], results.hierarchical_bootstrap[HOTFLIP_SUCCESS]
    if test.difference is None:
        return "HotFlip says nothing over these seeds: one of them has no example that could be attacked."
    p = test.p_value_holm
    answer = _answer(test.difference, p is not None and p < 1 - results.confidence)
    rates = {model: 100 * given(results.hotflip[model].success_rate.mean) for model in TRAINED_KEYS}
    points = signed(100 * test.difference, [100 * wide.lower, 100 * wide.upper], digits=1)
    return (
        f"Over {test.n} seeds monotonic is {answer} to attack than baseline: HotFlip succeeds on "
        f"{rates[MONOTONIC]:.1f} % of its summaries and on {rates[BASELINE]:.1f} % of baseline's ({points} points, "
        f"hierarchical bootstrap; paired t over seeds, Holm-corrected p: {p_value(p)})."
    )


def _adjusted(test: Test) -> float:
    return given(test.p_value_holm)


def _holm(test: Test) -> str:
    shown = p_value(_adjusted(test))
    return f"p {shown}" if shown.startswith("<") else f"p = {shown}"
