"""Recompute every headline number of a seed from its per-example files, and follow the hashes that tie the files.

The numbers are made again by the functions that made them, from the records and the settings in the metadata; they must
come out equal, and so must the tables from the numbers. Times are not recomputed, nor losses (they need the model), nor
what a search reports of itself (its curve, its queries).
"""

from __future__ import annotations

import functools
import html
import json
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from utils.analysis.aggregate import FILES, final_results, hashes_below
from utils.analysis.evaluation_summary import evaluation_results
from utils.analysis.measures import relative_drop
from utils.attacks.from_settings import hotflip_settings, trigger_settings
from utils.attacks.hotflip.experiment import hotflip_results, sections_of
from utils.attacks.triggers.experiment import learned_triggers_csv, trigger_results
from utils.core.errors import InputError
from utils.core.files import read_jsonl, sha256_of
from utils.core.names import METRICS
from utils.core.provenance import code_revision
from utils.core.results import read_result
from utils.core.settings import Settings
from utils.evaluation.rouge import rouge_scores
from utils.modeling.models import weights_sha256
from utils.reports.files import text_files
from utils.reports.tables import all_tables

FINAL = "final_results.json"
NOT_RECOMPUTED = {"seconds", "seconds_per_summary"}
TOLERANCE = 1e-9  # relative; sums over examples are made in the same order
PAIRS_AT_ONCE = 20_000  # summaries that are scored again together
# What fills most of a record and no number is made from: left out, so that memory stays small.
HEAVY = {"clean_ids", "adv_ids", "inputs", "labels", "steps", "flips", "attacked_document"}


@dataclass
class Check:
    """One check: what was looked at, what does not match, and what could not be looked at."""

    what: str
    problems: list[str]
    unseen: list[str] = field(default_factory=list)


def verify(directory: Path) -> Iterator[Check]:
    """Every check of a results directory, from data to tables; InputError if a result file is missing or damaged."""
    parts = {name: read_result(directory / file) for name, file in FILES.items()}
    final = read_result(directory / FINAL)
    metadata = parts["evaluation"]["_metadata"]
    settings, models = Settings(**metadata["settings"]), list(metadata["checkpoints"])
    envelopes = {FILES[name]: envelope for name, envelope in parts.items()} | {FINAL: final}
    yield _chain(directory, envelopes)
    yield Check("weights: set-up, trainings, evaluation, attacks, exports", list(_weights(directory, envelopes)))
    for name in ("predictions.jsonl", "hotflip_records.jsonl", "uat_records.jsonl"):
        yield Check(f"scores in {name} from its texts", _tried(functools.partial(_rescored, directory / name)))
    datasets = [key for key in parts["evaluation"]["results"] if key != "comparisons"]
    for name, records, recompute in (
        ("evaluation", "predictions.jsonl", lambda rows: evaluation_results(list(rows), datasets, settings)),
        ("hotflip", "hotflip_records.jsonl", functools.partial(_hotflip, parts["hotflip"]["_metadata"], models)),
        ("uat", "uat_records.jsonl", functools.partial(_triggers, parts["uat"]["_metadata"], models)),
    ):
        again = functools.partial(_again, recompute, directory / records, parts[name]["results"])
        yield Check(f"{FILES[name]} from {records}", _tried(again))
    yield Check(f"{FINAL} from its parts", _tried(lambda: unequal(final_results(parts), final["results"], "")))
    yield Check("tables, summary, cards and report from " + FINAL, _tried(lambda: _written(directory, final)))
    csv = learned_triggers_csv(parts["uat"]["results"], models, settings_of(parts["uat"]).TRIGGER_TYPES)
    same = csv == _text(directory / "learned_triggers.csv")
    yield Check(f"learned_triggers.csv from {FILES['uat']}", [] if same else ["learned_triggers.csv differs"])


def settings_of(envelope: dict[str, Any]) -> Settings:
    """The settings that a result was made with."""
    return Settings(**envelope["_metadata"]["settings"])


def _tried(check: Callable[[], Iterable[str]]) -> list[str]:
    """What the check finds; records that do not belong together, or lack a field, are a finding themselves."""
    try:
        return list(check())
    except InputError:
        raise
    except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        return [f"cannot be made again: {type(error).__name__}: {error}"]


def _again(
    recompute: Callable[[Iterator[dict[str, Any]]], dict[str, Any]], records: Path, found: dict[str, Any]
) -> Iterator[str]:
    rows = ({name: value for name, value in row.items() if name not in HEAVY} for row in _rows(records))
    return unequal(recompute(rows), found, "")


