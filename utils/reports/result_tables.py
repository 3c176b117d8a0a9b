"""What the experiment found, as tables: quality, HotFlip, universal triggers, and the checks of the attacks."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from utils.analysis.comparisons import PairedTest, Test
from utils.analysis.final import FinalResults
from utils.analysis.measures import relative_gain
from utils.analysis.records import given
from utils.analysis.results import HotFlipFigures, TriggerCell
from utils.analysis.suite_records import WorstCase
from utils.core.names import MODEL_KEYS, STANDARD, TRAINED_KEYS
from utils.reports.table import NOT_AVAILABLE, Table, interval, p_value, percent, set_titles, signed

SHOWN_METRICS = ("rouge1", "rouge2", "rougeL")
METRIC_TITLES = {"rouge1": "ROUGE-1", "rouge2": "ROUGE-2", "rougeL": "ROUGE-L", "rougeLsum": "ROUGE-Lsum"}


def quality(results: FinalResults) -> Table:
    rows: list[tuple[str, ...]] = []
    sizes = []
    for key, title in set_titles(results).items():
        cells = results.evaluation.datasets.get(key)
        if cells is None:
            rows += [(f"{title} {model}", *(NOT_AVAILABLE,) * 3) for model in MODEL_KEYS]
            continue
        sizes.append(f"{title} {cells[STANDARD].num_examples:,}")
        for model in MODEL_KEYS:
            rows.append((f"{title} {model}", *(interval(getattr(cells[model], metric)) for metric in SHOWN_METRICS)))
        rows.append((f"{title} lead-3", *(f"{lead3(results, key)[metric]:.3f}" for metric in SHOWN_METRICS)))
    return Table(
        "rouge",
        f"ROUGE F with {level(results)} bootstrap intervals",
        ("data set, model", "ROUGE-1", "ROUGE-2", "ROUGE-L"),
        rows,
        f"Intervals are over examples ({', '.join(sizes)}), for this one training. lead-3, no model at all: the first "
        "three sentences (of up to 1,000 articles).",
    )


def lead3(results: FinalResults, key: str) -> dict[str, float]:
    """ROUGE of the first three sentences of a test set's texts, by metric."""
    scores: dict[str, float] = given(results.data.sets[key].splits["test"].sampled)["lead3"]
    return scores


def comparisons(results: FinalResults) -> Table:
    """Monotonic minus baseline, metric by metric."""
    rows: list[tuple[str, ...]] = []
    for key, title in set_titles(results).items():
        cell = results.evaluation.comparisons.get(key)
        if cell is None:
            rows.append((title, *(NOT_AVAILABLE,) * 5))
            continue
        rows += [(f"{title} {name}", *_tested(cell[metric], 4)) for metric, name in METRIC_TITLES.items()]
    return Table(
        "rouge_comparison",
        "ROUGE, monotonic minus baseline, paired",
        ("data set, metric", *_tested_header(results)),
        rows,
        "p: sign-flip permutation test, raw, then Holm-corrected over all rows; a row that repeats another's scores "
        "(one sentence: Lsum is L) does not count. d_z: difference in standard deviations of the differences. "
        "detectable: true difference that four of five such experiments would find at the corrected level.",
    )


def against_standard(results: FinalResults) -> Table:
    """Both fine-tuned models minus the pretrained one, ROUGE-L."""
    rows: list[tuple[str, ...]] = []
    for key, title in set_titles(results).items():
        cell = results.evaluation.comparisons.get(key)
        for model in TRAINED_KEYS:
            tested = _tested(cell["rougeL"].against_standard[model], 4) if cell else (NOT_AVAILABLE,) * 5
            rows.append((f"{title} {model}", *tested))
    return Table(
        "rouge_against_standard",
        "ROUGE-L, fine-tuned minus standard, paired",
        ("data set, model", *_tested_header(results)),
        rows,
        "Holm over both models, all data sets and all four metrics (final_results.json has them).",
    )


