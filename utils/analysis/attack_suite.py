"""The suite of attacks on one model, its worst case example by example, and the noise floor under it. Torch-free."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from utils.analysis.bootstrap import Resampling, bootstrap_ci
from utils.analysis.comparisons import Interval, PairedTest
from utils.analysis.measures import success_rate
from utils.analysis.records import CeilingRecord, HotFlipRecord, attackable, column, given
from utils.analysis.sections import SectionKey
from utils.analysis.statistics import compare_models
from utils.analysis.suite_records import FoundOfPossible, NoiseFloor, SuiteMember, WorstCase
from utils.core.names import MODEL_KEYS, MONOTONIC

# Member of the suite -> its section. "transfer" has one section for each model that flips were found on.
SUITE = {
    "gradient": "attack",
    "own_output": "own_output",
    "reference": "reference",
    "metric": "metric",
    "greedy": "greedy",
    "word_importance": "word_importance",
}
RANDOM = ("random", "random_metric")  # the same without a search, chosen by loss and by generated ROUGE-L


def members_on(key: str, model_keys: Sequence[str]) -> dict[str, list[SectionKey]]:
    """The sections of every member of the suite that may have been tried on a model."""
    # Every model reads flips of two others: a worst case over more attacks would be larger for that alone.
    # Flips of control arms count on nobody: the figures of a model are the same whichever arms were trained.
    sources = [k for k in MODEL_KEYS if k != key and k in model_keys and (key in MODEL_KEYS or k != MONOTONIC)]
    members = {name: [SectionKey(part, key)] for name, part in SUITE.items()}
    return members | {"transfer": [SectionKey("transfer", key, source=source) for source in sources]}


def attacks_on(key: str, model_keys: Sequence[str]) -> list[SectionKey]:
    """The sections of every attack that may have been tried on a model, flips found on other models included."""
    return [name for names in members_on(key, model_keys).values() for name in names]


def strongest(sections: Mapping[SectionKey, Sequence[Any]], key: str, model_keys: Sequence[str]) -> list[HotFlipRecord]:
    """The worst case of a model, a record for each example: that of the attack that cost it most ROUGE-L.

    Its loss rise is the largest of all attacks, whichever made it. An attacker who sees that every attack raised
    ROUGE-L leaves the text as it is: no drop is below 0.
    """
    worst = worst_of(attacks_on(key, model_keys), sections, key)
    return [record if given(record.relative_drop) >= 0 else _left_alone(record) for record in worst]


def _left_alone(record: HotFlipRecord) -> HotFlipRecord:
    return replace(record, attacked_rougeL=record.clean_rougeL, relative_drop=0.0, success=False)


def worst_of(
    names: Sequence[SectionKey], sections: Mapping[SectionKey, Sequence[Any]], key: str
) -> list[HotFlipRecord]:
    """The strongest legal record of each example in the sections `names`, on the examples of the worst case.

    An attacker whose attacks are all illegal (ids that no text gives) can still do nothing at all.
    """
    common = suite_examples(sections, key)
    worst: dict[str, HotFlipRecord] = {}
    rises: dict[str, float] = {}
    present = [record for name in names for record in attackable(sections.get(name, ())) if record.id in common]
    for record in present:
        if record.legal is False:
            continue
        if record.id not in worst or given(record.relative_drop) > given(worst[record.id].relative_drop):
            worst[record.id] = record
        rises[record.id] = max(rises.get(record.id, -np.inf), given(record.loss_increase))
    for record in present:
        if record.id not in worst:
            worst[record.id], rises[record.id] = _left_alone(record), 0.0
    return [replace(record, loss_increase=rises[name]) for name, record in worst.items()]


def suite_examples(sections: Mapping[SectionKey, Sequence[Any]], key: str) -> frozenset[str]:
    """The examples that every search of the suite was made on: those that generate summaries may be made on fewer."""
    searched = [sections[name] for part in SUITE.values() if (name := SectionKey(part, key)) in sections]
    if not searched:
        return frozenset()
    return frozenset.intersection(*(frozenset(record.id for record in attackable(rows)) for rows in searched))


def worst_case(worst: Sequence[HotFlipRecord], *, threshold: float) -> WorstCase:
    """The figures of a model's `strongest` records: mean of the worst, not worst of the means."""
    drops = column(worst, "relative_drop")
    return WorstCase(
        num_attackable=len(drops),
        success_rate=success_rate(drops, threshold),
        mean_degradation=float(drops.mean()) if len(drops) else None,
    )


