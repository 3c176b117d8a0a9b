"""Paired differences over seeds, [seeds, examples]: read from the per-example files, tested with both spreads.

Every seed has the same test examples, but not every example is attackable in every seed. An array needs the same ones
throughout: those that are attackable on both models in all seeds. They are the easier to summarise, as in one seed, a
little more so; how many were left out stands beside every test.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy import optimize

from utils.analysis.attack_suite import attacks_on, strongest
from utils.analysis.attribution import Reproduced
from utils.analysis.claims import Measure, Outcome
from utils.analysis.comparisons import P, PairedTest, SuccessTest
from utils.analysis.final import FinalResults
from utils.analysis.measures import reaches_threshold
from utils.analysis.records import (
    Count,
    Prediction,
    TriggerRecord,
    attackable,
    given,
    hotflip_row,
    read_rows,
    sections_of,
    trigger_row,
)
from utils.analysis.sections import SectionKey
from utils.analysis.statistics import crossed_difference, holm, mcnemar
from utils.core.codec import from_json
from utils.core.errors import InputError
from utils.core.files import read_jsonl
from utils.core.names import BASELINE, HEADLINE_METRIC, MONOTONIC, TRAINED_KEYS

PRIMARY, WORST_DROP, WORST_RISE = "worst-case success", "worst-case ROUGE-L drop", "worst-case loss rise"
HOTFLIP_SUCCESS, HOTFLIP_RISE = "HotFlip success", "HotFlip loss rise"
WORST_TRIGGER = "worst trigger ROUGE-L change"
WORST: dict[Measure, str] = {"success": PRIMARY, "relative_drop": WORST_DROP, "loss_increase": WORST_RISE}
LOSSES = (WORST_RISE, HOTFLIP_RISE)  # in nats, without bounds
_Key = TypeVar("_Key", bound=Hashable)
Scores = dict[str, dict[str, float]]  # model, then example


@dataclass(frozen=True, kw_only=True)
class SeedTest:
    """Two models (a, b) over seeds, on the examples that all seeds share; null where they share none.

    Baseline and monotonic, or one of them and a control arm. `p_value`, `lower`, `upper`: seeds and examples crossed
    (statistics.crossed_difference).
    """

    num_common: Annotated[Count, "examples in the array: usable on both models in every seed"]
    num_left_out: Annotated[Count, "usable on both models in some seeds only"]
    differences: Annotated[list[float], "each seed's, on these examples"]
    agree: Annotated[Count, "seeds whose difference has the sign of the mean; 0 where that is 0"]
    mean_a: float | None = None
    mean_b: float | None = None
    difference: Annotated[float | None, "mean_b minus mean_a"] = None
    lower: float | None = None
    upper: float | None = None
    p_value: P | None = None
    p_value_holm: Annotated[P | None, "Holm-corrected over the family; left out for the primary test"] = None
    family_size: Count | None = None

    def outcome(self) -> Outcome | None:
        """The test as claims are made from it; None where nothing could be tested."""
        if self.p_value is None:
            return None
        a, b, difference = given(self.mean_a), given(self.mean_b), given(self.difference)
        return Outcome(a, b, difference, given(self.lower), given(self.upper), self.p_value, self.p_value_holm)


def scores_of(directory: Path, results: FinalResults) -> dict[str, Scores]:
    """Every compared measure of one seed, example by example; InputError where the final results say otherwise."""
    found = dict(_rouge(directory, list(results.evaluation.datasets), (*TRAINED_KEYS, *results.attribution)))
    found |= _hotflip(directory, results)
    found |= _triggers(directory, results)
    for name, recorded in _recorded(results).items():
        if name not in found:
            continue
        ids, a, b = paired_values(found[name])
        made = float((b - a).mean()) if ids else 0.0
        if len(ids) != recorded.n or not math.isclose(made, recorded.difference, rel_tol=1e-9, abs_tol=1e-9):
            raise InputError(
                f"{directory}: {name} differs by {recorded.difference:.6g} on {recorded.n} examples in "
                f"final_results.json, and by {made:.6g} on {len(ids)} in the per-example files. They are not of one "
                f"run: scripts/verify_results.py {directory} says where; run that seed's stages 4 to 7 again."
            )
    return found


def paired_values(scores: Scores) -> tuple[list[str], NDArray[np.float64], NDArray[np.float64]]:
    """Ids of the examples that both models have, in order, and their values of baseline (a) and monotonic (b)."""
    ids = sorted(scores[BASELINE].keys() & scores[MONOTONIC].keys())
    a, b = (np.array([scores[model][name] for name in ids]) for model in (BASELINE, MONOTONIC))
    return ids, a, b


def crossed_test(
    seeds: Sequence[Scores],
    models: tuple[str, str] = (BASELINE, MONOTONIC),
    *,
    confidence: float,
    shift: float = 0.0,
    bound: float = math.inf,
) -> SeedTest:
    """The test of one measure between two `models`; `shift` is added to every difference (a margin).

    bound: what a difference cannot exceed (1 for shares and ROUGE); its interval ends there.
    """
    ids, left_out = _shared(seeds, models)
    a, b = _arrays(seeds, models, ids)
    if len(ids) < 2 or len(seeds) < 2:
        return SeedTest(num_common=len(ids), num_left_out=left_out, differences=[], agree=0)
    difference = b - a + shift
    each = difference.mean(axis=1)
    found = crossed_difference(difference, confidence=confidence)
    lower, upper = found["lower"], found["upper"]
    if lower == upper and set(np.unique([a, b])) <= {0.0, 1.0}:
        # Yes or no, with the same sum in every seed and on every example: no variance is left to judge by. That is not
        # certainty; the other seeds add nothing, so the interval is that of one.
        one = mcnemar(a[0] > 0, b[0] > 0, confidence=confidence)
        lower, upper = one.lower, one.upper
    return SeedTest(
        num_common=len(ids),
        num_left_out=left_out,
        differences=each.tolist(),
        agree=int(np.sum(np.sign(each) * np.sign(each.mean()) > 0)),
        mean_a=float(a.mean()),
        mean_b=float(b.mean()),
        difference=found["difference"],
        lower=max(lower, -bound),
        upper=min(upper, bound),
        p_value=found["p_value"],
    )


def outcomes_over_seeds(tests: Mapping[str, SeedTest]) -> dict[Measure, Outcome]:
    """The pre-named measures in their order; empty where fewer than two examples are common to all seeds."""
    found = {measure: one for measure, name in WORST.items() if (one := tests[name].outcome()) is not None}
    return found if len(found) == len(WORST) else {}


def crossed_share(seeds: Sequence[Scores], arm: str, *, confidence: float) -> Reproduced | None:
    """The share of monotonic's difference from baseline that `arm` reproduces, seeds and examples crossed.

    The interval is Fieller's (J. R. Stat. Soc. B 16:175, 1954): every share s for which (arm - baseline) -
    s * (monotonic - baseline) is not shown to differ from 0. None where the latter is not shown to differ from 0
    itself: the interval would have no ends.
    """
    trio = (BASELINE, MONOTONIC, arm)
    ids, _ = _shared(seeds, trio)
    if len(ids) < 2 or len(seeds) < 2:
        return None
    baseline, monotonic, third = _arrays(seeds, trio, ids)
    whole, part, alpha = monotonic - baseline, third - baseline, 1 - confidence
    if crossed_difference(whole, confidence=confidence)["p_value"] >= alpha:
        return None
    share = float(part.mean() / whole.mean())

    def acceptance(other: float) -> float:
        return crossed_difference(part - other * whole, confidence=confidence)["p_value"] - alpha

    def end(step: float) -> float | None:
        while acceptance(share + step) > 0:
            step *= 2
            if abs(step) > 1e6:
                return None
        return float(optimize.bisect(acceptance, share, share + step, xtol=1e-6))

    lower, upper = end(-0.5), end(0.5)
    return None if lower is None or upper is None else Reproduced(share=share, lower=lower, upper=upper)


def _shared(seeds: Sequence[Scores], models: Sequence[str]) -> tuple[list[str], int]:
    """The examples that all models have in every seed, and how many more they have in some."""
    usable = [set[str].intersection(*(set(scores[model]) for model in models)) for scores in seeds]
    ids = sorted(set[str].intersection(*usable))
    return ids, len(set[str].union(*usable)) - len(ids)


def _arrays(seeds: Sequence[Scores], models: Sequence[str], ids: Sequence[str]) -> list[NDArray[np.float64]]:
    """Of each model its values, float64 [seeds, examples]."""
    return [np.array([[scores[model][name] for name in ids] for scores in seeds]) for model in models]


def in_families(tests: Mapping[str, SeedTest]) -> dict[str, SeedTest]:
    """The primary test stands alone; Holm over the other two of the worst case, and over everything else."""
    worst = (WORST_DROP, WORST_RISE)
    families = [
        {name: test for name, test in tests.items() if name in worst},
        {name: test for name, test in tests.items() if name not in (PRIMARY, *worst)},
    ]
    found = dict(tests)
    for family in families:
        found |= in_one_family(family)
    return found


def in_one_family(tests: Mapping[_Key, SeedTest]) -> dict[_Key, SeedTest]:
    """The tests, Holm-corrected over them all; two of the same numbers (the worst trigger is of some type) are one."""
    numbers = {name: (t.num_common, t.mean_a, t.mean_b, t.lower, t.upper) for name, t in tests.items()}
    first = {values: name for name, values in reversed(numbers.items())}
    p_values = {name: test.p_value for name, test in tests.items() if name in first.values()}
    adjusted = holm({name: p for name, p in p_values.items() if p is not None})
    found = dict(tests)
    for name, test in tests.items():
        if (same := first[numbers[name]]) in adjusted:
            found[name] = replace(test, p_value_holm=adjusted[same], family_size=len(adjusted))
    return found


def _recorded(results: FinalResults) -> dict[str, PairedTest | SuccessTest]:
    """The same differences as one seed's final results have them."""
    compared = results.hotflip.comparisons
    worst, attack = given(compared.baseline_vs_monotonic_worst_case), given(compared.baseline_vs_monotonic)
    found: dict[str, Any] = {
        PRIMARY: worst.success,
        WORST_DROP: worst.relative_drop,
        WORST_RISE: worst.loss_increase,
        HOTFLIP_SUCCESS: attack.success,
        HOTFLIP_RISE: attack.loss_increase,
    }
    if results.uat.worst_comparison is not None:
        found[WORST_TRIGGER] = results.uat.worst_comparison.delta_rougeL
    found |= {of_type(kind): tests.delta_rougeL for kind, tests in results.uat.comparisons.items()}
    found |= {of_set(key): tests[HEADLINE_METRIC] for key, tests in results.evaluation.comparisons.items()}
    return found


