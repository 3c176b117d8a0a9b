"""What SLURM says, and of jobs their state. Torch-free; asks, never changes anything.

No answer is not an answer: a query that fails raises NoAnswer, so that a hiccup of the controller is never taken for
"finished" or "there is none".
"""

from __future__ import annotations

import functools
import re
import shutil
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass

from utils.core.environment import for_queries
from utils.core.errors import StageError

TIMEOUT = 30  # seconds; a busy controller answers within its MessageTimeout, 10 s by default
LIVE = frozenset(
    "PENDING RUNNING SUSPENDED COMPLETING CONFIGURING REQUEUED REQUEUE_FED REQUEUE_HOLD RESIZING RESV_DEL_HOLD "
    "SIGNALING SPECIAL_EXIT STAGE_OUT STOPPED".split()
)


class NoAnswer(StageError):
    """SLURM did not answer a question; nothing is known about the jobs."""


@dataclass(frozen=True)
class JobState:
    """One row of squeue or sacct. `task` is the array task, "" for a plain job; `reason` as SLURM words it.

    `submitted` (as 2026-01-29T10:15:30), `name`, `work_dir` and `command` (the wrapper and its arguments, not quoted)
    tell a job from another one of the same number; sacct does not say the last two.
    """

    job_id: str
    task: str
    state: str
    reason: str = ""
    node: str = ""
    exit_code: str = ""
    name: str = ""
    submitted: str = ""
    work_dir: str = ""
    command: str = ""

    @property
    def live(self) -> bool:
        """Whether it still waits or runs."""
        return self.state in LIVE


def has_slurm() -> bool:
    """Whether this machine can submit jobs."""
    return shutil.which("sbatch") is not None


@functools.cache
def cluster_name() -> str:
    """SLURM's name of the cluster that this machine submits to; "" where it does not tell."""
    try:
        text = ask("scontrol", "show", "config")
    except NoAnswer:
        return ""
    match = re.search(r"^ClusterName\s*=\s*(\S+)", text, re.M)
    return match[1] if match else ""


def ask(*command: str, timeout: float = TIMEOUT) -> str:
    """Standard output of a SLURM query; NoAnswer if it fails, hangs or is not installed."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, env=for_queries(), timeout=timeout, stdin=subprocess.DEVNULL
        )
    except FileNotFoundError:
        raise NoAnswer(f"{command[0]} is not installed here.") from None
    except subprocess.TimeoutExpired:
        raise NoAnswer(f"{command[0]} did not answer within {timeout:g} s. Try again later.") from None
    except OSError as error:
        raise NoAnswer(f"{command[0]} cannot be run: {error.strerror}.") from None
    if done.returncode:
        words = " ".join((done.stderr or done.stdout).split()) or f"exit code {done.returncode}"
        raise NoAnswer(f"{command[0]} failed: {words}")
    return done.stdout


def queue(job_ids: Iterable[str], cluster: str = "") -> list[JobState]:
    """What squeue knows about these jobs, ended ones included while the controller remembers them."""
    ids = sorted(set(job_ids), key=int)
    if not ids:
        return []
    try:
        return _squeue(cluster, f"--jobs={','.join(ids)}")
    except NoAnswer as error:
        if "Invalid job id" in str(error):  # what squeue says when it has forgotten all of them
            return []
        raise


def jobs_of_users(users: Iterable[str], cluster: str = "") -> list[JobState]:
    """What squeue knows about all jobs of these users, ended ones included: one question for any number of runs."""
    return _squeue(cluster, f"--user={','.join(sorted(set(users)))}")


def _squeue(cluster: str, chosen: str) -> list[JobState]:
    where = [f"--clusters={cluster}"] if cluster else []
    form = "--format=%F|%K|%T|%r|%N|%j|%V|%Z|%o"  # the command last: it may hold a bar itself
    states = []
    for line in ask("squeue", *where, "--noheader", "--array", "--states=all", chosen, form).splitlines():
        parts = line.strip().split("|", 8)
        if len(parts) >= 5:
            job_id, task, state, reason, node = parts[:5]
            states.append(JobState(job_id, "" if task == "N/A" else task, state, reason, node, "", *parts[5:]))
    return states


def accounting(job_ids: Iterable[str], cluster: str = "") -> list[JobState]:
    """What sacct knows about jobs that squeue has forgotten; nothing where the cluster keeps no accounts."""
    ids = sorted(set(job_ids), key=int)
    if not ids:
        return []
    where = [f"--clusters={cluster}"] if cluster else []
    fields = "--format=JobID,State,NodeList,ExitCode,Submit,JobName"
    try:
        text = ask("sacct", *where, "--noheader", "--parsable2", "--allocations", f"--jobs={','.join(ids)}", fields)
    except NoAnswer:
        return []
    found = []
    for line in text.splitlines():
        parts = line.strip().split("|", 5)
        if len(parts) >= 4 and parts[0]:
            job_id, _, task = parts[0].partition("_")
            submitted, name = [*parts[4:], "", ""][:2]
            found.append(JobState(job_id, task, parts[1], "", parts[2], parts[3], name, submitted))
    return found
