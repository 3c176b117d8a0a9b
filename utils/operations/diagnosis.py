"""diagnose_and_recover.sh: what broke, the evidence for it, and the command that repairs it. Torch-free.

Causes are read from what SLURM says of the job and from the ends of its logs, and the line that says so is quoted. With
--fix only what is safe is done: incomplete temporary files are removed, and the run is submitted again from its first
incomplete stage, unless a cause is known that repeating cannot help. Nothing here writes a completion flag.
"""

from __future__ import annotations

import os
import shlex
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from utils.core.errors import UserError
from utils.core.files import TEMPORARY_SUFFIX
from utils.core.paths import CHECKOUT, Paths
from utils.core.settings import Settings, as_typed, load_settings
from utils.core.text import printable
from utils.operations.causes import Cause
from utils.operations.evidence import cause_of, evidence_of
from utils.operations.pending_reasons import explain
from utils.operations.running import refuse_while_running
from utils.operations.seed_facts import SeedFacts, collect
from utils.operations.status import BEHIND, NOT_BROKEN, SeedStatus, StageStatus, commands_about, status_of
from utils.pipeline.flags import Completion
from utils.pipeline.stages import STAGES


@dataclass(frozen=True)
class Finding:
    """A broken stage (or aggregate): its cause, the line that shows it, and whether the same command can go better."""

    row: StageStatus
    cause: Cause
    evidence: str
    repeat: bool

    def __str__(self) -> str:
        return (
            f"{_name(self.row)}: {self.row.state}. Cause: {self.cause.name}.\n"
            f"  evidence: {self.evidence}\n  log:      {self.row.log}\n  to do:    {self.cause.remedy}"
        )


def _name(row: StageStatus) -> str:
    """Names of stages begin with their number, those of aggregates and pages do not."""
    return row.stage if row.stage[0].isalpha() else f"stage {row.stage}"


def main(seed: int, *, fix: bool = False) -> int:
    """Explain what is broken; returns the exit code: 0 nothing is broken (any more), 1 something is."""
    paths = Paths.of(load_settings())
    (facts,) = collect([seed], paths, read_all=True)
    status = status_of(facts, paths)
    for note in status.notes:
        _say(note)
    rows = [*status.stages, *status.aggregates]
    broken = [row for row in rows if row.state not in NOT_BROKEN]
    findings = _findings([row for row in broken if row.state != "stuck" and row.detail != BEHIND], facts)
    for finding in findings:
        _say(str(finding))
    behind = [row for row in broken if row.detail == BEHIND]
    if behind:
        _say(f"behind it: {', '.join(f'{row.stage} ({row.state})' for row in behind)}")
    waiting = _explain_waiting(rows, facts)
    busy = _busy(status, paths)
    torn = [] if busy else torn_files(paths, seed)  # what is being written now is not torn
    for path in torn:
        _say(f"incomplete temporary file: {path}")
    if not broken and not torn:
        _say(_all_well(status, waiting))
        return 0
    repeated = _repeated(status, facts, paths)
    for stage, problem in repeated.items():
        _say(f"note: with the settings of this shell stage {stage}, which is done, would run again: {problem}")
    helping = {name for finding in findings for name in finding.cause.settings}
    cancel, command = commands_about(status.stages[0], facts, changed=helping)
    if fix:
        return _fix(torn, command, findings, broken, busy, repeated)
    if broken:
        # Jobs that can never start stand in the way of a new submission.
        first = f"{cancel} && " if any(row.state in ("never satisfiable", "stuck") for row in rows) else ""
        _say(f"\nthen:  {first}{command}")
    _say(f"--fix does what is safe of it:  ./diagnose_and_recover.sh {seed} --fix")
    return 1


# ---- what is wrong --------------------------------------------------------------------------------------------------


def _findings(rows: Sequence[StageStatus], facts: SeedFacts) -> list[Finding]:
    """The cause of each broken row."""
    now = load_settings()
    found = []
    for row in rows:
        evidence = evidence_of(row)
        cause = cause_of(evidence.judged, row.state, evidence.exit_status)
        found.append(Finding(row, cause, evidence.line, repeating_helps(cause, row, facts.settings, now)))
    return found


