"""Tests, intervals and doubts: what every result has of them. Two sides are a and b; every difference is b minus a."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from utils.analysis.records import Count, Loss, Share
from utils.core.codec import Range

P = Annotated[float, Range(0, 1), "p-value"]


@dataclass(frozen=True, kw_only=True)
class Interval:
    """Mean of a score from 0 to 1 with its bootstrap interval over examples."""

    mean: Annotated[float, "over examples"]
    lower: float
    upper: float


@dataclass(frozen=True, kw_only=True)
class Test:
    """What every test has; Holm-corrected where it belongs to a family."""

    p_value: P
    p_value_holm: Annotated[P | None, "Holm-corrected over the family"] = None
    family_size: Annotated[Count | None, "tests in the family"] = None


@dataclass(frozen=True, kw_only=True)
class PairedTest(Test):
    """Two sides a and b on the same examples; the difference has the unit of the score.

    `p_value`: sign-flip permutation test.
    """

    n: Annotated[Count, "pairs"]
    mean_a: float
    mean_b: float
    difference: Annotated[float, "mean_b minus mean_a"]
    lower: Annotated[float, "paired percentile bootstrap"]
    upper: float
    sd: Annotated[float, Range(0), "standard deviation of the differences (n - 1)"]
    cohens_dz: Annotated[float, "difference in standard deviations of the differences"]
    minimum_detectable_difference: Annotated[
        float | None,
        "true difference that a t-test of n pairs at the family's own level (Bonferroni) finds in four of five "
        "experiments; null for n < 2",
    ]


@dataclass(frozen=True, kw_only=True)
class SuccessTest(Test):
    """Success of an attack on two sides, example by example. `p_value`: McNemar's exact test."""

    n: Annotated[Count, "common attackable examples"]
    both: Annotated[Count, "attack succeeds on both"]
    only_a: Count
    only_b: Count
    neither: Count
    rate_a: Share
    rate_b: Share
    difference: Annotated[float, Range(-1, 1), "rate_b minus rate_a"]
    lower: Annotated[float, "Agresti and Min 2005"]
    upper: float
    minimum_detectable_difference: Annotated[
        float | None,
        "true difference of the rates that this test at the family's own level (Bonferroni) finds in four of five "
        "experiments; null where n is too small for any",
    ]


@dataclass(frozen=True, kw_only=True)
class AttackWarning:
    """A doubt raised by the checks."""

    model: str
    warning: Annotated[str, "short name of the check"]
    message: str
    rank: Annotated[Count, "1 is the gravest kind of doubt"]
    n: Annotated[Count, "examples it was seen on"]
    p_value: Annotated[P | None, "one-sided, Holm-corrected over what the check looks at; null: nothing to test"]
    margin: Annotated[float | None, "what the test has to exceed, in the unit of the figure"]


@dataclass(frozen=True, kw_only=True)
class Advantage:
    """How much more another attack does than the model's own, example by example on common attackable ones."""

    n: Annotated[Count, "common examples"]
    success: Annotated[float, Range(-1, 1), "its success rate minus the own attack's"]
    success_sd: Annotated[float, Range(0), "of the examples' differences"]
    loss: Annotated[Loss, "its NLL rise minus the own attack's"]
    loss_sd: Annotated[float, Range(0), "of the examples' differences, nats per token"]


@dataclass(frozen=True, kw_only=True)
class AttackTests:
    """Paired tests of two sides (models, or attacks on one model) on examples attackable on both."""

    num_common: Annotated[Count, "examples attackable on both sides"]
    success: SuccessTest
    relative_drop: Annotated[PairedTest, "relative ROUGE-L drop"]
    delta_rougeL: Annotated[PairedTest, "ROUGE-L after minus before"]
    loss_increase: Annotated[PairedTest | None, "HotFlip: NLL rise, nats per token"] = None
    nll_increase: Annotated[PairedTest | None, "triggers: NLL rise, nats per token"] = None
