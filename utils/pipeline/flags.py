"""Completion flags that tell the truth: what made a stage's outputs, and whether that still holds. Torch-free.

A flag is JSON: the settings that the stage depends on, the code revision, the tokens of the stages it read, and its
outputs, each with sha256 and a stamp (names, sizes, times). It is written last and atomically, by
utils/pipeline/runner.py alone. `problem_of` says in words why a flag does not hold, or None if it does. An output whose
stamp is as recorded is not hashed again (as git and make do); any other is.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from utils.core.files import sha256_of, write_json
from utils.core.paths import Paths
from utils.core.settings import Settings
from utils.pipeline.stages import STAGES, Stage

FORMAT = 1
_FIELDS = {"format", "stage", "seed", "settings", "outputs", "needs", "token", "code", "finished"}


def write_flag(stage: Stage, seed: int, paths: Paths, settings: Settings, facts: dict[str, Any]) -> dict[str, Any]:
    """Describe the stage's outputs as they are now and write the flag; `facts` (code, finished, run_id...) go along."""
    flag = {
        "format": FORMAT,
        "stage": stage.key,
        "seed": stage.seed_of(seed),
        "settings": settings.subset(stage.settings),
        "needs": {str(n): read_flag(STAGES[n], seed, paths)["token"] for n in stage.needs},
        "outputs": {str(path): describe(path) for path in stage.outputs(paths, seed)},
        **facts,
    }
    flag["token"] = _token(flag)
    write_json(paths.flag(stage.key, stage.seed_of(seed)), flag)
    return flag


def clear_flag(stage: Stage, seed: int, paths: Paths) -> None:
    """Remove the stage's flag: from here on it is not done."""
    paths.flag(stage.key, stage.seed_of(seed)).unlink(missing_ok=True)


def read_flag(stage: Stage, seed: int, paths: Paths) -> dict[str, Any]:
    """The flag's content; FileNotFoundError if there is none, ValueError (in words) if it is not one of ours."""
    path = paths.flag(stage.key, stage.seed_of(seed))
    try:
        flag = json.loads(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise ValueError(f"its flag {path} is damaged") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"its flag {path} is empty or damaged") from error
    if not isinstance(flag, dict) or not set(flag) >= _FIELDS or flag["format"] != FORMAT:
        raise ValueError(f"its flag {path} was not written by this pipeline")
    if flag["token"] != _token(flag) or flag["stage"] != stage.key or flag["seed"] != stage.seed_of(seed):
        raise ValueError(f"its flag {path} was changed after it was written")
    return flag


def problem_of(stage: Stage, seed: int, paths: Paths, settings: Settings) -> str | None:
    """Why the stage is not done under these settings, in words, or None if it is."""
    try:
        flag = read_flag(stage, seed, paths)
    except FileNotFoundError:
        return "not done yet"
    except ValueError as error:
        return str(error)
    changed = _changed(flag["settings"], settings.subset(stage.settings))
    if changed:
        return "settings changed: " + ", ".join(changed)
    for number in stage.needs:
        needed = STAGES[number]
        problem = problem_of(needed, seed, paths, settings)
        if problem:
            return f"needs stage {needed.key}, which must run again ({problem})"
        if flag["needs"].get(str(number)) != read_flag(needed, seed, paths)["token"]:
            return f"stage {needed.key} has run again since"
    recorded = {Path(path): facts for path, facts in flag["outputs"].items()}
    if set(recorded) != set(stage.outputs(paths, seed)):
        return "its outputs lie elsewhere now (the directories changed)"
    for path, facts in recorded.items():
        problem = _output_problem(path, facts)
        if problem:
            return problem
    return None


def input_problem(stage: Stage, seed: int, paths: Paths, settings: Settings) -> str | None:
    """Which stage must run before this one can, and why; None if all inputs are there and current."""
    for number in stage.needs:
        problem = problem_of(STAGES[number], seed, paths, settings)
        if problem:
            return f"stage {STAGES[number].key}: {problem}"
    return None


def describe(path: Path) -> dict[str, Any]:
    """sha256 of a file or directory, and a stamp of the names, sizes and modification times in it."""
    return {"sha256": sha256_of(path), "stamp": _stamp(path)}


def output_hashes(stage: Stage, seed: int, paths: Paths) -> dict[str, str]:
    """sha256 of each output by path, as the stage's flag recorded it."""
    return {path: facts["sha256"] for path, facts in read_flag(stage, seed, paths)["outputs"].items()}


def _stamp(path: Path) -> str:
    files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
    stats = [(file, file.stat()) for file in files]
    listing = [f"{file.relative_to(path)}\0{stat.st_size}\0{stat.st_mtime_ns}" for file, stat in stats]
    return hashlib.sha256("\n".join(listing).encode()).hexdigest()[:16]


def _output_problem(path: Path, facts: dict[str, Any]) -> str | None:
    if not path.exists():
        return f"its output {path} is gone"
    if _stamp(path) != facts["stamp"] and sha256_of(path) != facts["sha256"]:
        return f"its output {path} was changed after the stage finished"
    return None


def _changed(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    return [
        f"{name} {old.get(name)} -> {new.get(name)}" for name in sorted(old | new) if old.get(name) != new.get(name)
    ]


def _token(flag: dict[str, Any]) -> str:
    body = {name: value for name, value in flag.items() if name != "token"}
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()[:16]
