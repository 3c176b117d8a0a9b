"""Completion flags that tell the truth: what made a stage's outputs, and whether that still holds. Torch-free.

A flag is written last and atomically, by utils/pipeline/runner.py alone. What counts is content: settings, the outputs
of the stages that were read, the user's own files, and the outputs. When, where or by which run a stage was done does
not count, so a shared stage that is repeated with the same outputs leaves every seed as it was.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from configs.arms import ARMS, MONOTONIC
from utils.core.errors import InputError
from utils.core.files import write_json
from utils.core.fingerprint import fingerprint
from utils.core.hashes import Allowance, Artifact, describe, describe_anew, is_unchanged
from utils.core.paths import Paths
from utils.core.results import read_result
from utils.core.settings import Settings
from utils.pipeline.stages import STAGES, Stage

FORMAT = 2
SETTINGS_CHANGED, INPUT = "settings changed", "its input"  # how these two problems begin: submission asks for them
_BY_CONTENT = "(a local path: its content counts)"


@dataclass(frozen=True)
class Basis:
    """What a stage's work starts from.

    settings: those of `Stage.settings`, JSON values. needs: token of each stage whose outputs are read, by its number,
    and the bytes of those that are copied.
    inputs: the user's own files, by name.
    """

    settings: Mapping[str, Any]
    needs: Mapping[str, str]
    inputs: Mapping[str, Artifact]

    @property
    def fingerprint(self) -> str:
        """Names everything that decides the stage's results: 16 hex digits."""
        return fingerprint(self.settings, self.needs, {name: item.sha256 for name, item in self.inputs.items()})


@dataclass(frozen=True)
class Flag:
    """One finished stage.

    stage: its key. seed: None for a stage that all seeds share. settings, needs, inputs: its `Basis`. outputs: by path.
    forced: name of the forced run that made it, "" for none. code: commit and dirty flag. finished: local time.
    run_id, slurm_job_id: of the process that finished it. seconds: of work in that process.
    """

    stage: str
    seed: int | None
    settings: Mapping[str, Any]
    needs: Mapping[str, str]
    inputs: Mapping[str, Artifact]
    outputs: Mapping[str, Artifact]
    forced: str
    code: Mapping[str, Any]
    finished: str
    run_id: str
    seconds: float
    slurm_job_id: str | None

    @property
    def token(self) -> str:
        """Names what later stages read of this one: settings, needs and content of its outputs; no times, no ids."""
        reports = next(stage.reports for stage in STAGES if stage.key == self.stage)
        read = sorted((Path(path).name, item.content or item.sha256) for path, item in self.outputs.items())
        content = [(name, digest) for name, digest in read if name not in reports]
        needs = {key: token for key, token in self.needs.items() if key.isdigit()}
        return fingerprint(self.stage, self.seed, self.settings, needs, content)

    @property
    def files(self) -> str:
        """Names the bytes of the outputs, for a stage that copies them with the times that are in them."""
        return fingerprint(sorted((Path(path).name, item.sha256) for path, item in self.outputs.items()))

    def to_json(self) -> dict[str, Any]:
        """The flag with its format, its token, and a seal that shows later edits."""
        body = {"format": FORMAT, **asdict(self), "token": self.token}
        return {**body, "seal": fingerprint(body)}

    @classmethod
    def from_json(cls, content: Any) -> Flag:
        """The flag; ValueError if `content` is not one, or was edited."""
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            raise ValueError("was not written by this version of the pipeline")
        body = {name: value for name, value in content.items() if name != "seal"}
        if content.get("seal") != fingerprint(body):
            raise ValueError("was changed after it was written")
        values = {field.name: body[field.name] for field in fields(cls)}  # sealed by us: every field is there
        for name in ("inputs", "outputs"):
            values[name] = {key: Artifact(**item) for key, item in values[name].items()}
        return cls(**values)


def basis_of(stage: Stage, seed: int, paths: Paths, settings: Settings) -> Basis:
    """What the stage would start from now; its needed stages must be done. Files that are missing are left out."""
    return Basis(
        settings=_settings_of(stage, settings),
        needs={
            **{str(n): read_flag(STAGES[n], seed, paths).token for n in stage.needs},
            **{_files_of(n): read_flag(STAGES[n], seed, paths).files for n in stage.copies},
        },
        inputs={name: describe(path) for name, path in stage.external(settings).items() if path.exists()},
    )


