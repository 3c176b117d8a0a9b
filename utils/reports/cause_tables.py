"""Tables about what caused a difference: mechanism panels, control arms, equal quality."""

from __future__ import annotations

import itertools

from configs.arms import ARMS
from utils.analysis.claims import Measure
from utils.analysis.final import FinalResults
from utils.analysis.mechanism import FIRST_DIRECTION_OF_ABSOLUTE
from utils.core.names import TRAINED_KEYS
from utils.reports.measure_words import NAMES, change, level
from utils.reports.table import NOT_AVAILABLE, Table, p_value, percent, set_titles


def mechanism(results: FinalResults) -> Table:
    """What the feed-forward layers of each model are, and what the model does without them."""
    rows: list[tuple[str, ...]] = [
        (
            model,
            f"{panel.spectral_norm:.3g}",
            f"{panel.stable_rank:.1f}",
            percent(panel.first_direction),
            f"{percent(panel.dead_units)}, {percent(panel.always_on_units)}",
            f"{percent(panel.ffn_change)}, {percent(panel.other_change)}",
            f"{panel.loss:.3f}",
            f"{panel.loss_zeroed - panel.loss:+.3f}",
            f"{panel.loss_rank_one - panel.loss:+.3f}",
            f"{panel.loss_without_rank_one - panel.loss:+.3f}",
            f"{panel.gain.median:.3g}",
            f"{panel.premise.comparable} of {panel.premise.moved}",
        )
        for model, panel in results.mechanism.items()
    ]
    return Table(
        "mechanism",
        "What the feed-forward layers are and do",
        (
            "model",
            "spectral norm",
            "stable rank",
            "first direction",
            "dead, always on",
            "moved: FFN, rest",
            "loss",
            "FFN zero",
            "FFN rank one",
            "without it",
            "gain",
            "comparable",
        ),
        rows,
        "Stable rank and the energy in the first direction are means over the FFN matrices; |W| of a random matrix "
        f"has {100 * FIRST_DIRECTION_OF_ABSOLUTE:.0f} % there (2/pi). Moved: distance from where training started, "
        "over the norm. Loss in nats per token on validation examples, and its rise with every FFN matrix set to zero, "
        "replaced by its best rank-one matrix, or without that. Gain: largest singular value of the Jacobian from "
        "embeddings to logits. Comparable: FFN inputs that a one-token change moves all up or all down, which is the "
        "premise of the monotonicity argument.",
    )


def order(results: FinalResults) -> Table:
    """Whether each model's encoder states carry which sentence says the stronger thing."""
    found = {model: panel.order for model, panel in results.mechanism.items() if panel.order is not None}
    rows = [
        (
            model,
            f"{percent(one.accuracy)} [{100 * one.lower:.0f}, {100 * one.upper:.0f}]",
            percent(one.shuffled),
            p_value(one.p_value),
            percent(one.longer_is_stronger),
        )
        for model, one in found.items()
    ]
    first = next(iter(found.values()))
    return Table(
        "order",
        "Do the encoder's states know the stronger sentence?",
        ("model", "pairs in order", "shuffled labels", "p", "longer is stronger"),
        rows,
        f"{first.num_chains} chains of sentences of growing strength ({first.num_scales} sets of graded words), one "
        "readout of mean states a model, fitted on other topics; pairs where the stronger sentence is the longer and "
        "the shorter one count alike, so that length alone gets 50 %. Interval by resampling sets of words; shuffled "
        "labels: what they stay below in all but the error allowed; p one-sided by them. Longer is stronger: pairs "
        "that length alone gets right when they do not count alike. It says whether order can be read off, not that "
        "the model uses it, nor that it is kept by an attack (docs/arms.md).",
    )


def attribution(results: FinalResults) -> Table:
    """Control arms beside the pair that they explain, each with its tests against both."""
    rows: list[tuple[str, ...]] = []
    measure = results.verdict.measure
    for model in (*TRAINED_KEYS, *results.attribution):
        cells = [results.evaluation.datasets.get(key, {}).get(model) for key in set_titles(results)]
        rouge = [f"{cell.rougeL.mean:.3f}" if cell else NOT_AVAILABLE for cell in cells]
        audit = results.trainings[model].audit
        dose = percent(1 - audit.negative_weight_share) if audit else NOT_AVAILABLE
        worst = percent(results.hotflip.models[model].worst_case.success_rate)
        tests: tuple[str, ...] = ("-",) * 5
        if one := results.attribution.get(model):
            tests = (
                *(p_value(test.p_value_holm) for test in (one.success_vs_baseline, one.success_vs_monotonic)),
                *(p_value(test.p_value_holm) for test in (one.rougeL_vs_baseline, one.rougeL_vs_monotonic)),
                "-" if (share := one.reproduced(measure)) is None else percent(share.share),
            )
        rows.append((model, dose, *rouge, worst, *tests))
    arms = "; ".join(f"{arm}: {ARMS[arm].summary}" for arm in results.attribution)
    return Table(
        "attribution",
        "What did it? Control arms",
        (
            "model",
            "weights >= 0",
            *(f"ROUGE-L {title}" for title in set_titles(results).values()),
            "worst-case success",
            "p: success, baseline",
            "p: success, monotonic",
            "p: ROUGE-L, baseline",
            "p: ROUGE-L, monotonic",
            "reproduced",
        ),
        rows,
        f"Fine-tuned {arms}. p-values against baseline and monotonic are Holm-corrected over all of this table. "
        f"Reproduced: the arm's difference in {NAMES[measure]} from baseline, over monotonic's (-: not shown).",
    )


def quality_curve(results: FinalResults) -> Table:
    """What a small attack does at the clean quality that an arm shares with baseline: success, and where the answer
    reads another measure, that."""
    rows: list[tuple[str, ...]] = []
    measures: list[Measure] = list(dict.fromkeys(("success", results.verdict.measure)))
    for measure, arm in itertools.product(measures, results.matched.against_baseline):
        name, one = NAMES[measure].removeprefix("worst-case "), results.matched.differences(measure)[arm]
        if one is None:
            rows.append((f"{arm}: {name}", *(NOT_AVAILABLE,) * 4))
            continue
        levels = level(measure, one.arm), level(measure, one.baseline)
        rows.append((f"{arm}: {name}", f"{one.quality:.3f}", *levels, change(measure, one)))
    return Table(
        "quality_curve",
        "Attack success at equal quality",
        ("model, measure", "clean ROUGE-L", "model's", "baseline's there", "difference"),
        rows,
        f"A small attack ({results.matched.candidates} candidates a step) on {results.matched.num_examples} examples "
        "and every snapshot of each training; its effect where both curves have the highest ROUGE-L that both reach, "
        "interpolated between snapshots; bootstrap over examples.",
    )