def _hotflip(metadata: dict[str, Any], models: list[str], rows: Iterator[dict[str, Any]]) -> dict[str, Any]:
    settings = Settings(**metadata["settings"])
    how = hotflip_settings(settings, metadata["seed"])
    return hotflip_results(sections_of(rows), models, how, **_statistics(settings))


def _triggers(metadata: dict[str, Any], models: list[str], rows: Iterator[dict[str, Any]]) -> dict[str, Any]:
    settings = Settings(**metadata["settings"])
    how = trigger_settings(settings, metadata["seed"])
    return trigger_results(sections_of(rows), models, how, **_statistics(settings))


def _statistics(settings: Settings) -> dict[str, Any]:
    return {"samples": settings.BOOTSTRAP_SAMPLES, "seed": settings.DATA_SEED, "confidence": settings.CONFIDENCE}


def _rescored(records: Path) -> Iterator[str]:
    """Rows whose ROUGE is not that of their texts, or whose drop is not that of their ROUGE."""
    references: dict[str, str] = {}  # a replay of an attack leaves out the reference that the attack itself wrote
    waiting: list[tuple[str, str, str, dict[str, float]]] = []
    for row in _rows(records):
        where = " ".join(str(row[name]) for name in ("section", "dataset", "model", "id") if name in row)
        if row.get("reference") is not None:
            references[row["id"]] = row["reference"]
        if "prediction" in row:
            waiting.append((where, row["prediction"], row["reference"], {m: row[m] for m in METRICS}))
        for side in ("clean", "attacked"):
            text, score = row.get(f"{side}_prediction"), row.get(f"{side}_rouge")
            if text is not None and score is not None:
                scores = score if isinstance(score, dict) else {"rougeL": score}
                waiting.append((f"{where}, {side}", text, references[row["id"]], scores))
        yield from _drop(row, where)
        if len(waiting) >= PAIRS_AT_ONCE:
            yield from _compared(waiting)
            waiting = []
    yield from _compared(waiting)


def _drop(row: dict[str, Any], where: str) -> Iterator[str]:
    if row.get("relative_drop") is None:
        return
    clean, after = (s["rougeL"] if isinstance(s, dict) else s for s in (row["clean_rouge"], row["attacked_rouge"]))
    drop = relative_drop(clean, after)
    if not math.isclose(drop, row["relative_drop"], rel_tol=TOLERANCE, abs_tol=1e-12):
        yield f"{where}: relative_drop {row['relative_drop']} in the file, {drop} from its scores"


def _compared(waiting: list[tuple[str, str, str, dict[str, float]]]) -> Iterator[str]:
    pairs = list(dict.fromkeys((text, reference) for _, text, reference, _ in waiting))
    scores = rouge_scores([text for text, _ in pairs], [reference for _, reference in pairs])
    place = {pair: number for number, pair in enumerate(pairs)}
    for where, text, reference, found in waiting:
        for metric, value in found.items():
            made = float(scores[metric][place[text, reference]])
            if not math.isclose(made, value, rel_tol=TOLERANCE, abs_tol=1e-12):
                yield f"{where}: {metric} {value} in the file, {made} from its text"


def _written(directory: Path, final: dict[str, Any]) -> Iterator[str]:
    """Files of the report that are not what the numbers in final_results.json give."""
    results = final["results"]
    tables = all_tables(results)
    made, now = final["_metadata"]["code"]["commit"], code_revision()["commit"]
    note = "" if made == now else f" (written by code revision {made[:10]}, this is {now[:10]}: check with that one)"
    for name, text in text_files(results, final["_metadata"], tables).items():
        if _text(directory / name) != text:
            yield f"{name} differs{note}"
    page = _text(directory / "report.html")
    shown = {table.name: table.html() for table in tables}
    shown |= {f"verdict: {name}": html.escape(results["verdict"][name]) for name in ("attack", "triggers", "cost")}
    yield from (f"report.html does not show {name}{note}" for name, part in shown.items() if part not in page)


def _weights(directory: Path, envelopes: dict[str, dict[str, Any]]) -> Iterator[str]:
    wanted = envelopes[FILES["evaluation"]]["_metadata"]["checkpoints"]
    claims = [
        (f"{name}: {model}", model, digest)
        for name, envelope in envelopes.items()
        for model, digest in envelope["_metadata"].get("checkpoints", {}).items()
    ]
    claims.append((FILES["setup"], "standard", envelopes[FILES["setup"]]["results"]["model"]["weights_sha256"]))
    for arm in ("baseline", "monotonic"):
        history = FILES[f"{arm}_training"]
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


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    if not path.exists():
        raise InputError(f"{path} is missing: the numbers cannot be made again without it.")
    return read_jsonl(path)


def _text(path: Path) -> str:
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