def of_set(key: str) -> str:
    """Name of the ROUGE-L difference on a data set."""
    return f"{key} rougeL"


def of_type(kind: str) -> str:
    """Name of the difference by one trigger type."""
    return f"{kind} trigger ROUGE-L change"


def _rouge(directory: Path, datasets: Sequence[str], models: Sequence[str]) -> Iterator[tuple[str, Scores]]:
    scores: dict[str, Scores] = {key: {model: {} for model in models} for key in datasets}
    for row in read_jsonl(directory / "predictions.jsonl"):
        if row["dataset"] in scores and row["model"] in models:
            prediction = from_json(Prediction, row, "predictions.jsonl")
            scores[prediction.dataset][prediction.model][prediction.id] = prediction.rougeL
    return iter((of_set(key), values) for key, values in scores.items())


def _hotflip(directory: Path, results: FinalResults) -> dict[str, Scores]:
    models, threshold = list(results.hotflip.models), results.hotflip.models[BASELINE].threshold
    trained = (*TRAINED_KEYS, *results.attribution)
    wanted = {str(section) for model in trained for section in attacks_on(model, models)}
    rows = read_rows(directory / "hotflip_records.jsonl", hotflip_row, named=wanted)
    sections = sections_of(row.without_texts() for row in rows)
    found: dict[str, Scores] = {name: {} for name in (PRIMARY, WORST_DROP, WORST_RISE, HOTFLIP_SUCCESS, HOTFLIP_RISE)}
    for model in trained:
        for records, success, drop, rise in (
            (strongest(sections, model, models), PRIMARY, WORST_DROP, WORST_RISE),
            (attackable(sections[SectionKey("attack", model)]), HOTFLIP_SUCCESS, "", HOTFLIP_RISE),
        ):
            drops = {record.id: given(record.relative_drop) for record in records}
            found[success][model] = {name: float(reaches_threshold(x, threshold)) for name, x in drops.items()}
            found[rise][model] = {record.id: given(record.loss_increase) for record in records}
            if drop:
                found[drop][model] = drops
    return found


def _triggers(directory: Path, results: FinalResults) -> dict[str, Scores]:
    kinds = list(results.uat.comparisons)
    keys = {(model, kind): SectionKey("attack", model, kind, model) for model in TRAINED_KEYS for kind in kinds}
    rows = read_rows(directory / "uat_records.jsonl", trigger_row, named=set(map(str, keys.values())))
    sections = sections_of(rows)
    changes = {place: _changes(sections.get(key, [])) for place, key in keys.items()}
    found = {of_type(kind): {model: changes[model, kind] for model in TRAINED_KEYS} for kind in kinds}
    worst = {model: results.uat.models[model].worst.worst_type for model in TRAINED_KEYS}
    chosen = {model: changes[model, kind] for model, kind in worst.items() if kind is not None}
    return found | ({WORST_TRIGGER: chosen} if len(chosen) == len(TRAINED_KEYS) else {})


def _changes(records: Sequence[TriggerRecord]) -> dict[str, float]:
    """ROUGE-L after minus before of every attackable example."""
    return {record.id: given(record.attacked_rougeL) - given(record.clean_rougeL) for record in attackable(records)}
