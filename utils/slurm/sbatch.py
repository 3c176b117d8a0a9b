"""The sbatch line of a stage, and what sbatch answers. Torch-free; `submit` is the one place that queues a job.

Everything a job needs stands in its options and arguments. SBATCH_ variables of the user's shell cannot change what
was planned (SBATCH_ARRAY_INX would even make arrays of plain jobs), so sbatch does not see them, but for the few
that say where or how, not what.
"""

from __future__ import annotations

import math
import re
import shlex
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from utils.core.environment import for_queries, for_sbatch
from utils.core.errors import StageError, UsageError
from utils.core.paths import CHECKOUT
from utils.core.settings import Settings
from utils.core.text import slurm_time
from utils.slurm.site import Site

TIMEOUT = 120  # seconds until a submission that gives no answer is given up
SHORTEST = 10  # minutes; a scaled time limit stays above this, or above the stage's own limit where that is less
# Options that the submission itself needs; SLURM_EXTRA_OPTIONS must not replace them.
OWN_OPTIONS = {
    "--array", "-a", "--chdir", "-D", "--dependency", "-d", "--error", "-e", "--kill-on-invalid-dep", "--output", "-o",
    "--parsable", "--test-only", "--wait", "-W", "--wrap", "--export", "--clusters", "-M",
}  # fmt: skip


class Job(Protocol):
    """What a job runs and asks for: a stage, or the aggregate of several seeds."""

    @property
    def number(self) -> int: ...
    @property
    def wrapper(self) -> str: ...
    @property
    def gpu(self) -> bool: ...
    @property
    def memory_gb(self) -> int: ...
    @property
    def minutes(self) -> int: ...


@dataclass(frozen=True)
class Submitted:
    """sbatch's answer: the job id (digits), the cluster's name where there are several, else ""."""

    job_id: str
    cluster: str = ""


def time_limit(job: Job, settings: Settings) -> int:
    """Minutes that the job asks for."""
    return max(min(SHORTEST, job.minutes), math.ceil(job.minutes * settings.SLURM_TIME_SCALE))


def memory_mb(job: Job, settings: Settings) -> int:
    """MiB of memory that the job asks for."""
    return max(512, math.ceil(job.memory_gb * 1024 * settings.SLURM_MEMORY_SCALE))


def array_tasks(job: Job, settings: Settings) -> int:
    """Number of tasks that share the job's stage; 1: a plain job."""
    return {4: settings.EVAL_ARRAY_TASKS, 5: settings.ATTACK_ARRAY_TASKS, 6: settings.ATTACK_ARRAY_TASKS}.get(
        job.number, 1
    )


def extra_options(settings: Settings, *, gpu: bool) -> list[str]:
    """SLURM_EXTRA_OPTIONS, and for a GPU job SLURM_GPU_OPTIONS, as words.

    UsageError where one is the submission's own.
    """
    words: list[str] = []
    for name in ("SLURM_EXTRA_OPTIONS", "SLURM_GPU_OPTIONS") if gpu else ("SLURM_EXTRA_OPTIONS",):
        text = str(getattr(settings, name))
        try:
            given = shlex.split(text)
        except ValueError as error:
            raise UsageError(f"{name}={text}: {error}.") from None
        for word in given:
            # sbatch takes abbreviations (--out=x), and short options with their value (-Dx).
            option = word.split("=")[0] if word.startswith("--") else word[:2]
            if (len(option) > 2 and any(item.startswith(option) for item in OWN_OPTIONS)) or option in OWN_OPTIONS:
                fix = " Export SLURM_CLUSTERS." if option in ("--clusters", "-M") else ""
                raise UsageError(f"{name}: {option} is given by the submission itself.{fix}")
        words += given
    return words


def check_extra_options(settings: Settings) -> None:
    """UsageError where the extra options cannot be used."""
    extra_options(settings, gpu=True)


def log_paths(wrapper: str, tasks: int, checkout: Path = CHECKOUT) -> tuple[str, str]:
    """Where SLURM puts a job's output and errors, in sbatch's patterns (%j the job, %A_%a the array task)."""
    stem = str(checkout / "logs" / Path(wrapper).stem).replace("%", "%%")
    number = "%A_%a" if tasks > 1 else "%j"
    return f"{stem}_{number}.out", f"{stem}_{number}.err"


