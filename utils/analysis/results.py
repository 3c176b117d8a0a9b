"""What evaluation and attacks found: the records behind their three result files.

ROUGE, rates and shares are from 0 to 1, losses in nats per token. Intervals have the `confidence` of the final results.
Two sides are a and b; every difference is b minus a. Torch-free.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from utils.analysis.comparisons import Advantage, AttackTests, AttackWarning, Interval, PairedTest
from utils.analysis.records import Count, Loss, RandomTrigger, Score, Share, TriggerFound, TriggerSearchFacts
from utils.analysis.suite_records import FoundOfPossible, NoiseFloor, SuiteMember, WorstCase
from utils.core.codec import Inline, Keys, Range
from utils.core.names import ARMS, METRICS, MODEL_KEYS, STANDARD, TRAINED_KEYS, TRIGGER_TYPES

Models = Keys((STANDARD, *ARMS), required=MODEL_KEYS)
Types = Keys(TRIGGER_TYPES)
# What stands beside HotFlip on each model: other attacks, and controls.
CONTROLS = (
    "random",
    "random_metric",
    "greedy",
    "metric",
    "word_importance",
    "one_shot",
    "all_replaced",
    "own_output",
    "reference",
    "reference_words",
    "protected",
    "typo",
    "unchanged",
    "double",
)
Bounds = Annotated[tuple[float, float], "[lower, upper] of an interval at `confidence`"]
Seconds = Annotated[float, Range(0)]


@dataclass(frozen=True, kw_only=True)
class Lengths:
    """Words of the summaries."""

    mean: float
    min: Count
    max: Count


@dataclass(frozen=True, kw_only=True)
class MeanLength:
    """Words of the references."""

    mean: float


@dataclass(frozen=True, kw_only=True)
class Sameness:
    """Words that summaries of different documents share (mean Jaccard index), on up to 200 of them."""

    n: Count
    shared: Annotated[Share, "by the model's summaries"]
    shared_by_references: Share
    sd: Annotated[float, Range(0), "of the differences, summary by summary"]


@dataclass(frozen=True, kw_only=True)
class RougeCell:
    """One model on one test set."""

    rouge1: Interval
    rouge2: Interval
    rougeL: Interval
    rougeLsum: Interval
    num_examples: Annotated[Count, "summaries scored"]
    length: Lengths
    reference_length: MeanLength
    brevity: Annotated[float, Range(0), "words of all summaries per word of all references"]
    empty_summaries: Annotated[Count, "without a word"]
    looping_summaries: Annotated[Count, "of six words or more, most of them repeats"]
    sameness: Annotated[Sameness | None, "null for fewer than two summaries"]
    seconds: Annotated[Seconds | None, "generation and nothing else; with TRACK_INFERENCE_TIME"] = None
    seconds_per_summary: Seconds | None = None


@dataclass(frozen=True, kw_only=True)
class RougeComparison(PairedTest):
    """Baseline (a) and monotonic (b) by one metric; in `against_standard`, standard (a) and each of them (b)."""

    against_standard: Annotated[dict[str, PairedTest], Keys(TRAINED_KEYS, TRAINED_KEYS)]


@dataclass(frozen=True, kw_only=True)
class EvaluationResults:
    """ROUGE by data set, then model."""

    datasets: Annotated[dict[str, Annotated[dict[str, RougeCell], Models]], Inline]
    comparisons: Annotated[
        dict[str, Annotated[dict[str, RougeComparison], Keys(METRICS, METRICS)]],
        "data set, then metric; Holm over two families: baseline against monotonic, and both against standard",
    ]


@dataclass(frozen=True, kw_only=True)
class AttackFigures:
    """What an attack did to one model, over attackable examples. Without any, most of it is null or left out."""

    num_examples: Annotated[Count, "drawn"]
    num_attackable: Annotated[Count, "of these, with something to lose and to change"]
    num_skipped: Annotated[Count, "not attacked"]
    skipped: Annotated[dict[str, Count], "why, and how many"]
    threshold: Annotated[Share, "relative ROUGE-L drop that counts as success"]
    success_rate: Annotated[Share | None, "share of the attackable; null where there are none"]
    success_rate_ci: Annotated[Bounds | None, "Wilson's score interval"] = None
    improved_rate: Annotated[Share | None, "whose ROUGE-L rose by the threshold: how much of success is noise"] = None
    success_by_threshold: Annotated[dict[str, Share] | None, "success at other thresholds, 0.05 to 0.50"] = None
    mean_degradation: Annotated[float | None, "mean relative ROUGE-L drop"]
    mean_degradation_ci: Bounds | None = None
    delta_rougeL_ci: Bounds | None = None


@dataclass(frozen=True, kw_only=True)
class Norms:
    """Gradient norms over examples, of the loss by the embeddings."""

    mean: float
    median: float
    min: float


@dataclass(frozen=True, kw_only=True)
class Fidelity:
    """Spearman correlation of first-order and exact gains over random legal flips."""

    pooled: Annotated[float | None, "over all pairs"]
    mean: Annotated[float | None, "over examples"]
    sd: Annotated[float, Range(0), "over examples"]
    examples: Annotated[Count, "with a correlation of their own"]
    pairs: Count


@dataclass(frozen=True, kw_only=True)
class BudgetPoint:
    """The attack after so many flips."""

    flips: Count
    success_rate: Share
    mean_degradation: float
    mean_loss_increase: Annotated[Loss, "nats per token"]
    success_rate_best_so_far: Annotated[Share, "the attacker stops at the best number of flips"]


@dataclass(frozen=True, kw_only=True)
class LongBudgetPoint:
    """The attack beyond its budget, on a part of the examples."""

    flips: Annotated[Count | None, "null: every token may change"]
    num_examples: Count
    perturbed_share: Annotated[Share, "of the text"]
    success_rate: Share
    mean_degradation: float
    mean_loss_increase: Annotated[Loss, "nats per token"]


@dataclass(frozen=True, kw_only=True)
class HotFlipFigures(AttackFigures):
    """HotFlip, or one of its controls, on one model. What only a search has is left out for the others."""

    num_short_articles: Annotated[Count, "attackable, with fewer tokens than flips"]
    median_degradation: float | None = None
    clean_rougeL: Score | None = None
    attacked_rougeL: Score | None = None
    delta_rougeL: Annotated[float | None, "attacked minus clean"] = None
    mean_loss_increase: Annotated[Loss | None, "NLL rise, nats per token"]
    mean_loss_increase_ci: Bounds | None = None
    mean_clean_loss: Annotated[Loss | None, "nats per token"] = None
    relative_loss_increase: Annotated[float | None, "share of the clean loss"] = None
    budget_curve: Annotated[list[BudgetPoint] | None, "after 1, 2, ... flips"] = None
    mean_flips: Annotated[float | None, "tokens changed"] = None
    perturbed_token_share: Annotated[Share | None, "of the text"] = None
    mean_queries: Annotated[float | None, "exact scores of candidates per example"] = None
    mean_gradients: Annotated[float | None, "per example"] = None
    seconds: Annotated[Seconds | None, "search, summaries excluded"] = None
    gradient_norm: Annotated[Norms | None, "left out where none was measured"] = None
    zero_gradient_count: Annotated[Count | None, "inputs without any gradient"] = None
    taylor_fidelity_spearman: Fidelity | None = None
    typable_count: Annotated[Count | None, "attacked texts that are read as the attacked ids when typed"] = None
    bad_losses: Annotated[Count | None, "candidates whose loss was not finite"] = None
    retried_gradients: Annotated[Count | None, "not finite, computed again in float32"] = None
    bad_gradients: Annotated[Count | None, "not finite then either: taken for zero; beyond 1 % the stage fails"] = None
    mean_generations: Annotated[float | None, "summaries per example that chose between candidates"] = None
    reference_flip_share: Annotated[Share | None, "of the flips: in content words of the reference"] = None


@dataclass(frozen=True, kw_only=True)
class HotFlipCell(HotFlipFigures):
    """HotFlip on one model, with its controls."""

    controls: Annotated[
        dict[str, HotFlipFigures],
        Keys(CONTROLS),
        "random: strongest by loss of as many random attacks as the attack makes passes; random_metric: strongest by "
        "ROUGE-L of as many as metric generates summaries; greedy: gradient-free search with equal passes; metric, "
        "word_importance: chosen by generated ROUGE-L, with and without gradients; one_shot: one gradient, unverified; "
        "all_replaced: every token changed; own_output: on the loss of the model's own summary (reference: where the "
        "attack is on that); reference_words: random flips in words of the reference, no query; protected: the attack "
        "with these words kept; typo: one edit inside a word, chosen by generated ROUGE-L; unchanged: the clean "
        "text again; double: twice the candidates, on a part of the examples",
    ]
    long_budget_curve: Annotated[list[LongBudgetPoint] | None, "beyond the budget, on a part of the examples"] = None
    suite: Annotated[
        dict[str, SuiteMember],
        "gradient: the attack above; greedy; own_output or reference: by the other loss; metric; word_importance; "
        "transfer: flips found on other models, the strongest of each example",
    ]
    worst_case: Annotated[WorstCase, "the strongest legal attack of the suite, example by example"]
    noise_floor: Annotated[NoiseFloor | None, "left out without controls"] = None
    found_of_possible: Annotated[FoundOfPossible | None, "on CEILING_EXAMPLES; left out without controls"] = None


@dataclass(frozen=True, kw_only=True)
class HotFlipTransfer:
    """Flips found on one model, on another."""

    num_attackable: Count
    success_rate: Share | None
    success_rate_ci: Bounds | None = None
    mean_degradation: float | None
    mean_loss_increase: Annotated[Loss | None, "nats per token"]
    advantage: Annotated[Advantage | None, "of these flips over those found on the reader itself"] = None


@dataclass(frozen=True, kw_only=True)
class HotFlipComparisons:
    """First named (a), second named (b); Holm over the four tests of each."""

    attack_minus_control: Annotated[
        dict[str, dict[str, AttackTests]], Models, "model, then control: control (a) and attack (b)"
    ]
    baseline_vs_monotonic: AttackTests | None = None
    baseline_vs_monotonic_worst_case: Annotated[
        AttackTests | None,
        "the strongest of all attacks, example by example: `success` is the primary test, in no family; Holm over the "
        "other three",
    ] = None
    controls_baseline_vs_monotonic: Annotated[
        dict[str, AttackTests], "control, of baseline (a) and monotonic (b); Holm over all tests of all controls"
    ]
    found_of_possible_baseline_vs_monotonic: Annotated[
        PairedTest | None, "share of the largest loss rise that the first flip finds, baseline (a) and monotonic (b)"
    ] = None
    standard_vs_baseline: AttackTests | None = None
    standard_vs_monotonic: AttackTests | None = None


@dataclass(frozen=True, kw_only=True)
class HotFlipResults:
    """HotFlip by model."""

    models: Annotated[dict[str, HotFlipCell], Inline, Models]
    transfer_matrix: Annotated[
        dict[str, Annotated[dict[str, HotFlipTransfer], Models]], Models, "found on, then read by"
    ]
    comparisons: HotFlipComparisons
    warnings: list[AttackWarning]


@dataclass(frozen=True, kw_only=True)
class Rouges:
    """ROUGE F-measures over examples."""

    rouge1: Interval
    rouge2: Interval
    rougeL: Interval


@dataclass(frozen=True, kw_only=True)
class TriggerFigures(AttackFigures):
    """One trigger on one model. ROUGE and losses are over all usable examples, success over attackable ones."""

    clean: Rouges | None
    attacked: Rouges | None
    delta_rougeL: Annotated[float | None, "attacked minus clean, all usable examples"]
    nll_increase: Annotated[Loss | None, "NLL rise, nats per token"]
    nll_increase_ci: Bounds | None = None
    clean_nll: Annotated[Loss | None, "nats per token"] = None
    typable_count: Annotated[Count | None, "attacked texts that are read as the attacked ids when typed"] = None
    num_usable: Annotated[Count | None, "with finite losses"] = None
    num_one_sentence: Annotated[Count | None, "texts of one sentence: infix has one place"] = None


@dataclass(frozen=True, kw_only=True)
class RandomControl(RandomTrigger, TriggerFigures):
    """The best of several random triggers."""


@dataclass(frozen=True, kw_only=True)
class GradientFreeControl(TriggerFound, TriggerFigures):
    """A search by random candidates of equal cost."""

    forward_rows: Annotated[Count, "examples through the model"]
    advantage: Annotated[Advantage | None, "over the trigger found by gradient"] = None


@dataclass(frozen=True, kw_only=True)
class SecondHalf:
    """What the second half of a search's iterations added, on common examples."""

    num_common: Count
    success_change: Annotated[float | None, "of the success rate"]
    nll_change: Annotated[Loss | None, "of the NLL rise, nats per token"]
    advantage: Annotated[Advantage | None, "of the whole search over its first half"] = None