def attack_tests(results: FinalResults) -> Table:
    """Monotonic minus baseline on examples that both could lose something on."""
    compared = results.hotflip.comparisons
    attacks = {
        "worst case": given(compared.baseline_vs_monotonic_worst_case),
        "HotFlip": given(compared.baseline_vs_monotonic),
        **compared.controls_baseline_vs_monotonic,
    }
    attacks |= {f"trigger {kind}": tests for kind, tests in results.uat.comparisons.items()}
    rows: list[tuple[str, ...]] = []
    for name, tests in attacks.items():
        success = tests.success
        bounds = [100 * success.lower, 100 * success.upper]
        points = signed(100 * success.difference, bounds, digits=1) if success.n else NOT_AVAILABLE
        smallest = success.minimum_detectable_difference
        detectable = NOT_AVAILABLE if smallest is None else f"{100 * smallest:.1f}"
        rows.append((f"{name} success, points", points, *_p_values(success), "-", detectable))
        for title, test in (
            ("relative drop", tests.relative_drop),
            ("ROUGE-L change", tests.delta_rougeL),
            ("NLL rise", tests.loss_increase),
            ("NLL rise", tests.nll_increase),
        ):
            if test:
                rows.append((f"{name} {title}", *_tested(test, 3)))
    sizes = ", ".join(f"{name} {tests.num_common}" for name, tests in attacks.items())
    return Table(
        "attack_tests",
        "Attacks, monotonic minus baseline, paired",
        ("attack, figure", *_tested_header(results)),
        rows,
        "Success: McNemar's exact test, Agresti and Min's interval; the others as for ROUGE. Worst-case success is "
        "the primary test, in no family (-). Holm over the worst case's other three, HotFlip's four, those of all "
        f"controls, and those of all triggers. Common examples: {sizes}.",
    )


def _tested_header(results: FinalResults) -> tuple[str, ...]:
    return (f"difference [{level(results)}]", "p", "p (Holm)", "d_z", "detectable")


def _tested(test: PairedTest, digits: int) -> tuple[str, ...]:
    smallest = test.minimum_detectable_difference
    return (
        signed(test.difference, [test.lower, test.upper], digits=digits),
        *_p_values(test),
        signed(test.cohens_dz, digits=2),
        NOT_AVAILABLE if smallest is None else f"{smallest:.{digits}f}",
    )


def _p_values(test: Test) -> tuple[str, str]:
    """Raw, and corrected over the family that the test belongs to."""
    return p_value(test.p_value), "-" if test.p_value_holm is None else p_value(test.p_value_holm)


def level(results: FinalResults) -> str:
    """The confidence of every interval, such as 95 %."""
    return f"{100 * results.confidence:g} %"


def hotflip(results: FinalResults) -> Table:
    rows: list[tuple[str, ...]] = []
    for model in MODEL_KEYS:
        cell = results.hotflip.models[model]
        rows.append(
            (
                model,
                percent(cell.success_rate, cell.success_rate_ci),
                percent(cell.mean_degradation, cell.mean_degradation_ci),
                signed(cell.mean_loss_increase, cell.mean_loss_increase_ci),
                f"{cell.num_attackable}",
                f"{cell.num_skipped}",
            )
        )
    return Table(
        "hotflip",
        "HotFlip",
        ("model", f"success [{level(results)}]", "ROUGE-L drop", "NLL rise, nats", "attacked", "skipped"),
        rows,
        "Success: relative ROUGE-L drop of at least the threshold. Skipped: nothing to lose, or nothing to change.",
    )


