"""Recompute every headline number of a seed from its per-example files, and follow the hashes that tie the files.

The numbers are made again by the functions that made them, from the records and the settings in the metadata; they must
come out equal. Times are not recomputed, nor what a search reports of itself (its curve, its queries).
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from utils.attack_stage import hotflip_settings, trigger_settings
from utils.attacks.hotflip_experiment import hotflip_results, sections_of
from utils.attacks.trigger_experiment import trigger_results
from utils.evaluation_stage import evaluation_results
from utils.files import read_jsonl, sha256_of
from utils.results import read_result
from utils.settings import Settings

PARTS = {
    "setup": "setup_complete.json",
    "data": "data_statistics.json",
    "baseline_training": "baseline_training_history.json",
    "monotonic_training": "monotonic_training_history.json",
    "evaluation": "evaluation_results.json",
    "uat": "uat_results.json",
    "hotflip": "hotflip_results.json",
}
NOT_RECOMPUTED = {"seconds", "seconds_per_summary"}
TOLERANCE = 1e-9  # relative; sums over examples are made in the same order


def verify(directory: Path) -> Iterator[tuple[str, list[str]]]:
    """(what was checked, what does not match) for every check; InputError if a file is missing or damaged."""
    files = {name: read_result(directory / file) for name, file in PARTS.items()}
    final = read_result(directory / "final_results.json")
    yield (
        "final_results.json holds the results of its parts",
        [words for name, part in files.items() for words in unequal(part["results"], final["results"][name], name)],
    )
    metadata = files["evaluation"]["_metadata"]
    settings, models = Settings(**metadata["settings"]), list(metadata["checkpoints"])
    rows = list(read_jsonl(directory / "predictions.jsonl"))
    datasets = [key for key in files["evaluation"]["results"] if key != "comparisons"]
    yield (
        "evaluation_results.json from predictions.jsonl",
        _again(lambda: evaluation_results(rows, datasets, settings), files["evaluation"]["results"]),
    )
    for name, records, recompute in (
        ("hotflip", "hotflip_records.jsonl", _hotflip),
        ("uat", "uat_records.jsonl", _triggers),
    ):
        again = functools.partial(recompute, directory / records, files[name]["_metadata"], models)
        yield f"{PARTS[name]} from {records}", _again(again, files[name]["results"])
    envelopes = {PARTS[name]: envelope for name, envelope in files.items()} | {"final_results.json": final}
    yield "all were made from the same checkpoints", list(_checkpoints(envelopes, metadata["checkpoints"]))
    yield "files are those that later files were made from", list(_chain(directory, envelopes))


def _again(recompute: Callable[[], dict[str, Any]], found: dict[str, Any]) -> list[str]:
    """What of `found` is not what comes out now; records that do not belong together say so themselves."""
    try:
        return list(unequal(recompute(), found, ""))
    except (ValueError, KeyError, IndexError) as error:
        return [f"cannot be made from these records: {type(error).__name__}: {error}"]


def _hotflip(records: Path, metadata: dict[str, Any], models: list[str]) -> dict[str, Any]:
    settings = Settings(**metadata["settings"])
    how = hotflip_settings(settings, metadata["seed"])
    return hotflip_results(sections_of(list(read_jsonl(records))), models, how, **_statistics(settings))


def _triggers(records: Path, metadata: dict[str, Any], models: list[str]) -> dict[str, Any]:
    settings = Settings(**metadata["settings"])
    how = trigger_settings(settings, metadata["seed"])
    return trigger_results(sections_of(list(read_jsonl(records))), models, how, **_statistics(settings))


def _statistics(settings: Settings) -> dict[str, Any]:
    return {"samples": settings.BOOTSTRAP_SAMPLES, "seed": settings.DATA_SEED, "confidence": settings.CONFIDENCE}


def _checkpoints(envelopes: dict[str, dict[str, Any]], wanted: dict[str, str]) -> Iterator[str]:
    for name, envelope in envelopes.items():
        for model, digest in envelope["_metadata"].get("checkpoints", {}).items():
            if wanted.get(model) != digest:
                yield f"{name}: {model} is {digest[:12]}, evaluated was {str(wanted.get(model))[:12]}"


def _chain(directory: Path, envelopes: dict[str, dict[str, Any]]) -> Iterator[str]:
    """Inputs that a file names are looked up by name beside it, else where they lay; what is gone is not judged."""
    for name, envelope in envelopes.items():
        for place, digest in envelope["_metadata"].get("inputs", {}).items():
            path = directory / Path(place).name
            path = path if path.exists() and Path(place).parent.name == directory.name else Path(place)
            if path.exists() and sha256_of(path) != digest:
                yield f"{path} is not what {name} was made from"


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