@dataclass(frozen=True, kw_only=True)
class TriggerCell(TriggerSearchFacts, TriggerFigures):
    """One trigger type on one model."""

    random_control: RandomControl
    gradient_free_control: Annotated[GradientFreeControl | None, "for some types only"] = None
    control_comparison: Annotated[AttackTests, "random control (a) and trigger (b)"]
    surrogate_comparison: Annotated[AttackTests, "random control (a) and the learned trigger of largest dev_gain (b)"]
    halfway: Annotated[SecondHalf | None, "null where the second half found nothing better"]


@dataclass(frozen=True, kw_only=True)
class WorstPerExample(WorstCase):
    """The worst trigger type of each example."""

    delta_rougeL: float | None


@dataclass(frozen=True, kw_only=True)
class WorstTrigger:
    """The worst of several trigger types."""

    worst_type: Annotated[
        str | None, "that lowers ROUGE-L most on held-out text (`dev_rouge_change`); null: no type was searched"
    ]
    per_example: WorstPerExample


@dataclass(frozen=True, kw_only=True)
class ModelTriggers:
    """All trigger types on one model."""

    types: Annotated[dict[str, TriggerCell], Inline, Types]
    worst: WorstTrigger
    found_of_possible: Annotated[
        Interval | None,
        "on CEILING_EXAMPLES held-out texts: NLL rise by the learned trigger, as a share of that with the best of all "
        "tokens in its last slot, which is chosen on these texts (so a lower bound); mean over types",
    ] = None