def command(
    job: Job,
    settings: Settings,
    site: Site,
    *,
    name: str,
    arguments: Sequence[str],
    dependency: str = "",
    checkout: Path = CHECKOUT,
) -> list[str]:
    """The whole sbatch command of one job: resources, log, what it waits for, its wrapper with its arguments."""
    tasks = array_tasks(job, settings)
    minutes = time_limit(job, settings)
    out, err = log_paths(job.wrapper, tasks, checkout)
    warning = min(settings.SLURM_SIGNAL_SECONDS, minutes * 60 // 3)
    words = ["sbatch", "--parsable", f"--job-name={name}"]
    words += _given("--account", site.account)
    words += _given("--partition", site.partition if job.gpu else site.cpu_partition)
    words += _given("--qos", site.qos if job.gpu else site.cpu_qos)
    words += _given("--gres", site.gres if job.gpu else "")
    words += ["--nodes=1", "--ntasks=1", f"--cpus-per-task={settings.SLURM_CPUS_PER_TASK}"]
    words += [f"--mem={memory_mb(job, settings)}M", f"--time={slurm_time(minutes)}"]
    words += [f"--signal=B:USR1@{warning}", "--requeue", "--open-mode=append"]
    words += [f"--chdir={checkout}", f"--output={out}", f"--error={err}"]
    if tasks > 1:
        words += [f"--array=0-{tasks - 1}"]
        arguments = [*arguments, "--shards", str(tasks)]
    if dependency:
        words += [f"--dependency={dependency}"]
        words += ["--kill-on-invalid-dep=" + ("yes" if settings.SLURM_KILL_ON_INVALID_DEP else "no")]
    return [*words, *extra_options(settings, gpu=job.gpu), str(checkout / job.wrapper), *arguments]


def submit(words: Sequence[str]) -> Submitted:
    """Queue one job; StageError with all that sbatch said if it is refused or the answer is no job id."""
    line = shlex.join(words)
    try:
        done = subprocess.run(
            words, capture_output=True, text=True, env=for_sbatch(), timeout=TIMEOUT, stdin=subprocess.DEVNULL
        )
    except OSError as error:
        raise StageError(f"{words[0]} cannot be run: {error.strerror}.") from None
    except subprocess.TimeoutExpired:
        raise StageError(
            f"sbatch gave no answer within {TIMEOUT} s; whether it queued the job is not known. "
            f"Look for it with squeue --me before trying again.\n  {line}"
        ) from None
    answer = "".join(f"\n  sbatch: {text}" for text in (done.stderr + done.stdout).splitlines() if text.strip())
    if done.returncode:
        raise StageError(f"sbatch refused the job (exit code {done.returncode}):{answer}\n  {line}")
    return Submitted(*parse_answer(done.stdout, answer, line))


def parse_answer(stdout: str, answer: str = "", line: str = "") -> tuple[str, str]:
    """(job id, cluster) from sbatch --parsable; sites print notes there as well, so the id is the last line alone."""
    last = next((text.strip() for text in reversed(stdout.splitlines()) if text.strip()), "")
    match = re.fullmatch(r"([0-9]+)(?:;([\w.-]+))?", last)
    if not match:
        raise StageError(f"sbatch answered without a job id:{answer or ' nothing'}\n  {line}")
    return match[1], match[2] or ""


def cancel(job_ids: Sequence[str], cluster: str = "") -> None:
    """scancel these jobs; StageError with what it said if it fails."""
    where = [f"--clusters={cluster}"] if cluster else []
    try:
        done = subprocess.run(
            ["scancel", *where, *job_ids], capture_output=True, text=True, timeout=TIMEOUT, env=for_queries()
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise StageError(f"scancel failed ({error}). Type it yourself: scancel {' '.join(job_ids)}") from None
    if done.returncode:
        raise StageError(f"scancel failed: {done.stderr.strip()}. Type it yourself: scancel {' '.join(job_ids)}")


def _given(option: str, value: str) -> list[str]:
    return [f"{option}={value}"] if value else []
