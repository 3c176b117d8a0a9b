"""Where results come from: whose directory it is, settings and seeds of the parts, hashes of files and weights.

A forger who changes every file to fit leaves no trace inside a results directory. What lies outside is the anchor: the
flags of the stages in the work directory, where they can be reached, and the sha256 that stage 7 printed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from utils.analysis.aggregate import FILES, FINAL, SHARED, file_of, files_of_other_runs, hashes_below, read_sections
from utils.core.files import sha256_of
from utils.core.fingerprint import fingerprint
from utils.core.hashes import WEIGHT_PATTERNS
from utils.core.names import STANDARD
from utils.core.paths import Paths
from utils.core.results import read_result
from utils.pipeline.flags import Flag, read_flag
from utils.pipeline.stages import STAGES
from utils.verification.check import Check, close

_ROOT = re.compile(r"mono_s2s_(?:final_)?results(?P<suffix>.*)")
_SEED = re.compile(r"seed_(\d+)")
_RUN_ID = re.compile(r"(\d{8})_(\d{6})_seed(\d+)")
_CARD = "README.md"  # the only file of an exported model that stage 7 itself writes


@dataclass(frozen=True)
class SeedDirectory:
    """A results directory of one seed with its envelopes; InputError where a result file is missing or damaged."""

    path: Path

    @cached_property
    def parts(self) -> dict[str, dict[str, Any]]:
        """The envelopes that final_results.json was put together from, by section."""
        return read_sections(self.path)

    @cached_property
    def final(self) -> dict[str, Any]:
        return read_result(self.path / FINAL)

    @cached_property
    def envelopes(self) -> dict[str, dict[str, Any]]:
        """Every envelope by its file name."""
        return {file_of(name): envelope for name, envelope in self.parts.items()} | {FINAL: self.final}

    @property
    def metadata(self) -> dict[str, Any]:
        metadata: dict[str, Any] = self.final["_metadata"]
        return metadata

    @property
    def models(self) -> list[str]:
        """The models that were evaluated, in order."""
        return list(self.parts["evaluation"]["_metadata"]["checkpoints"])

    @cached_property
    def at_home(self) -> bool:
        """Whether it lies where the pipeline puts such a directory; a copy elsewhere may be of any age and name."""
        return bool(_ROOT.fullmatch(self.path.resolve().parent.name) and _SEED.fullmatch(self.path.resolve().name))

    @cached_property
    def work(self) -> Path | None:
        """The work directory of the run, by the note beside the directory or the recorded inputs; None: not here."""
        root = self.path.resolve().parent
        named = _ROOT.fullmatch(root.name)
        candidates = [root.parent / f"mono_s2s_work{named['suffix']}"] if named else []
        note = root / f".{self.path.resolve().name}.scratch.json"
        if named and note.exists():
            scratch = Path(json.loads(note.read_text(encoding="utf-8"))["scratch"])
            candidates.insert(0, scratch / f"mono_s2s_work{named['suffix']}")
        for envelope in self.parts.values():
            for place in map(Path, envelope["_metadata"].get("inputs", {})):
                candidates += [folder for folder in place.parents if folder.name.startswith("mono_s2s_work")]
        return next((folder for folder in candidates if folder.is_dir()), None)

    def input_named(self, name: str) -> Path | None:
        """A recorded input of that name that is still where it was."""
        for envelope in self.parts.values():
            for place in map(Path, envelope["_metadata"].get("inputs", {})):
                if place.name == name and place.exists():
                    return place
        return None


def identity(run: SeedDirectory) -> Check:
    """Whether these are the results that belong in this directory, and those that stage 7's flag names."""
    check = Check("whose results these are: directory, run, flags of the stages", [])
    metadata, place = run.metadata, run.path.resolve()
    seed = _SEED.fullmatch(place.name)
    if seed and int(seed[1]) != metadata["seed"]:
        check.problems.append(f"{place.name} holds {FINAL} of seed {metadata['seed']} (run {metadata['run_id']})")
    named = _ROOT.fullmatch(place.parent.name)
    if named and (f"{named['suffix']}_".startswith("_quick_")) != (metadata["profile"] == "quick"):
        check.problems.append(f"{place.parent.name} holds {FINAL} of the profile {metadata['profile']}")
    if run.work is None:
        check.unseen.append("the flags of the stages (the work directory is not on this machine)")
        return check
    flags = dict(_flags(run.work, metadata["seed"]))
    last = flags.get(7)
    if last is None:
        check.unseen.append(f"stage 7's flag (there is none of seed {metadata['seed']} in {run.work})")
    elif last.run_id != metadata["run_id"]:
        words = f"{FINAL} is of run {metadata['run_id']}, the flag of stage 7 in {run.work} of run {last.run_id}"
        (check.problems if run.at_home else check.unseen).append(words)
    else:
        for number, flag in flags.items():
            check.problems += _not_as_flagged(run.path, number, flag)
    return check