def repeating_helps(cause: Cause, row: StageStatus, then: Settings, now: Settings) -> bool:
    """Whether the same command can go better: by its cause, or because a setting that helps was changed since."""
    changed = any(then.subset([name]) != now.subset([name]) for name in cause.settings)
    resumable = any(stage.key == row.stage and stage.resumable for stage in STAGES)
    if cause.name == "time limit" and not resumable:
        return changed  # it saves no progress: it would reach the limit again
    return cause.repeat or changed


def _explain_waiting(rows: Sequence[StageStatus], facts: SeedFacts) -> list[StageStatus]:
    """Say why pending jobs do not start, where it is more than waiting for a turn; returns their rows."""
    told = []
    for row in rows:
        known = explain(row.reason) if row.state in ("stuck", "queued") and row.reason else None
        if known:
            verb = "cannot start" if known.stuck else "may wait long"
            _say(f"{_name(row)}: {verb}. Job {row.job_id} is pending: {row.reason}.")
            remedy = known.remedy_for(row.job_id, *commands_about(row, facts))
            _say(f"  meaning:  {known.meaning}\n  to do:    {remedy}")
            told.append(row)
    return told


def _all_well(status: SeedStatus, waiting: Sequence[StageStatus]) -> str:
    left = ", ".join(row.stage for row in status.stages if row.state != "done")
    rest = f"; to do: {left}." if left else ", all is done."
    return (
        f"seed {status.seed}: nothing has failed" + rest if waiting else f"seed {status.seed}: nothing is broken{rest}"
    )


def _busy(status: SeedStatus, paths: Paths) -> str:
    """What runs or waits, or might, so that nothing may be touched; "" if nothing does."""
    try:
        refuse_while_running(paths, [status.seed])
    except UserError as error:
        return str(error)
    running = [row.stage for row in status.stages if row.state == "running"]
    return f"stage {', '.join(running)} is running" if running else ""


def _repeated(status: SeedStatus, facts: SeedFacts, paths: Paths) -> dict[str, str]:
    """Stages that the run's own settings call done and this shell's do not, with the reason."""
    completion = Completion(status.seed, paths, load_settings())
    done = [stage for stage, row in zip(STAGES, status.stages, strict=True) if row.state == "done"]
    problems = {stage.key: completion.problem(stage) for stage in done}
    return {key: problem for key, problem in problems.items() if problem}


def torn_files(paths: Paths, seed: int) -> list[Path]:
    """What killed processes left of files and directories that they were writing; complete ones have other names.

    Of the directories that all seeds share only where no job of any seed runs.
    """
    pattern = f".*{TEMPORARY_SUFFIX}"
    found = [path for root in (paths.work / f"seed_{seed}", paths.results(seed)) for path in root.rglob(pattern)]
    try:
        refuse_while_running(paths, None)
    except UserError:
        pass
    else:
        found += [path for root in (paths.work, paths.results_root) for path in root.glob(pattern)]
    return sorted(path for path in found if not path.name.endswith(f".old{TEMPORARY_SUFFIX}"))


# ---- what to do -----------------------------------------------------------------------------------------------------


def _fix(
    torn: Sequence[Path],
    command: str,
    findings: Sequence[Finding],
    broken: Sequence[StageStatus],
    busy: str,
    repeated: dict[str, str],
) -> int:
    if busy:
        _say(f"nothing is done: {busy}")
        return 1
    if repeated:
        _say("nothing is done: set what changed as it was, or type the command yourself if you mean it.")
        return 1
    for path in torn:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
        _say(f"removed {path}")
    if not broken:
        return 0
    in_vain = [finding for finding in findings if not finding.repeat]
    if in_vain:
        names = ", ".join(f"{finding.row.stage}: {finding.cause.name}" for finding in in_vain)
        _say(f"not run again, it would end the same way ({names}). Do what is said above, then: {command}")
        return 1
    _say(f"\n{command}")
    *variables, script, seed = (words := shlex.split(command))[: words.index("./run_all.sh") + 2]
    environment = os.environ | dict(variable.split("=", 1) for variable in variables)
    os.execve(CHECKOUT / script, [str(CHECKOUT / script), seed, *words[len(variables) + 2 :]], environment)


def _say(text: str) -> None:
    print(as_typed(printable(text)), flush=True)
