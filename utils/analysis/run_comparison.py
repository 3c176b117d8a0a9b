"""Two runs side by side: what differs in how they were made, and every figure of both, paired where examples agree.

Side a is the first run, side b the second; every difference is b minus a. Torch-free.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from utils.analysis.attack_figures import compare_success
from utils.analysis.bootstrap import Resampling
from utils.analysis.comparisons import PairedTest, SuccessTest
from utils.analysis.measures import success_rate
from utils.analysis.records import (
    AttackRecord,
    HotFlipRecord,
    Prediction,
    TriggerRecord,
    column,
    hotflip_row,
    read_rows,
    trigger_row,
)
from utils.analysis.sections import SectionKey
from utils.analysis.statistics import compare_models, corrected
from utils.core.codec import from_json
from utils.core.errors import InputError
from utils.core.files import read_jsonl
from utils.core.names import STANDARD, TRIGGER_TYPES
from utils.core.results import read_result

Place = tuple[str, str]  # what was measured on (a data set, an attack), and the model
# What a run is made of beside its settings, as its metadata have it: title, and where.
MADE_OF = {
    "seed": ("seed",),
    "profile": ("profile",),
    "code revision": ("code", "commit"),
    "pretrained weights": ("checkpoints", STANDARD),
    "device": ("device",),
    "missing data sets": ("missing_datasets",),
}


@dataclass(frozen=True)
class Row:
    """One figure of both runs: means over each run's own examples, and the paired test on the `common` ones.

    `test` is None where no example is common. A success is a share from 0 to 1.
    """

    place: Place
    figure: str
    a: float | None
    b: float | None
    sizes: tuple[int, int]
    test: PairedTest | SuccessTest | None

    @property
    def common(self) -> int:
        return self.test.n if self.test else 0


@dataclass(frozen=True)
class RunComparison:
    """Two runs: what differs, in words, and the figures with Holm-corrected p-values."""

    names: tuple[str, str]
    differences: list[str]
    rows: list[Row]
    confidence: float


@dataclass(frozen=True)
class _Run:
    metadata: Mapping[str, Any]
    prepared: Mapping[str, Any]
    predictions: Mapping[Place, Sequence[Prediction]]
    attacks: Mapping[Place, Sequence[AttackRecord]]


def compare_runs(first: Path, second: Path) -> RunComparison:
    """Read both results directories; InputError where one is none, or damaged."""
    a, b = _read(first), _read(second)
    settings = a.metadata["settings"]
    threshold = settings["ATTACK_SUCCESS_THRESHOLD"]
    ci: Resampling = {
        "samples": settings["BOOTSTRAP_SAMPLES"],
        "seed": settings["DATA_SEED"],
        "confidence": settings["CONFIDENCE"],
    }
    rows = [*_quality(a, b, ci), *_attacks(a, b, threshold, ci)]
    tests = {number: row.test for number, row in enumerate(rows) if row.test is not None}
    adjusted = corrected(tests, ci["confidence"])
    rows = [replace(row, test=adjusted.get(number)) for number, row in enumerate(rows)]
    return RunComparison((str(first), str(second)), differences(a.metadata, b.metadata, a, b), rows, ci["confidence"])


def _read(directory: Path) -> _Run:
    if not directory.is_dir():
        raise InputError(f"{directory}: no such directory.")
    metadata = read_result(directory / "final_results.json")["_metadata"]
    prepared = read_result(directory / "data_statistics.json")["results"]["prepared"]
    predictions: dict[Place, list[Prediction]] = {}
    path = directory / "predictions.jsonl"
    if not path.exists():
        raise InputError(f"{path} is missing.")
    for number, line in enumerate(read_jsonl(path), 1):
        row = from_json(Prediction, line, f"{path}, line {number}")
        predictions.setdefault((row.dataset, row.model), []).append(row)
    attacks: dict[Place, list[AttackRecord]] = {}
    models = list(metadata["checkpoints"])
    # Only these rows are decoded: what else a revision writes down may differ between the two runs.
    sections = {str(SectionKey("attack", model)) for model in models}
    for one in read_rows(directory / "hotflip_records.jsonl", hotflip_row, sections):
        if isinstance(one, HotFlipRecord):
            attacks.setdefault(("HotFlip", one.model), []).append(one)
    sections = {str(SectionKey("attack", model, kind, model)) for model in models for kind in TRIGGER_TYPES}
    for other in read_rows(directory / "uat_records.jsonl", trigger_row, sections):
        if isinstance(other, TriggerRecord):
            attacks.setdefault((f"trigger {other.trigger_type}", other.model), []).append(other)
    return _Run(metadata, prepared, predictions, attacks)


def differences(a: Mapping[str, Any], b: Mapping[str, Any], *runs: Any) -> list[str]:
    """In words, what is not the same in how two runs were made, from their metadata (and their data)."""
    lines = []
    for title, (name, *inner) in MADE_OF.items():
        left, right = a[name], b[name]
        for key in inner:
            left, right = left[key], right[key]
        if left != right:
            lines.append(f"{title}: {_short(left)} and {_short(right)}")
    left, right = a["settings"], b["settings"]
    lines += [
        f"{name}: {_short(left.get(name, 'not set'))} and {_short(right.get(name, 'not set'))}"
        for name in sorted(left | right)
        if left.get(name) != right.get(name)
    ]
    versions = {name: (a["versions"].get(name), b["versions"].get(name)) for name in a["versions"] | b["versions"]}
    lines += [f"{name}: version {old} and {new}" for name, (old, new) in versions.items() if old != new]
    if len(runs) == 2:
        left, right = (run.prepared for run in runs)
        lines += [f"data: other rows in {name}" for name in sorted(left | right) if left.get(name) != right.get(name)]
    same = [m for m, weights in a["checkpoints"].items() if m != STANDARD and b["checkpoints"].get(m) == weights]
    return lines + [f"the weights of {model} are the same in both" for model in same]


def _short(value: Any) -> str:
    text = str(value)
    return f"{text[:12]}..." if len(text) == 40 or len(text) == 64 else text  # a hash


def _quality(a: _Run, b: _Run, ci: Resampling) -> Iterator[Row]:
    for place in dict.fromkeys((*a.predictions, *b.predictions)):
        left, right = a.predictions.get(place, ()), b.predictions.get(place, ())
        other = {row.id: row for row in right}
        pairs = [(row, other[row.id]) for row in left if row.id in other and other[row.id].reference == row.reference]
        test = None
        if pairs:
            test = compare_models(*(column([pair[side] for pair in pairs], "rougeL") for side in (0, 1)), **ci)
        means = [float(column(rows, "rougeL").mean()) if rows else None for rows in (left, right)]
        yield Row(place, "ROUGE-L", means[0], means[1], (len(left), len(right)), test)


def _attacks(a: _Run, b: _Run, threshold: float, ci: Resampling) -> Iterator[Row]:
    """Success by the first run's threshold, and loss rise, on attackable examples."""
    for place in dict.fromkeys((*a.attacks, *b.attacks)):
        left, right = ([row for row in run.attacks.get(place, ()) if row.skipped is None] for run in (a, b))
        other = {record.id: record for record in right}
        pairs = [(row, other[row.id]) for row in left if row.id in other and other[row.id].reference == row.reference]
        sides = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
        rates = [success_rate(column(rows, "relative_drop"), threshold) if rows else None for rows in (left, right)]
        test = compare_success(*sides, threshold, ci["confidence"]) if pairs else None
        yield Row(place, "success", rates[0], rates[1], (len(left), len(right)), test)
        rises = [column(rows, "loss_increase") for rows in (left, right)]
        paired = compare_models(*(column(side, "loss_increase") for side in sides), **ci) if pairs else None
        means = [float(values.mean()) if len(values) else None for values in rises]
        yield Row(place, "NLL rise", means[0], means[1], (len(left), len(right)), paired)