def _flags(work: Path, seed: int) -> Iterator[tuple[int, Flag]]:
    """The readable flags of the stages 2 to 7 of a seed; others wrote the shared ones anew, perhaps."""
    found = _ROOT.fullmatch(work.name.replace("mono_s2s_work", "mono_s2s_results"))
    paths = Paths(work.parent, work.parent, found["suffix"] if found else "")
    for stage in STAGES:
        if stage.per_seed and paths.flag(stage.key, seed).exists():
            try:
                yield stage.number, read_flag(stage, seed, paths)
            except (ValueError, OSError):
                continue  # an unreadable flag makes its stage run again; it says nothing about these files


def _not_as_flagged(directory: Path, number: int, flag: Flag) -> Iterator[str]:
    for place, artifact in flag.outputs.items():
        path = directory / Path(place).name
        if path.is_file() and sha256_of(path) != artifact.sha256:
            yield f"{path.name} is not what stage {number} left (sha256 {artifact.sha256[:12]} in its flag)"


def settings(run: SeedDirectory) -> Iterator[str]:
    """Envelopes whose fingerprint, profile, run id, seed or settings contradict each other."""
    yield from files_of_other_runs(run.envelopes)
    for name, envelope in run.envelopes.items():
        metadata = envelope["_metadata"]
        if fingerprint(metadata["settings"]) != metadata["config_fingerprint"]:
            yield f"{name}: config_fingerprint {metadata['config_fingerprint']} is not that of its settings"
        for key, setting in (("profile", "PROFILE"), ("full_test_sets", "USE_FULL_TEST_SETS")):
            if setting in metadata["settings"] and metadata[key] != metadata["settings"][setting]:
                yield f"{name}: {key} {metadata[key]}, its setting {setting} is {metadata['settings'][setting]}"
        parts = _RUN_ID.fullmatch(metadata["run_id"])
        digits = re.sub(r"\D", "", metadata["timestamp"])
        if not parts or parts[1] + parts[2] != digits or int(parts[3]) != metadata["seed"]:
            yield f"{name}: run {metadata['run_id']} is not of {metadata['timestamp']} and seed {metadata['seed']}"


def training(run: SeedDirectory) -> Iterator[str]:
    """Histories that contradict themselves, the settings, the set-up, or each other about the data."""
    data = run.parts["baseline_training"]["results"]["data_sha256"]
    weights = run.parts["setup"]["results"]["model"]["weights_sha256"]
    for section in (name for name in run.parts if name.endswith("_training")):
        name, metadata, history = file_of(section), run.parts[section]["_metadata"], run.parts[section]["results"]
        losses = [row["validation_loss"] for row in history["epochs"]]
        best = losses.index(min(losses)) + 1
        told = {
            "best_epoch": (history["best_epoch"], best),
            "best_validation_loss": (history["best_validation_loss"], losses[best - 1]),
            "total_steps": (history["total_steps"], sum(row["steps"] for row in history["epochs"])),
            "settings.epochs": (history["settings"]["epochs"], len(losses)),
            "settings.seed": (history["settings"]["seed"], metadata["seed"]),
            "initial_weights_sha256": (history["initial_weights_sha256"], weights),
            "data_sha256": (history["data_sha256"], data),
            **{
                f"settings.{key}": (value, metadata["settings"][key.upper()])
                for key, value in history["settings"].items()
                if key.upper() in metadata["settings"]
            },
        }
        for key, (found, expected) in told.items():
            same = close(expected, found) if isinstance(found, float) else found == expected
            if not same:
                yield f"{name}: {key} is {found}, by the rest of the run it is {expected}"