def suite(
    sections: Mapping[SectionKey, Sequence[Any]], key: str, model_keys: Sequence[str], *, threshold: float
) -> dict[str, SuiteMember]:
    """Each attack that was tried on a model, on the examples of the worst case."""
    found = {}
    for member, names in members_on(key, model_keys).items():
        if any(name in sections for name in names):
            records = worst_of(names, sections, key)
            figures = vars(worst_case(records, threshold=threshold))
            searches = [record.search for record in records if record.search is not None]
            costs = {
                f"mean_{cost}": float(np.mean([getattr(search, cost) for search in searches])) if searches else None
                for cost in ("queries", "gradients", "generations")
            }
            found[member] = SuiteMember(**figures | (costs if member != "transfer" else {}))
    return found


def found_of_possible(records: Sequence[CeilingRecord], ci: Resampling) -> FoundOfPossible:
    """Mean shares of the possible that the first flips found, with bootstrap intervals over examples."""
    live = attackable(records)
    by_loss = shares(live, "loss_increase")
    drops = shares(live, "drop")

    return FoundOfPossible(
        num_examples=len(live),
        every_move=sum(bool(record.every_move) for record in live),
        by_loss=interval_of(by_loss, ci),
        by_loss_sd=float(np.std(list(by_loss.values()), ddof=1)) if len(by_loss) > 1 else None,
        by_loss_examples=len(by_loss),
        by_rougeL=interval_of(drops, ci),
    )


def interval_of(values: Mapping[str, float], ci: Resampling) -> Interval | None:
    """The mean of values by example id, with its bootstrap interval; None: no values."""
    if not values:
        return None
    mean, lower, upper = bootstrap_ci(list(values.values()), **ci)
    return Interval(mean=mean, lower=lower, upper=upper)


def shares(records: Sequence[CeilingRecord], figure: str) -> dict[str, float]:
    """found / best of "loss_increase" or "drop" by example id, where the best is above 0."""
    pairs = {r.id: (given(getattr(r, f"found_{figure}")), given(getattr(r, f"best_{figure}"))) for r in records}
    return {name: max(found, 0.0) / best for name, (found, best) in pairs.items() if best > 0}


def last_slot_shares(by_type: Mapping[str, Sequence[CeilingRecord]]) -> dict[str, float]:
    """By example id, values whose mean is the share of the possible that a model's triggers reach, mean over types.

    A type's share R is a ratio of means over the same examples, rise by the trigger / rise with the best last token.
    One example has R + (found - R best) / mean(best), the ratio's linear part: of these the mean is R, and an interval
    of their mean is one of R (delta method). A type whose best token raises no loss has no share.
    """
    values: dict[str, list[float]] = {}
    for records in by_type.values():
        found, best = (column(records, f"{name}_loss_increase") for name in ("found", "best"))
        if len(records) and best.mean() > 0:
            share = found.mean() / best.mean()
            for record, value in zip(records, share + (found - share * best) / best.mean(), strict=True):
                values.setdefault(record.id, []).append(float(value))
    return {name: float(np.mean(of_types)) for name, of_types in values.items()}


def compare_found(
    first: Sequence[CeilingRecord], second: Sequence[CeilingRecord], *, ci: Resampling
) -> PairedTest | None:
    """Whether the attack finds a larger share of the possible loss on one model than on the other; None: no data."""
    return compare_shares(*(shares(attackable(records), "loss_increase") for records in (first, second)), ci=ci)


def compare_shares(first: Mapping[str, float], second: Mapping[str, float], *, ci: Resampling) -> PairedTest | None:
    """The same of shares by example id."""
    common = [name for name in first if name in second]
    if not common:
        return None
    return compare_models([first[name] for name in common], [second[name] for name in common], **ci)


def noise_floor(sections: Mapping[SectionKey, Sequence[Any]], key: str, *, threshold: float) -> NoiseFloor | None:
    """The worst case over random attacks, on the examples of the suite's; None without them."""
    if SectionKey("random", key) not in sections:
        return None
    worst = worst_of([SectionKey(part, key) for part in RANDOM], sections, key)
    common = suite_examples(sections, key)
    again = [r for r in attackable(sections.get(SectionKey("unchanged", key), ())) if r.id in common]
    clean = {record.id: record.clean_prediction for record in sections[SectionKey("attack", key)]}
    return NoiseFloor(
        **vars(worst_case(worst, threshold=threshold)),
        unchanged_success_rate=success_rate(column(again, "relative_drop"), threshold) if again else None,
        unchanged_differs=float(np.mean([r.attacked_prediction != clean[r.id] for r in again])) if again else None,
    )
