"""The one line that shows why a stage broke, and the exit status: from a job's logs since its last start. Torch-free.

Errors that the software reported and survived come as INFO or WARNING and are no evidence; of those that are, the last
counts, for it ended the stage.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from utils.operations.causes import CAUSES, UNKNOWN, Cause
from utils.operations.logs import lines_since_start
from utils.operations.status import StageStatus

# What our loggers, python's warnings, torch's C++ log (W1125 10:00:00) and NCCL write about what goes on.
_NO_EVIDENCE = re.compile(
    r"\b(INFO|WARNING|WARN|DEBUG)\b|\b\w*Warning\b|\bwarning:|^\[?[IW]\d{4} |^During handling|^Exception ignored"
)
_LOGGED_ERROR = re.compile(r"^.{0,40}\b(ERROR|CRITICAL)\b")
_FINAL = re.compile(
    r"Interrupted by SIG|: (not requeued|SLURM refused to requeue|JOB_SETUP failed|got SIG(TERM|INT|HUP))"
)
_EVIDENCE = re.compile(
    r"\berror:|\b\w*(Error|Exception|Interrupt)\b(:|$)|^(Killed|Aborted|Terminated)|Segmentation fault|Bus error"
    r"|Illegal instruction|Floating point exception|Fatal Python error|terminate called|core dumped"
    r"|not found$|: line \d+:|bad interpreter|No module named|No Python at|no Python 3|lacks packages"
    r"|^stage \d_\w+: |^\w+\.(sh|py): |cannot open shared object|not found \(required by"
    r"|\bNCCL\b.*\b(timeout|failed|error)"
    r"|\bXid\b|[Ss]tale file handle|Lmod has detected|Unable to locate a modulefile"
)
# SLURM's own word on how a job ended comes last and is final, wherever the processes of the job still wrote to.
_SLURM = re.compile(
    r"(slurmstepd|srun|slurmd)\S*: .*(\*\*\* .*(CANCELLED|DUE TO)|oom[-_ ]kill|OOM Killed|exceeded memory)"
)
_EXIT_STATUS = re.compile(r"exit status (\d+)")
_POINTS_ABOVE = re.compile(r"traceback (is )?above|see the traceback", re.IGNORECASE)


@dataclass(frozen=True)
class Evidence:
    """line: what is shown to the user. judged: what causes are searched in, "" where the line is only the log's end.

    exit_status: of the stage's process, 128 + N for signal N; None if no log and no accounting tells.
    """

    line: str
    judged: str
    exit_status: int | None = None


def evidence_of(row: StageStatus) -> Evidence:
    """Evidence on a broken stage from its logs; from the state's own words where the logs say nothing."""
    if row.state == "stale":
        return Evidence(f"stale: {row.detail}", row.detail)
    out = lines_since_start(Path(row.log))
    err = lines_since_start(Path(row.log).with_suffix(".err")) if row.log.endswith(".out") else []
    status = _exit_status(row, out)
    slurm = [line for line in err + out if _SLURM.search(line)]
    last = slurm[-1] if slurm else _last_error(out, err)
    if last:
        return Evidence(last, last, status)
    if row.reason.startswith("RaisedSignal") or row.exit_code.startswith("0:"):
        words = f"{row.reason} {row.exit_code}".strip()
        return Evidence(f"{row.state}: {words}", words, status)
    named = row.log.endswith(".out") and "%" not in row.log
    if status is None and row.state == "failed" and named and not Path(row.log).exists():
        # SLURM makes it when the job starts. Without accounting it does not tell the exit code (0:53) afterwards.
        return Evidence(f"the log was never made: {row.log}", "the log was never made", status)
    ends = out or err
    return Evidence(f"{row.state}: {row.detail}" if not ends else ends[-1], "" if ends else row.detail, status)


def _last_error(out: list[str], err: list[str]) -> str:
    """The stage's own last error; where it wrote none, that of standard error (crashes, the shell, imports)."""
    found = [line for line in out if is_error(line)]
    if found and "JOB_SETUP failed" in found[-1]:  # the shell says on standard error what failed in it
        modules = [line for line in err if "module" in line and is_error(line)]
        return (modules or found)[-1]
    if found and not _POINTS_ABOVE.search(found[-1]):
        return found[-1]
    others = [line for line in [*found[:-1], *err] if is_error(line) and not _POINTS_ABOVE.search(line)]
    if found and re.search(r"\b\w+(Error|Exception): ", found[-1]):
        return found[-1]  # it names the exception itself
    return (others or found or [""])[-1]


def is_error(line: str) -> bool:
    """Whether a line of a log reports that something ended by an error."""
    if _LOGGED_ERROR.search(line) or _FINAL.search(line):
        return True
    return not _NO_EVIDENCE.search(line) and bool(_EVIDENCE.search(line))


def _exit_status(row: StageStatus, out: list[str]) -> int | None:
    codes = [match[1] for line in out if (match := _EXIT_STATUS.search(line))]
    if codes:
        return int(codes[-1])
    code, _, number = row.exit_code.partition(":")  # sacct: status:signal
    if code.isdigit() and number.isdigit():
        return 128 + int(number) if int(number) and int(number) < 32 else int(code)
    return None


# ---- from the evidence to the cause --------------------------------------------------------------------------------

CRASHES = range(132, 140)  # 128 + signal: SIGILL, SIGTRAP, SIGABRT, SIGBUS, SIGFPE, SIGKILL, SIGUSR1, SIGSEGV
DECISIVE = ("preempted", "node failed", "timed out", "out of memory")


def cause_of(line: str, state: str = "", exit_status: int | None = None) -> Cause:
    """The cause that a judged line, a state of check_training_status.sh and an exit status tell; UNKNOWN if none."""
    for cause in CAUSES:
        if state in DECISIVE and state in cause.states:
            return cause
    if exit_status in CRASHES:  # the process ended without a last word: an earlier error is not what ended it
        ended = [cause for cause in CAUSES if exit_status in cause.exits]
        named = [cause for cause in ended if re.search(cause.pattern, line)]
        for cause in [*named, *reversed(ended)]:
            return _out_of_memory(line) or cause
    for cause in CAUSES:
        if re.search(cause.pattern, line):
            return cause
    by_end = (cause for cause in CAUSES if state in cause.states or exit_status in cause.exits)
    return next(by_end, UNKNOWN)


def _out_of_memory(line: str) -> Cause | None:
    """SLURM's own word that it killed for memory counts, whatever the exit status of the process."""
    cause = next(cause for cause in CAUSES if "out of memory" in cause.states)
    return cause if re.search(cause.pattern, line) else None