def chain(run: SeedDirectory) -> Check:
    """Files whose hash an envelope holds: beside it by name, else where they lay (the work directory)."""
    check = Check("hashes: data, checkpoints, records and report", [])
    for name, envelope in run.envelopes.items():
        for place, digest in envelope["_metadata"].get("inputs", {}).items():
            beside = run.path / Path(place).name
            path = beside if beside.is_file() else Path(place)
            if not path.exists():
                check.unseen.append(str(path))
            elif sha256_of(path) != digest:
                check.problems.append(f"{path} is not what {name} was made from")
    check.problems += changed_files(run.path, run.metadata["files"], FINAL)
    check.unseen = sorted(set(check.unseen))
    return check


def changed_files(directory: Path, recorded: Mapping[str, str], without: str) -> Iterator[str]:
    """Files below `directory`, but for `without`, that are not those whose hashes were recorded, by relative path."""
    here = hashes_below(directory, without=without)
    for name in sorted({*recorded, *here}):
        if recorded.get(name) != here.get(name):
            words = "is gone" if name not in here else "is not of this run" if name not in recorded else "was changed"
            yield f"{name} {words}"


def weights(run: SeedDirectory) -> Iterator[str]:
    """Envelopes and exported models that name or hold other weights than those evaluated."""
    from utils.core.hashes import weights_sha256

    wanted = run.parts["evaluation"]["_metadata"]["checkpoints"]
    claims = [
        (f"{name}: {model}", model, digest)
        for name, envelope in run.envelopes.items()
        for model, digest in envelope["_metadata"].get("checkpoints", {}).items()
    ]
    claims.append((FILES["setup"], STANDARD, run.parts["setup"]["results"]["model"]["weights_sha256"]))
    for section in (name for name in run.parts if name.endswith("_training")):
        arm = section.removesuffix("_training")
        claims.append((file_of(section), arm, run.parts[section]["results"]["weights_sha256"]))
        exported = run.path / "models" / arm
        there = any(any(exported.glob(pattern)) for pattern in WEIGHT_PATTERNS)
        claims.append((f"models/{arm}", arm, weights_sha256(exported) if there else "not there"))
        yield from _other_files(run, arm)
    for where, model, digest in claims:
        if wanted.get(model) != digest:
            yield f"{where} is {digest[:12]}, evaluated was {str(wanted.get(model))[:12]}"


def _other_files(run: SeedDirectory, arm: str) -> Iterator[str]:
    """An exported model whose files (config, generation config, tokenizer, weights) are not those evaluated."""
    exported = run.path / "models" / arm
    if not exported.is_dir():
        return
    recorded = [
        digest
        for place, digest in run.parts["evaluation"]["_metadata"]["inputs"].items()
        if Path(place).name == "best" and Path(place).parent.name == f"{arm}_model"
    ]
    if recorded and sha256_of(exported, without=_CARD) != recorded[0]:
        yield f"models/{arm}: its files (config, tokenizer, weights) are not those of the evaluated checkpoint"


def prepared_copies(run: SeedDirectory) -> Check:
    """What stage 1 left in the prepared data as well, where that is still there."""
    check = Check("data_statistics.json and removed_examples.jsonl against the prepared data", [])
    prepared = run.input_named("prepared_data")
    if prepared is None:
        check.unseen.append("the prepared data")
        return check
    for name in SHARED:
        if (prepared / name).is_file() and sha256_of(prepared / name) != sha256_of(run.path / name):
            check.problems.append(f"{name} is not the one in {prepared}")
    manifest = json.loads((prepared / "manifest.json").read_text(encoding="utf-8"))
    claimed: Mapping[str, Any] = run.parts["data"]["results"]["prepared"]
    if manifest["sets"] != claimed:
        wrong = sorted(key for key in {*claimed, *manifest["sets"]} if manifest["sets"].get(key) != claimed.get(key))
        check.problems.append(f"data_statistics.json: {', '.join(wrong)} not as in the manifest of {prepared}")
    return check