def hotflip_controls(results: FinalResults) -> Table:
    """Each attack, arm and control in a row: success on each model, and share of flips on words of the reference."""
    cells = [results.hotflip.models[model] for model in MODEL_KEYS]
    names = list(dict.fromkeys(name for cell in cells for name in cell.controls))
    found: dict[str, list[HotFlipFigures | WorstCase | None]] = {"attack": [*cells]}
    found |= {name: [cell.controls.get(name) for cell in cells] for name in names}
    found["worst case"] = [cell.worst_case for cell in cells]
    found["noise floor"] = [cell.noise_floor for cell in cells]
    rows = [
        (name, *(percent(figures.success_rate) if figures else NOT_AVAILABLE for figures in row))
        for name, row in found.items()
    ]
    shares = [(cell.found_of_possible and cell.found_of_possible.by_loss) for cell in cells]
    rows.append(("found of possible", *(percent(share.mean) if share else NOT_AVAILABLE for share in shares)))
    rows.append(("flips on reference words", *(percent(cell.reference_flip_share) for cell in cells)))
    return Table(
        "hotflip_controls",
        "HotFlip success beside other attacks and controls",
        ("attack", *MODEL_KEYS),
        rows,
        "greedy, own_output, metric, word_importance: the suite, with flips found on other models; worst case: its "
        "strongest legal attack example by example. random, random_metric: the strongest of as many random attacks by "
        "loss and by ROUGE-L; noise floor: the stronger of both. one_shot: one gradient, unverified; unchanged: the "
        "clean text again; all_replaced: every token changed; reference_words: random flips in words of the reference, "
        "no query; protected: HotFlip with these words kept; typo: single edits inside words; double: twice the "
        "candidates, on a tenth of the examples; found of possible: the first flip's loss rise beside the best of all.",
    )


def hotflip_transfer(results: FinalResults) -> Table:
    matrix = results.hotflip.transfer_matrix
    rows = [(source, *(percent(matrix[source][target].success_rate) for target in MODEL_KEYS)) for source in MODEL_KEYS]
    return Table(
        "hotflip_transfer",
        "HotFlip success, flips found on (row) and read by (column)",
        ("found on", *MODEL_KEYS),
        rows,
    )


def hotflip_budget(results: FinalResults) -> Table:
    """Success as ever more tokens may change: within the budget on all examples, beyond it on a sample."""
    curves: dict[str, dict[int | None, float]] = {}
    for model in MODEL_KEYS:
        cell = results.hotflip.models[model]
        within: dict[int | None, float] = {point.flips: point.success_rate for point in cell.budget_curve or ()}
        # The first point of the long curve is the attack's own, on the sample.
        curves[model] = within | {point.flips: point.success_rate for point in (cell.long_budget_curve or ())[1:]}
    flips = list(dict.fromkeys(number for curve in curves.values() for number in curve))
    flips.sort(key=lambda number: (number is None, number))
    return Table(
        "hotflip_budget",
        "HotFlip success by tokens that may change",
        ("model", *("all" if number is None else str(number) for number in flips)),
        [(model, *(percent(curve.get(number)) for number in flips)) for model, curve in curves.items()],
        "Beyond the attack's budget: on a sample, many tokens at a time. An attack that does not come near "
        "100 % with all tokens open is broken, or the threshold is.",
    )


def triggers(results: FinalResults) -> Table:
    rows: list[tuple[str, ...]] = [
        (
            f"{model} {kind}",
            signed(cell.delta_rougeL, cell.delta_rougeL_ci),
            signed(cell.nll_increase),
            percent(cell.success_rate),
            cell.trigger_text,
        )
        for model, kind, cell in trigger_cells(results)
    ]
    worst = [f"{model} {results.uat.models[model].worst.worst_type or 'none'}" for model in MODEL_KEYS]
    return Table(
        "triggers",
        "Universal triggers",
        ("model, type", f"ROUGE-L change [{level(results)}]", "NLL rise", "success", "trigger"),
        rows,
        "Changes against the same inputs without trigger. lead: after the task prefix; instruction: before it; tail: "
        "end of the visible text; infix: at a random sentence boundary; natural: lead of whole lowercase words. "
        f"Worst type by ROUGE-L: {', '.join(worst)}.",
    )


