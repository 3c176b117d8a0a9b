"""All result files of a seed in one record, checked to be of one experiment; and their copy. Torch-free."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from utils.analysis.attribution import AttributionResults
from utils.analysis.final import Findings, Setup, Source, Training
from utils.analysis.mechanism import MechanismResults
from utils.analysis.mechanism import doubts as mechanism_doubts
from utils.analysis.quality_curve import Matched
from utils.analysis.results import EvaluationResults, HotFlipResults, TriggerResults
from utils.analysis.summary_shape import summary_warnings
from utils.analysis.warning_texts import ranked
from utils.core.codec import fields_of, from_json
from utils.core.errors import InputError, StageError
from utils.core.files import copy_file, link_or_copy, new_directory, sha256_of
from utils.core.names import CONTROLS
from utils.core.paths import Paths
from utils.core.results import read_result
from utils.data.records import DataStatistics

FINAL = "final_results.json"
FILES = {
    "setup": "setup_complete.json",
    "data": "data_statistics.json",
    "baseline_training": "baseline_training_history.json",
    "monotonic_training": "monotonic_training_history.json",
    "evaluation": "evaluation_results.json",
    "mechanism": "mechanism_results.json",
    "uat": "uat_results.json",
    "hotflip": "hotflip_results.json",
    "matched": "quality_curve_results.json",
    "attribution": "attribution_results.json",
}
SHARED = ("setup_complete.json", "data_statistics.json", "removed_examples.jsonl")  # made once for all seeds


def collect(paths: Paths, seed: int) -> dict[str, dict[str, Any]]:
    """Every result file of the seed as its envelope, by section; InputError if they are not of one experiment."""
    for name in SHARED:
        copy_file(paths.results_root / name, paths.results(seed) / name)
    found = read_sections(paths.results(seed))
    profiles = {envelope["_metadata"]["profile"] for envelope in found.values()}
    if len(profiles) > 1:
        raise InputError(f"results of several profiles ({', '.join(sorted(profiles))}) in {paths.results(seed)}.")
    if problems := list(files_of_other_runs({file_of(name): envelope for name, envelope in found.items()})):
        raise InputError(f"{paths.results(seed)}: {problems[0]}: not of one run. Run the stages again.")
    hashes = [
        found[name]["_metadata"]["checkpoints"]
        for name in ("evaluation", "mechanism", "uat", "hotflip", "matched", "attribution")
    ]
    if any(other != hashes[0] for other in hashes):
        raise InputError("evaluation and attacks were made with different checkpoints: run stages 4 to 6 again.")
    if len(set(hashes[0].values())) < len(hashes[0]):
        raise StageError("two of the three models have the same weights: one of them was not trained.")
    return found


def read_sections(directory: Path) -> dict[str, dict[str, Any]]:
    """Every result file in `directory` as its envelope, by section; those of control arms where there are any."""
    found = {section: read_result(directory / name) for section, name in FILES.items()}
    arms = [arm for arm in found["evaluation"]["_metadata"]["checkpoints"] if arm in CONTROLS]
    return found | {f"{arm}_training": read_result(directory / file_of(f"{arm}_training")) for arm in arms}


def file_of(section: str) -> str:
    """The name of a section's file."""
    return FILES.get(section) or f"{section}_history.json"


def files_of_other_runs(envelopes: Mapping[str, dict[str, Any]]) -> Iterator[str]:
    """In words, envelopes (by file name) of another seed than most, or with another value of a shared setting.

    Set-up and data are made once for all seeds and may carry any.
    """
    seeds = {name: entry["_metadata"]["seed"] for name, entry in envelopes.items() if name not in SHARED}
    usual = Counter(seeds.values()).most_common(1)[0][0]
    yield from (f"{name} is of seed {seed}, the others of {usual}" for name, seed in seeds.items() if seed != usual)
    values: dict[str, dict[str, str]] = {}
    for name, entry in envelopes.items():
        for setting, value in entry["_metadata"]["settings"].items():
            values.setdefault(setting, {})[name] = json.dumps(value)
    for setting, by_file in values.items():
        common = Counter(by_file.values()).most_common(1)[0][0]
        for name, value in by_file.items():
            if value != common:
                yield f"{name}: {setting} is {value}, in the other files {common}"


def findings(found: Mapping[str, dict[str, Any]], quality_margin: float) -> Findings:
    """All sections in one record; InputError that names the file and the key where one is not as documented.

    quality_margin: QUALITY_MARGIN of stage 7's settings.
    """
    sections = {name: envelope["results"] for name, envelope in found.items()}
    evaluation, settings = sections["evaluation"], found["evaluation"]["_metadata"]["settings"]
    uat = from_json(TriggerResults, sections["uat"], FILES["uat"])
    hotflip = from_json(HotFlipResults, sections["hotflip"], FILES["hotflip"])
    scores = from_json(EvaluationResults, evaluation, FILES["evaluation"])
    data = from_json(DataStatistics, sections["data"], FILES["data"])
    mechanism = from_json(MechanismResults, sections["mechanism"], FILES["mechanism"])
    confidence = settings["CONFIDENCE"]
    doubts = [*mechanism_doubts(mechanism.models), *summary_warnings(scores, data, confidence)]
    return Findings(
        confidence=confidence,
        quality_margin=quality_margin,
        setup=from_json(Setup, sections["setup"], FILES["setup"]),
        data=data,
        baseline_training=from_json(Training, sections["baseline_training"], FILES["baseline_training"]),
        monotonic_training=from_json(Training, sections["monotonic_training"], FILES["monotonic_training"]),
        control_training={
            arm: from_json(Training, sections[f"{arm}_training"], file_of(f"{arm}_training"))
            for arm in CONTROLS
            if f"{arm}_training" in sections
        },
        evaluation=scores,
        uat=uat,
        hotflip=hotflip,
        mechanism=mechanism.models,
        attribution=from_json(AttributionResults, sections["attribution"], FILES["attribution"]).arms,
        matched=from_json(Matched, sections["matched"], FILES["matched"]),
        warnings=ranked([*doubts, *uat.warnings, *hotflip.warnings]),
        missing_datasets=found["evaluation"]["_metadata"]["missing_datasets"],
        sources={name: _source(name, envelope["_metadata"]) for name, envelope in found.items()},
    )


def _source(name: str, metadata: Mapping[str, Any]) -> Source:
    kept = {field: metadata.get(field) for field in fields_of(Source)}
    return from_json(Source, kept, f"{file_of(name)}: _metadata")


def copy_to_permanent(source: Path, target: Path) -> int:
    """Copy a results directory as a whole and compare every file's hash; returns the number of files."""
    with new_directory(target) as new:
        shutil.copytree(source, new, dirs_exist_ok=True)
        files = [path for path in source.rglob("*") if path.is_file()]
        for path in files:
            if sha256_of(path) != sha256_of(new / path.relative_to(source)):
                raise StageError(f"the copy of {path.name} in {target.parent} differs from the original: disk trouble?")
    return len(files)


def publish_model(source: Path, target: Path) -> None:
    """The plain model in `source` as the directory `target`; hard links where the file system allows."""
    with new_directory(target) as new:
        for path in source.iterdir():
            link_or_copy(path, new / path.name)


def hashes_below(directory: Path, *, without: str) -> dict[str, str]:
    """sha256 of every file below `directory` by its path there, but for the one that is to hold them."""
    paths = sorted(path for path in directory.rglob("*") if path.is_file())
    names = {path.relative_to(directory).as_posix(): path for path in paths}
    return {name: sha256_of(path) for name, path in names.items() if name != without}
