"""Recompute every headline number of a seed from its per-example files, and follow the hashes that tie the files.

The numbers are made again by the functions that made them, from the records and the settings in the metadata; they must
come out equal. What is made from the numbers (sentences, tables, page) is checked by reports/verification.py. Times are
not recomputed, nor losses (they need the model), nor what a search reports of itself (its curve, its queries).
Torch-free at import.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from utils.analysis.aggregate import FILES, file_of, findings, hashes_below, read_sections
from utils.analysis.bootstrap import Resampling
from utils.analysis.evaluation_summary import evaluation_results
from utils.analysis.hotflip_summary import hotflip_results
from utils.analysis.measures import relative_drop
from utils.analysis.records import (
    AttackRecord,
    Prediction,
    Row,
    given,
    hotflip_row,
    read_rows,
    sections_of,
    trigger_row,
)
from utils.analysis.results import EvaluationResults, HotFlipResults, TriggerResults
from utils.analysis.trigger_summary import learned_triggers_csv, trigger_results
from utils.core.codec import RecordError, from_json, to_json
from utils.core.errors import InputError
from utils.core.files import read_jsonl, sha256_of
from utils.core.names import ARMS, METRICS
from utils.core.results import read_result
from utils.scoring.rouge import rouge_scores

FINAL = "final_results.json"
NOT_RECOMPUTED = {"seconds", "seconds_per_summary"}
TOLERANCE = 1e-9  # relative; sums over examples are made in the same order
PAIRS_AT_ONCE = 20_000  # summaries that are scored again together


@dataclass
class Check:
    """One check: what was looked at, what does not match, and what could not be looked at."""

    title: str
    problems: list[str]
    unseen: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Scored:
    """A summary, its reference, and the ROUGE that a file says it has."""

    where: str
    text: str
    reference: str
    scores: dict[str, float]


def checks_of_numbers(directory: Path) -> Iterator[Check]:
    """Every check of the numbers in a results directory; InputError if a result file is missing or damaged."""
    parts = read_sections(directory)
    final = read_result(directory / FINAL)
    models = list(parts["evaluation"]["_metadata"]["checkpoints"])
    envelopes = {file_of(name): envelope for name, envelope in parts.items()} | {FINAL: final}
    yield _chain(directory, envelopes)
    yield Check("weights: set-up, trainings, evaluation, attacks, exports", list(_weights(directory, envelopes)))
    readers: dict[str, Callable[[Path], Iterator[Prediction | Row]]] = {
        "predictions.jsonl": _predictions,
        "hotflip_records.jsonl": _hotflip_rows,
        "uat_records.jsonl": _trigger_rows,
    }
    for name, read in readers.items():
        yield Check(f"scores in {name} from its texts", _tried(functools.partial(_rescored, directory / name, read)))
    for name, records, recompute in (
        ("evaluation", "predictions.jsonl", functools.partial(_evaluation, parts["evaluation"])),
        ("hotflip", "hotflip_records.jsonl", functools.partial(_hotflip, parts["hotflip"], models)),
        ("uat", "uat_records.jsonl", functools.partial(_triggers, parts["uat"], models)),
    ):
        again = functools.partial(_again, recompute, directory / records, parts[name]["results"])
        yield Check(f"{FILES[name]} from {records}", _tried(again))
    margin = final["_metadata"]["settings"].get("QUALITY_MARGIN", 0.0)
    yield Check(f"{FINAL} from its parts", _tried(lambda: _put_together(parts, final["results"], margin)))
    csv = learned_triggers_csv(from_json(TriggerResults, parts["uat"]["results"], FILES["uat"]))
    same = csv == text_of(directory / "learned_triggers.csv")
    yield Check(f"learned_triggers.csv from {FILES['uat']}", [] if same else ["learned_triggers.csv differs"])


def _tried(check: Callable[[], Iterable[str]]) -> list[str]:
    """What the check finds; records that do not belong together, or lack a field, are a finding themselves."""
    try:
        return list(check())
    except RecordError as error:
        return [str(error)]
    except InputError:
        raise
    except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        return [f"cannot be recomputed: {type(error).__name__}: {error}"]


def _again(recompute: Callable[[Path], object], records: Path, written: dict[str, Any]) -> Iterator[str]:
    return unequal(to_json(recompute(records)), written, "")


def _predictions(path: Path) -> Iterator[Prediction]:
    if not path.exists():
        raise InputError(f"{path} is missing: the numbers cannot be recomputed without it.")
    for number, row in enumerate(read_jsonl(path), 1):
        yield from_json(Prediction, row, f"{path.name}, line {number}")


def _hotflip_rows(path: Path) -> Iterator[Row]:
    return read_rows(path, hotflip_row)


def _trigger_rows(path: Path) -> Iterator[Row]:
    return read_rows(path, trigger_row)


def _evaluation(envelope: dict[str, Any], records: Path) -> EvaluationResults:
    datasets = [key for key in envelope["results"] if key != "comparisons"]
    return evaluation_results(list(_predictions(records)), datasets, **_resampling(envelope))


def _hotflip(envelope: dict[str, Any], models: list[str], records: Path) -> HotFlipResults:
    sections = sections_of(row.without_texts() for row in _hotflip_rows(records))
    threshold = envelope["_metadata"]["settings"]["ATTACK_SUCCESS_THRESHOLD"]
    return hotflip_results(sections, models, threshold=threshold, **_resampling(envelope))


def _triggers(envelope: dict[str, Any], models: list[str], records: Path) -> TriggerResults:
    settings, sections = envelope["_metadata"]["settings"], sections_of(_trigger_rows(records))
    types, threshold = settings["TRIGGER_TYPES"], settings["ATTACK_SUCCESS_THRESHOLD"]
    return trigger_results(sections, models, types, threshold=threshold, **_resampling(envelope))


def _resampling(envelope: dict[str, Any]) -> Resampling:
    """How the intervals of a result were made."""
    settings = envelope["_metadata"]["settings"]
    return {
        "samples": settings["BOOTSTRAP_SAMPLES"],
        "seed": settings["DATA_SEED"],
        "confidence": settings["CONFIDENCE"],
    }


def _put_together(parts: dict[str, dict[str, Any]], written: dict[str, Any], quality_margin: float) -> Iterator[str]:
    """What final_results.json has in figures; its sentences are checked with the report."""
    figures = {name: value for name, value in written.items() if name not in ("verdict", "limits")}
    return unequal(to_json(findings(parts, quality_margin)), figures, "")


def _rescored(records: Path, read: Callable[[Path], Iterator[Prediction | Row]]) -> Iterator[str]:
    """Rows whose ROUGE is not that of their texts, or whose drop is not that of their ROUGE."""
    references: dict[str, str] = {}  # a replay of an attack leaves out the reference that the attack itself wrote
    waiting: list[Scored] = []
    for row in read(records):
        if isinstance(row, Prediction):
            scores = {metric: getattr(row, metric) for metric in METRICS}
            waiting.append(Scored(f"{row.dataset} {row.model} {row.id}", row.prediction, row.reference, scores))
        elif isinstance(row, AttackRecord):
            where = f"{row.section} {row.id}"
            if row.reference is not None:
                references[row.id] = row.reference
            for side in ("clean", "attacked"):
                text, scores = getattr(row, f"{side}_prediction"), _scores(row, side)
                if text is not None and scores:
                    waiting.append(Scored(f"{where}, {side}", text, references[row.id], scores))
            yield from _drop(row, where)
        if len(waiting) >= PAIRS_AT_ONCE:
            yield from _compared(waiting)
            waiting = []
    yield from _compared(waiting)


def _scores(row: AttackRecord, side: str) -> dict[str, float]:
    """The ROUGE that a record has of its clean or its attacked summary, by metric."""
    found = {metric: getattr(row, f"{side}_{metric}", None) for metric in METRICS}
    return {metric: score for metric, score in found.items() if score is not None}


def _drop(row: AttackRecord, where: str) -> Iterator[str]:
    if row.relative_drop is None:
        return
    drop = relative_drop(given(row.clean_rougeL), given(row.attacked_rougeL))
    if not math.isclose(drop, row.relative_drop, rel_tol=TOLERANCE, abs_tol=1e-12):
        yield f"{where}: relative_drop {row.relative_drop} in the file, {drop} from its scores"


def _compared(waiting: Sequence[Scored]) -> Iterator[str]:
    pairs = list(dict.fromkeys((row.text, row.reference) for row in waiting))
    scores = rouge_scores([text for text, _ in pairs], [reference for _, reference in pairs])
    place = {pair: number for number, pair in enumerate(pairs)}
    for row in waiting:
        for metric, value in row.scores.items():
            made = float(scores[metric][place[row.text, row.reference]])
            if not math.isclose(made, value, rel_tol=TOLERANCE, abs_tol=1e-12):
                yield f"{row.where}: {metric} {value} in the file, {made} from its text"


def _weights(directory: Path, envelopes: dict[str, dict[str, Any]]) -> Iterator[str]:
    from utils.core.hashes import weights_sha256  # here, because it loads torch

    wanted = envelopes[FILES["evaluation"]]["_metadata"]["checkpoints"]
    claims = [
        (f"{name}: {model}", model, digest)
        for name, envelope in envelopes.items()
        for model, digest in envelope["_metadata"].get("checkpoints", {}).items()
    ]
    claims.append((FILES["setup"], "standard", envelopes[FILES["setup"]]["results"]["model"]["weights_sha256"]))
    for arm in (model for model in wanted if model in ARMS):
        history = file_of(f"{arm}_training")
        claims.append((history, arm, envelopes[history]["results"]["weights_sha256"]))
        exported = directory / "models" / arm
        claims.append((f"models/{arm}", arm, weights_sha256(exported) if exported.is_dir() else "not there"))
    for where, model, digest in claims:
        if wanted.get(model) != digest:
            yield f"{where} is {digest[:12]}, evaluated was {str(wanted.get(model))[:12]}"


def _chain(directory: Path, envelopes: dict[str, dict[str, Any]]) -> Check:
    """Files whose hash an envelope holds: beside it by name, else where they lay (the work directory)."""
    check = Check("hashes: data, checkpoints, records and report", [])
    for name, envelope in envelopes.items():
        for place, digest in envelope["_metadata"].get("inputs", {}).items():
            beside = directory / Path(place).name
            path = beside if beside.is_file() else Path(place)
            if not path.exists():
                check.unseen.append(str(path))
            elif sha256_of(path) != digest:
                check.problems.append(f"{path} is not what {name} was made from")
    recorded, here = envelopes[FINAL]["_metadata"]["files"], hashes_below(directory, without=FINAL)
    for name in sorted(recorded | here):
        if recorded.get(name) != here.get(name):
            what = "is gone" if name not in here else "is not of this run" if name not in recorded else "was changed"
            check.problems.append(f"{name} {what}")
    check.unseen = sorted(set(check.unseen))
    return check


def text_of(path: Path) -> str:
    """The text of a file; empty where there is none."""
    return path.read_text(encoding="utf-8") if path.exists() else ""


def unequal(made: Any, found: Any, where: str) -> Iterator[str]:
    """Places where what is in the file is not what was made again, in words."""
    if isinstance(made, dict) and isinstance(found, dict):
        for key in sorted({*map(str, made)} | {*map(str, found)}):
            if key in NOT_RECOMPUTED:
                continue
            left = {str(k): v for k, v in made.items()}
            right = {str(k): v for k, v in found.items()}
            path = f"{where}.{key}" if where else key
            if key not in left or key not in right:
                yield f"{path} is {'not in the file' if key in left else 'not to be recomputed'}"
            else:
                yield from unequal(left[key], right[key], path)
    elif isinstance(made, list | tuple) and isinstance(found, list | tuple):
        if len(made) != len(found):
            yield f"{where}: {len(found)} entries in the file, {len(made)} recomputed"
        for number, (left, right) in enumerate(zip(made, found, strict=False)):
            yield from unequal(left, right, f"{where}[{number}]")
    elif isinstance(made, float) or isinstance(found, float):
        both = isinstance(made, int | float) and isinstance(found, int | float)
        if not both or not math.isclose(made, found, rel_tol=TOLERANCE, abs_tol=1e-12):
            yield f"{where}: {found} in the file, {made} recomputed"
    elif json.dumps(made) != json.dumps(found):
        yield f"{where}: {found!r} in the file, {made!r} recomputed"