def write_flag(
    stage: Stage, seed: int, paths: Paths, settings: Settings, basis: Basis, *, forced: str = "", facts: dict[str, Any]
) -> Flag:
    """Describe the stage's outputs as they are now and write the flag.

    facts: the fields of Flag that tell when and where (code, finished, run_id, seconds, slurm_job_id).
    InputError if a file of the user changed while the stage ran: nobody knows which content it read.
    """
    for name, artifact in basis_of(stage, seed, paths, settings).inputs.items():
        before = basis.inputs.get(name)
        if before is None or before.sha256 != artifact.sha256:
            raise InputError(f"{name} was changed while this stage was running. Run the stage again.")
    flag = Flag(
        stage=stage.key,
        seed=stage.seed_of(seed),
        settings=basis.settings,
        needs=basis.needs,
        inputs=basis.inputs,
        outputs={
            str(path): replace(describe_anew(path), content=_content_of(path)) for path in stage.outputs(paths, seed)
        },
        forced=forced,
        **facts,
    )
    write_json(paths.flag(stage.key, stage.seed_of(seed)), flag.to_json())
    return flag


def clear_flag(stage: Stage, seed: int, paths: Paths) -> None:
    """Remove the stage's flag: from here on it is not done."""
    paths.flag(stage.key, stage.seed_of(seed)).unlink(missing_ok=True)


def read_flag(stage: Stage, seed: int, paths: Paths) -> Flag:
    """The stage's flag; FileNotFoundError if there is none, ValueError (in words) if it is not one of ours."""
    path = paths.flag(stage.key, stage.seed_of(seed))
    try:
        flag = Flag.from_json(json.loads(path.read_text(encoding="utf-8")))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"its flag {path} is empty or damaged") from error
    except ValueError as error:
        raise ValueError(f"its flag {path} {error}") from error
    if flag.stage != stage.key or flag.seed != stage.seed_of(seed):
        raise ValueError(f"its flag {path} is that of another stage or seed")
    return flag


def is_as_flagged(output: Path, flag: Path) -> bool:
    """Whether `output` has the content that the flag of whoever wrote it tells; it is read for that."""
    try:
        known = Flag.from_json(json.loads(flag.read_text(encoding="utf-8"))).outputs
    except (OSError, ValueError):
        return False
    return any(Path(path).name == output.name and one.sha256 == describe(output).sha256 for path, one in known.items())