@dataclass(frozen=True, kw_only=True)
class TriggerTransfer:
    """A trigger found on one model, on another."""

    num_attackable: Count
    success_rate: Share | None
    success_rate_ci: Bounds | None = None
    mean_degradation: float | None
    delta_rougeL: float | None
    delta_rougeL_ci: Bounds | None = None
    nll_increase: Annotated[Loss | None, "nats per token"]
    advantage: Annotated[Advantage | None, "of this trigger over the one found on the reader itself"] = None


@dataclass(frozen=True, kw_only=True)
class TriggerResults:
    """Universal triggers by model, then type."""

    models: Annotated[dict[str, ModelTriggers], Inline, Models]
    transfer_matrix: Annotated[
        dict[str, Annotated[dict[str, Annotated[dict[str, TriggerTransfer], Models]], Models]],
        Types,
        "type, found on, read by",
    ]
    comparisons: Annotated[dict[str, AttackTests], Types, "baseline (a), monotonic (b); Holm over all types"]
    worst_comparison: Annotated[
        AttackTests | None, "baseline (a), monotonic (b), each with its `worst_type`; Holm over the four tests"
    ] = None
    found_of_possible_baseline_vs_monotonic: Annotated[
        PairedTest | None, "share of the best last token's NLL rise that triggers reach, baseline (a) and monotonic (b)"
    ] = None
    warnings: list[AttackWarning]
