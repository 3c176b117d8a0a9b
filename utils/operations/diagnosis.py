"""diagnose_and_recover.sh: what broke, the evidence for it, and the command that mends it. Torch-free.

Causes are read from what SLURM says of the job and from the ends of its logs, and the line that says so is quoted. With
--fix only what is safe is done: torn temporary files go, and the run is submitted again from its first incomplete
stage. Nothing here writes a completion flag.
"""

from __future__ import annotations

import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from utils.core.errors import UserError
from utils.core.files import TEMPORARY_SUFFIX
from utils.core.paths import CHECKOUT, Paths
from utils.core.settings import load_settings
from utils.core.text import lines_of, tail_of
from utils.operations.cleanup import refuse_while_running
from utils.operations.status import BEHIND, SeedStatus, StageStatus, status_of
from utils.pipeline.flags import problem_of
from utils.pipeline.stages import STAGES
from utils.slurm.run_record import RunRecord, records

BROKEN = {
    "failed",
    "timed out",
    "out of memory",
    "cancelled",
    "node failed",
    "preempted",
    "stopped",
    "stale",
    "unknown",
    "never satisfiable",
}


@dataclass(frozen=True)
class Cause:
    """A cause by name, the words in a log (or SLURM's state) that betray it, and what to do about it."""

    name: str
    pattern: str
    remedy: str


# The first that matches counts: what is more specific stands first.
CAUSES = (
    Cause(
        "out of GPU memory",
        r"CUDA out of memory|OutOfMemoryError",
        "halve EVAL_BATCH_SIZE or ATTACK_BATCH_SIZE (no influence on results), or ask for a larger GPU in SLURM_GRES",
    ),
    Cause(
        "out of memory",
        r"oom[-_ ]kill|Out Of Memory|out of memory|MemoryError|exit status 137",
        "raise SLURM_MEMORY_SCALE in configs/experiment_config.py (2.0 doubles every stage's memory)",
    ),
    Cause(
        "time limit",
        r"DUE TO TIME LIMIT|timed out|TIMEOUT|it was \d+ times already",
        "nothing is lost: the same command goes on; raise SLURM_TIME_SCALE if it happens again",
    ),
    Cause(
        "disk full",
        r"[Nn]o space left|Disk quota exceeded",
        "make room: ./clean_checkpoints.sh, or another SCRATCH_DIR",
    ),
    Cause(
        "loss is not a number",
        r"loss is (not finite|NaN|nan)|NaN loss|not a finite number|loss.*\bnan\b",
        "lower LEARNING_RATE for both models, or set PRECISION=fp32; then run again",
    ),
    Cause(
        "hub out of reach",
        r"no success in \d+ tries|cannot be had|OfflineModeIsEnabled|ConnectError|Name or service not known",
        "run stages 0 and 1 where there is internet: ./run_all.sh --local --stop-stage 1; or name local copies in "
        "DATASETS_FILE",
    ),
    Cause(
        "inputs missing or stale",
        r"inputs missing or stale|settings changed|was changed after|is gone|has other outputs now|must run again",
        "the same command runs again what is needed",
    ),
    Cause("node failure", r"node failed|NODE_FAIL|DUE TO NODE FAILURE", "the same command goes on elsewhere"),
    Cause(
        "wrong setting or option",
        r"no such setting|expected a |is not set|exit status 2\b|cannot write",
        "mend what the line names, then run again",
    ),
    Cause("cancelled", r"got SIGTERM|Interrupted by SIG|CANCELLED|cancelled", "the same command goes on"),
)
UNKNOWN = Cause("unknown", "", "read the log; the same command tries again")


def main(seed: int, *, fix: bool = False) -> int:
    """Explain what is broken; returns the exit code: 0 nothing is broken (any more), 1 something is."""
    paths = Paths.of(load_settings())
    status = status_of(seed, paths)
    runs = records(paths, seed)
    if status.note:
        print(status.note)
    broken = [row for row in status.stages if row.state in BROKEN]
    _explain_all(broken)
    busy = _busy(status, paths)
    torn = [] if busy else torn_files(paths, seed)  # what is being written now is not torn
    for path in torn:
        print(f"torn temporary file: {path}")
    if not broken and not torn:
        left = [row.stage for row in status.stages if row.state != "done"]
        rest = f"; to do: {', '.join(left)}." if left else ", all is done."
        print(f"seed {seed}: nothing is broken{rest}")
        return 0
    repeated = _repeated(status, paths)
    for stage, problem in repeated.items():
        print(f"note: here and now stage {stage}, which is done, would run again: {problem}")
    command = _again(seed, runs)
    if fix:
        return _fix(torn, command, bool(broken), busy, repeated)
    if broken:
        first = f"./run_all.sh --cancel {seed} && " if _never(broken) else ""
        print(f"\nthen:  {first}{' '.join(command)}")
    print(f"this does what is safe of it:  ./diagnose_and_recover.sh {seed} --fix")
    return 1