def trigger_controls(results: FinalResults) -> Table:
    rows: list[tuple[str, ...]] = []
    for model, kind, cell in trigger_cells(results):
        controls = (cell.random_control, cell.gradient_free_control)
        rises = ["-" if control is None else signed(control.nll_increase) for control in controls]
        done = "yes" if cell.converged else "no"
        rows.append((f"{model} {kind}", signed(cell.nll_increase, cell.nll_increase_ci), *rises, done))
    found = {model: results.uat.models[model].found_of_possible for model in MODEL_KEYS}
    shares = [f"{model} {percent(one.mean, (one.lower, one.upper))}" for model, one in found.items() if one]
    return Table(
        "trigger_controls",
        "NLL rise by triggers beside their controls, nats per token",
        ("model, type", f"found by gradient [{level(results)}]", "random", "gradient-free", "converged"),
        rows,
        "random: the best of several random triggers; gradient-free: coordinate search by random candidates of equal "
        "cost (-: not run for this type); converged: the second half of the search gained next to nothing."
        + (
            f" Share of the rise with the best last token that the triggers reach: {', '.join(shares)}."
            if shares
            else ""
        ),
    )


def trigger_cells(results: FinalResults) -> Iterator[tuple[str, str, TriggerCell]]:
    """(model, type, cell) of every trigger."""
    for model in MODEL_KEYS:
        for kind, cell in results.uat.models[model].types.items():
            yield model, kind, cell


def trigger_transfer(results: FinalResults) -> Table:
    matrix = results.uat.transfer_matrix
    rows: list[tuple[str, ...]] = [
        (f"{kind}, {source}", *(signed(matrix[kind][source][target].nll_increase) for target in MODEL_KEYS))
        for kind in matrix
        for source in MODEL_KEYS
    ]
    return Table(
        "trigger_transfer",
        "NLL rise of triggers found on (row) and read by (column)",
        ("type, found on", *MODEL_KEYS),
        rows,
    )


def checks(results: FinalResults) -> Table:
    """The battery that tells a robust model from one whose gradients mislead the attack."""
    rows: list[tuple[str, ...]] = []
    for model in MODEL_KEYS:
        cell, tests = results.hotflip.models[model], results.hotflip.comparisons.attack_minus_control[model]
        fidelity = cell.taylor_fidelity_spearman.mean if cell.taylor_fidelity_spearman else None
        gained = tests["double"].loss_increase if "double" in tests and tests["double"].num_common else None
        more = relative_gain(gained.mean_b, gained.mean_a) if gained else None
        curve = [point.success_rate for point in cell.budget_curve or ()]
        grows = all(later >= earlier for earlier, later in itertools.pairwise(curve))
        zero, all_replaced = cell.zero_gradient_count, cell.controls.get("all_replaced")
        rows.append(
            (
                model,
                f"{cell.gradient_norm.median:.3g}" if cell.gradient_norm else NOT_AVAILABLE,
                NOT_AVAILABLE if zero is None else str(zero),
                NOT_AVAILABLE if fidelity is None else f"{fidelity:+.2f}",
                NOT_AVAILABLE if not curve else "yes" if grows else "no",
                NOT_AVAILABLE if more is None else f"{100 * more:+.1f} %",
                percent(all_replaced.success_rate) if all_replaced else NOT_AVAILABLE,
            )
        )
    return Table(
        "hotflip_checks",
        "Is it robust, or are its gradients masked?",
        ("model", "gradient norm", "zero", "Taylor", "grows", "doubled", "all replaced"),
        rows,
        "gradient norm: median over the input; zero: inputs without any gradient; Taylor: Spearman correlation of "
        "predicted and exact gain; grows: success never falls with more flips; doubled: what twice the candidates add "
        "to the loss gain; all replaced: success when every token is changed.",
    )