class Completion:
    """Which stages of a seed are done under these settings, and why the others are not. Each is looked at once.

    With an `allowance` files whose times changed and that are too large to read now count as unchanged; their stages
    are in `unread`, by number.
    """

    def __init__(self, seed: int, paths: Paths, settings: Settings, allowance: Allowance | None = None) -> None:
        self._seed, self._paths, self._settings, self._allowance = seed, paths, settings, allowance
        self.unread: set[int] = set()
        self._stale: dict[int, str | None] = {}

    def problem(self, stage: Stage) -> str | None:
        """Why the stage is not done, in words, or None if it is."""
        return self.stale(stage) or self._output_problem(stage, reports=True)

    def stale(self, stage: Stage) -> str | None:
        """Why later stages cannot use what this one left, or None if they can. A missing report is no reason."""
        if stage.number not in self._stale:
            self._stale[stage.number] = self._look(stage)
        return self._stale[stage.number]

    def _look(self, stage: Stage) -> str | None:
        try:
            flag = read_flag(stage, self._seed, self._paths)
        except FileNotFoundError:
            return "not done yet"
        except ValueError as error:
            return str(error)
        if changed := list(_differences(flag.settings, _settings_of(stage, self._settings))):
            return f"{SETTINGS_CHANGED}: " + ", ".join(changed)
        if problem := self._input_problem(stage, flag):
            return problem
        for number in stage.needs:
            needed = STAGES[number]
            if problem := self.stale(needed):
                return f"needs stage {needed.key}, which must run again ({problem})"
            if flag.needs.get(str(number)) != read_flag(needed, self._seed, self._paths).token:
                return f"stage {needed.key} has other outputs now than those it was made from"
        for number in stage.copies:  # flags of older versions do not tell
            name = _files_of(number)
            if name in flag.needs and flag.needs[name] != read_flag(STAGES[number], self._seed, self._paths).files:
                return f"stage {STAGES[number].key} has written its files again"
        if {Path(path) for path in flag.outputs} != set(stage.outputs(self._paths, self._seed)):
            return "its outputs lie elsewhere now (the directories changed)"
        return self._output_problem(stage, reports=False)

    def _input_problem(self, stage: Stage, flag: Flag) -> str | None:
        external = stage.external(self._settings)
        for name in sorted({*external, *flag.inputs}):
            if name not in external or not external[name].exists():
                return f"{INPUT} {name} is gone" + (f" ({external[name]})" if name in external else "")
            if name not in flag.inputs:
                return f"{INPUT} {name} is new ({external[name]})"
            if not self._same(stage, external[name], flag.inputs[name]):
                return f"{INPUT} {name} was changed ({external[name]})"
        return None

    def _same(self, stage: Stage, path: Path, artifact: Artifact) -> bool:
        same = is_unchanged(path, artifact, self._paths.known_hashes, self._allowance)
        if same is None:
            self.unread.add(stage.number)
        return same is not False

    def _output_problem(self, stage: Stage, *, reports: bool) -> str | None:
        for name, artifact in read_flag(stage, self._seed, self._paths).outputs.items():
            path = Path(name)
            if (path.name in stage.reports) != reports:
                continue
            if not path.exists():
                return f"its output {path} is gone"
            if not self._same(stage, path, artifact):
                return f"its output {path} was changed after the stage finished"
        return None


def problem_of(stage: Stage, seed: int, paths: Paths, settings: Settings) -> str | None:
    """Why the stage is not done under these settings, in words, or None if it is."""
    return Completion(seed, paths, settings).problem(stage)


def input_problem(stage: Stage, seed: int, paths: Paths, settings: Settings) -> str | None:
    """Which stage must run before this one can, and why; None if all inputs are there and current."""
    completion = Completion(seed, paths, settings)
    problems = ((STAGES[number].key, completion.stale(STAGES[number])) for number in stage.needs)
    return next((f"stage {key}: {problem}" for key, problem in problems if problem), None)


def output_hashes(stage: Stage, seed: int, paths: Paths) -> dict[str, str]:
    """sha256 of each output that later stages read, by path, as the stage's flag recorded it."""
    outputs = read_flag(stage, seed, paths).outputs
    return {path: item.sha256 for path, item in outputs.items() if Path(path).name not in stage.reports}


def _files_of(number: int) -> str:
    """Key of a stage's bytes among `Basis.needs`, beside its token."""
    return f"files of {number}"


def _content_of(path: Path) -> str:
    """What `Artifact.content` holds; "" where `path` is no result file."""
    try:
        envelope = read_result(path) if path.suffix == ".json" else None
    except InputError:
        return ""
    return fingerprint(envelope["results"], envelope["_metadata"].get("checkpoints")) if envelope else ""


def _settings_of(stage: Stage, settings: Settings) -> dict[str, Any]:
    """The settings that the stage depends on; a path whose content is an input counts by that content alone."""
    by_content = {name.partition("/")[0] for name in stage.external(settings)}
    values = settings.subset(stage.settings)
    if "CONTROL_ARMS" in values:  # an arm counts by its entry: whoever edits that has another arm
        arms = {name: asdict(ARMS[name]) | {"summary": ""} for name in (MONOTONIC, *settings.CONTROL_ARMS)}
        values["arms"] = {name: fingerprint(arm) for name, arm in arms.items()}
    return {name: _BY_CONTENT if name in by_content else value for name, value in values.items()}


def _differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[str]:
    for name in sorted({*old, *new}):
        if old.get(name) != new.get(name):
            yield f"{name} {old.get(name)} -> {new.get(name)}"
