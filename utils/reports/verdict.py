"""The answer in sentences: made here from the figures, and nowhere else.

Every difference is monotonic minus baseline: side a of the tests is baseline, side b monotonic.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from utils.analysis.attack_warnings import stronger_elsewhere
from utils.analysis.claims import Measure, Outcome, measure_read, outcome, outcomes, saturation
from utils.analysis.comparisons import AttackWarning, PairedTest
from utils.analysis.final import FinalResults, Findings, Sentences, Verdict
from utils.analysis.multi_seed import SeedResults
from utils.analysis.records import given
from utils.analysis.results import HotFlipResults, TriggerResults
from utils.analysis.seed_differences import (
    HOTFLIP_SUCCESS,
    WORST,
    WORST_TRIGGER,
    SeedTest,
    of_set,
    outcomes_over_seeds,
)
from utils.analysis.statistics import exceeds
from utils.analysis.warning_texts import ranked
from utils.core.names import BASELINE, HEADLINE_METRIC, MONOTONIC
from utils.reports.cause_sentences import attribution_over_seeds, attribution_sentence, matched_sentence
from utils.reports.measure_words import NAMES, TITLES, change, level
from utils.reports.table import TITLES as SET_TITLES
from utils.reports.table import p_value, signed

LIMITS = (
    "One training seed: differences between trainings are not in these intervals. Treat the result as preliminary.",
    "ROUGE compares words with one reference; it does not measure whether a summary is true.",
    "White-box attacks of this budget were tried; a model they do not break may break under another attack.",
)
ONE_PAIR = "For this pair of trainings"


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
    """The sentences of one seed, and the figures behind them."""
    worst = given(findings.hotflip.comparisons.baseline_vs_monotonic_worst_case)
    measures = outcomes(worst)
    measure = measure_read(measures)
    attacked, alpha, margin = findings.data.attack_dataset, 1 - findings.confidence, findings.quality_margin
    compared = findings.evaluation.comparisons[attacked][HEADLINE_METRIC]
    quality = PairedTest(**{name: value for name, value in vars(compared).items() if name != "against_standard"})
    title = findings.data.sets[attacked].title
    not_worse = exceeds(quality.n, quality.difference, quality.sd, -margin)
    return Verdict(
        attack=attack_sentence(findings.hotflip, alpha),
        cost=cost_sentence(ONE_PAIR, title, outcome(quality), not_worse, margin, alpha)
        if quality.n > 1
        else f"On {title} nothing can be said about the cost: fewer than two summaries were compared.",
        matched=matched_sentence(findings.matched, measure, findings.confidence),
        attribution=attribution_sentence(
            findings.attribution, findings.matched, measure, shown=measures[measure].shown(alpha)
        ),
        triggers=triggers_sentence(findings.uat, alpha),
        doubt=doubt_sentence(findings.warnings),
        measure=measure,
        primary=worst.success,
        quality=quality,
        non_inferiority_p=not_worse,
    )


def attack_sentence(hotflip: HotFlipResults, alpha: float) -> str:
    """Whether monotonic is harder to attack than baseline in one seed."""
    worst = given(hotflip.comparisons.baseline_vs_monotonic_worst_case)
    if not worst.num_common:
        return "The attacks say nothing: no example could be attacked on both baseline and monotonic."
    more = {"success of HotFlip alone": outcome(given(hotflip.comparisons.baseline_vs_monotonic).success)}
    return answer(ONE_PAIR, outcomes(worst), more, f"on {worst.num_common} common examples", alpha)


def answer(scope: str, found: Mapping[Measure, Outcome], more: Mapping[str, Outcome], basis: str, alpha: float) -> str:
    """The attack sentence: measures that cannot tell the models apart, the first that can, and all in one line.

    scope: what the answer is about; basis: which examples; more: further shares of success, for the line.
    """
    sentences = []
    for measure, one in found.items():
        limit = saturation(measure, one)
        if not limit:
            break
        levels = f"monotonic {level(measure, one.b)}, baseline {level(measure, one.a)}"
        title = TITLES[measure]
        sentences.append(f"{title[0].upper()}{title[1:]} is at its {limit}: {levels}; it cannot tell the models apart.")
    measure = measure_read(found)
    one = found[measure]
    sentences.append(
        f"{scope} monotonic is {direction(one.difference, one.shown(alpha))} to attack than baseline by "
        f"{TITLES[measure]}: {level(measure, one.b)} on monotonic against {level(measure, one.a)} on baseline, "
        f"{change(measure, one)} {basis} ({ps(one)})."
    )
    line = [f"{NAMES[measure]} {change(measure, one)} ({ps(one)})" for measure, one in found.items()]
    line += [f"{name} {change('success', one)} ({ps(one)})" for name, one in more.items()]
    return " ".join([*sentences, f"All measures, monotonic minus baseline: {'; '.join(line)}."])


def direction(difference: float, shown: bool) -> str:
    """Less success, drop or loss rise of monotonic (b) makes it the harder one."""
    if not shown:
        return "not shown to be harder or easier"
    return "harder" if difference < 0 else "easier"


def ps(one: Outcome) -> str:
    """The raw p-value, and the corrected one beside it."""
    words = [p_value(p) for p in (one.p_value, one.p_value_holm) if p is not None]
    raw = f"p {words[0]}" if words[0].startswith("<") else f"p = {words[0]}"
    return raw if len(words) == 1 else f"{raw}, Holm {words[1]}"


def cost_sentence(scope: str, title: str, one: Outcome, not_worse: float, margin: float, alpha: float) -> str:
    """What the constraint costs in ROUGE-L: the direction if it is shown, and the loss that is ruled out.

    not_worse: one-sided p-value of a loss of at least `margin`. It is decided at half of alpha, as by the interval.
    """
    words = "not shown to differ from"
    if one.shown(alpha):
        words = "lower than" if one.difference < 0 else "higher than"
    ruled_out = f"a loss of more than {max(-one.lower, 0.0):.4f} is ruled out"
    if one.lower >= 0 and one.shown(alpha):
        ruled_out = "any loss is ruled out"
    kept = one.lower > -margin and not_worse < alpha / 2
    p = "p < 0.001" if not_worse < 0.001 else f"p = {not_worse:.3f}"
    return (
        f"{scope} monotonic's ROUGE-L on {title} is {words} baseline's: "
        f"{signed(one.difference, [one.lower, one.upper], digits=4)} ({ps(one)}); {ruled_out}. Not worse than baseline "
        f"by more than the margin of {margin:g}: {'shown' if kept else 'not shown'} (one-sided {p})."
    )


def triggers_sentence(uat: TriggerResults, alpha: float) -> str:
    """The worst universal trigger of both trained models, chosen on held-out text, and their difference."""
    tests = uat.worst_comparison
    if tests is None:
        return "No universal trigger was measured."
    if not tests.num_common:
        return "Universal triggers say nothing: no example could be attacked on both baseline and monotonic."
    kinds = {model: str(uat.models[model].worst.worst_type) for model in (BASELINE, MONOTONIC)}
    one = outcome(tests.delta_rougeL)
    sentence = compared_triggers(
        ONE_PAIR,
        one,
        {model: f" ({kind})" for model, kind in kinds.items()},
        f"on {tests.num_common} common examples",
        alpha,
    )
    spared = MONOTONIC if one.difference > 0 else BASELINE
    if one.shown(alpha) and stronger_elsewhere(uat, spared, kinds[spared]):
        # Less harm to a model on which another one's trigger is stronger than its own may be the search's failure.
        sentence += (
            f" But on {spared} a {kinds[spared]} trigger from another search is stronger (see the doubts): the "
            "difference may be of the searches."
        )
    return sentence


def compared_triggers(scope: str, one: Outcome, kinds: Mapping[str, str], basis: str, alpha: float) -> str:
    """Changes of ROUGE-L by triggers: below zero they do harm, so a difference above zero is less harm to monotonic."""
    words = "are not shown to harm one of the models more than the other"
    if one.shown(alpha):
        words = f"harm monotonic {'less' if one.difference > 0 else 'more'} than baseline"
    return (
        f"{scope} universal triggers, each model's chosen on held-out text, {words}: ROUGE-L changes by {one.b:+.3f} "
        f"on monotonic{kinds[MONOTONIC]} and by {one.a:+.3f} on baseline{kinds[BASELINE]}, a difference of "
        f"{signed(one.difference, [one.lower, one.upper])} {basis} ({ps(one)})."
    )


def doubt_sentence(warnings: Sequence[AttackWarning]) -> str:
    """The gravest doubt (they are ranked); empty without any."""
    if not warnings:
        return ""
    first = warnings[0]
    count = f"First of {len(warnings)} doubts" if len(warnings) > 1 else "One doubt"
    return f"{count}, about {first.model}: {first.message}."


def verdict_over_seeds(results: SeedResults) -> Sentences:
    """The answer over seeds. Only what is tested over seeds and examples together decides."""
    alpha, seeds = 1 - results.confidence, len(results.seeds)
    tests = results.monotonic_minus_baseline
    scope = f"Over {seeds} seeds"
    return Sentences(
        attack=_attack_over_seeds(results, scope, alpha),
        cost=_cost_over_seeds(results, scope, alpha),
        attribution=attribution_over_seeds(results),
        triggers=_triggers_over_seeds(tests.get(WORST_TRIGGER), scope, seeds, alpha),
        doubt=_doubt_over_seeds(results),
    )


def _attack_over_seeds(results: SeedResults, scope: str, alpha: float) -> str:
    tests = results.monotonic_minus_baseline
    found = outcomes_over_seeds(tests)
    if results.measure is None:
        return (
            f"{scope} the attacks say nothing: fewer than two examples could be attacked on both models in every seed."
        )
    alone = tests[HOTFLIP_SUCCESS].outcome()
    more = {} if alone is None else {"success of HotFlip alone": alone}
    read = tests[WORST[results.measure]]
    return answer(scope, found, more, basis_over_seeds(read, len(results.seeds)), alpha)


def basis_over_seeds(test: SeedTest, seeds: int) -> str:
    """Which examples, and in how many seeds the difference points the same way."""
    left_out = f" ({test.num_left_out} usable in some seeds only are left out)" if test.num_left_out else ""
    return f"on {test.num_common} examples common to all seeds{left_out}, of this sign in {test.agree} of {seeds} seeds"


def _cost_over_seeds(results: SeedResults, scope: str, alpha: float) -> str:
    test = results.monotonic_minus_baseline[of_set(results.attack_dataset)]
    one, title = test.outcome(), SET_TITLES.get(results.attack_dataset, results.attack_dataset)
    if one is None:
        return f"{scope} nothing can be said about the cost: fewer than two summaries of {title} are common to them."
    not_worse = given(results.non_inferiority_p)
    sentence = cost_sentence(scope, title, one, not_worse, results.quality_margin, alpha)
    return f"{sentence} The difference has this sign in {test.agree} of {len(results.seeds)} seeds."


def _triggers_over_seeds(test: SeedTest | None, scope: str, seeds: int, alpha: float) -> str:
    one = None if test is None else test.outcome()
    if test is None or one is None:
        return f"{scope} no universal trigger can be compared."
    kinds = dict.fromkeys((BASELINE, MONOTONIC), "")
    return compared_triggers(scope, one, kinds, basis_over_seeds(test, seeds), alpha)


def _doubt_over_seeds(results: SeedResults) -> str:
    """The gravest doubt of any seed, and in which seeds it was raised."""
    raised = [warning for warnings in results.warnings.values() for warning in warnings]
    if not raised:
        return ""
    first = ranked(raised)[0]
    its = next(seed for seed, warnings in results.warnings.items() if first in warnings)
    same = [
        seed
        for seed, warnings in results.warnings.items()
        if seed != its and any((w.model, w.warning) == (first.model, first.warning) for w in warnings)
    ]
    others = f" The same check raised doubts in seed {', '.join(same)}." if same else ""
    return f"First of the doubts, about {first.model} in seed {its}: {first.message}.{others}"