def _busy(status: SeedStatus, paths: Paths) -> str:
    """What is at work, or might be, so that nothing may be touched; "" if nothing is."""
    if status.note:
        return "SLURM does not answer: jobs may be at work"
    try:
        refuse_while_running(paths, [status.seed])
    except UserError as error:
        return str(error)
    running = [row.stage for row in status.stages if row.state == "running"]
    return f"stage {', '.join(running)} is at work" if running else ""


def _repeated(status: SeedStatus, paths: Paths) -> dict[str, str]:
    """Stages that the run's own settings call done and this shell's do not, with the reason."""
    now = load_settings()
    done = [stage for stage, row in zip(STAGES, status.stages, strict=True) if row.state == "done"]
    problems = {stage.key: problem_of(stage, status.seed, paths, now) for stage in done}
    return {key: problem for key, problem in problems.items() if problem}


def _never(broken: list[StageStatus]) -> bool:
    return any(row.state == "never satisfiable" for row in broken)


def _explain_all(broken: list[StageStatus]) -> None:
    """Each cause once; the stages that only lie behind another one in a line of their own."""
    behind = [row for row in broken if row.detail == BEHIND]
    for row in broken:
        if row not in behind:
            _explain(row)
    if behind:
        print(f"behind it: {', '.join(f'{row.stage} ({row.state})' for row in behind)}")


def _explain(row: StageStatus) -> None:
    cause, evidence = cause_of(row)
    print(f"stage {row.stage}: {row.state}. Cause: {cause.name}.")
    print(f"  evidence: {evidence}")
    print(f"  log:      {row.log}")
    print(f"  to do:    {cause.remedy}")


def cause_of(row: StageStatus) -> tuple[Cause, str]:
    """The cause of a broken stage, and the words that say so."""
    lines = [f"{row.state}: {row.detail}"] if row.state not in ("failed", "stopped", "unknown") else []
    lines += reversed(_tail(Path(row.log).with_suffix(".err")) if row.log.endswith(".out") else [])
    lines += reversed(_tail(Path(row.log)))
    for cause in CAUSES:
        for line in lines:
            if re.search(cause.pattern, line):
                return cause, line
    said = [line for line in lines if " ERROR " in line or "Error" in line]
    return UNKNOWN, (said or lines or [row.detail])[0]


def _tail(path: Path) -> list[str]:
    """The lines of a log since its last start."""
    try:
        lines = lines_of(tail_of(path))
    except OSError:
        return []
    starts = [number for number, line in enumerate(lines) if ": starts: " in line or ": host " in line]
    return lines[starts[-1] :] if starts else lines


def torn_files(paths: Paths, seed: int) -> list[Path]:
    """What killed processes left of files and directories that they were writing; whole ones have other names.

    Of the directories that all seeds share only where no job of any seed is at work.
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


def _again(seed: int, runs: list[RunRecord]) -> list[str]:
    words = ["./run_all.sh", str(seed)]
    if runs and runs[0].facts["profile"] == "demo":
        words.append("--demo")
        return [*words, "--slurm"] if runs[0].facts["executor"] == "slurm" else words
    return [*words, "--local"] if runs and runs[0].facts["executor"] == "local" else words


def _fix(torn: list[Path], command: list[str], broken: bool, busy: str, repeated: dict[str, str]) -> int:
    if busy:
        print(f"nothing is done: {busy}")
        return 1
    if repeated:
        print("nothing is done: set what changed as it was, or type the command yourself if you mean it.")
        return 1
    for path in torn:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
        print(f"removed {path}")
    if not broken:
        return 0
    print(f"\n{' '.join(command)}", flush=True)
    os.execv(str(CHECKOUT / "run_all.sh"), [str(CHECKOUT / "run_all.sh"), *command[1:]])
