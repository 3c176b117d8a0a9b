"""The queue as one answer: every job of whoever made the runs here, recorded or typed by hand. Torch-free.

However many runs there are, SLURM gets one squeue and at most one sacct a cluster. No answer is no knowledge:
`Queue.silence` says so.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from utils.core.paths import CHECKOUT, Paths
from utils.core.seeds import DEFAULT_SEED
from utils.pipeline.stages import STAGES
from utils.slurm import cluster
from utils.slurm.cluster import JobState, NoAnswer
from utils.slurm.identity import is_same_job
from utils.slurm.run_record import AGGREGATE, AggregateRecord, JobRecord, RunRecord


@dataclass
class Queue:
    """SLURM's answer: the tasks of each job by (cluster, id), and why there is none, "" if there is one."""

    tasks: dict[tuple[str, str], list[JobState]] = field(default_factory=dict)
    silence: str = ""


@dataclass(frozen=True)
class UnrecordedJob:
    """A live job of this checkout that no run here recorded: typed by hand, or of a run in another SCRATCH.

    `seed` None: of no seed alone (setup, data). `elsewhere`: it writes below another work directory than this one.
    """

    state: JobState
    stage: str
    seed: int | None
    elsewhere: bool

    def __str__(self) -> str:
        origin = "of a run in another SCRATCH" if self.elsewhere else "submitted by hand"
        of_seed = "" if self.seed is None else f", seed {self.seed}"
        return f"job {self.state.job_id} ({self.stage}{of_seed}, {self.state.state.lower()}), {origin}"


def ask_queue(runs: Sequence[RunRecord], aggregates: Sequence[AggregateRecord] = ()) -> Queue:
    """One squeue a cluster for all jobs of whoever made these runs, and one sacct for what squeue has forgotten."""
    queue = Queue()
    wanted: dict[str, set[str]] = {}
    for run in runs:
        wanted.setdefault(run.cluster, set()).update(job.job_id for job in run.jobs.values())
    for aggregate in aggregates:
        wanted.setdefault(aggregate.job.cluster, set()).add(aggregate.job.job_id)
    if shutil.which("squeue"):
        wanted.setdefault("", set())  # jobs that no run recorded
    users = {str(os.getuid()), *(str(run.directory.stat().st_uid) for run in runs)}
    for name, ids in sorted(wanted.items()):
        try:
            for state in cluster.jobs_of_users(users, name):
                queue.tasks.setdefault((name, state.job_id), []).append(state)
            for state in cluster.accounting({i for i in ids if (name, i) not in queue.tasks}, name):
                queue.tasks.setdefault((name, state.job_id), []).append(state)
        except NoAnswer as error:
            queue.silence = str(error)
    return queue


def unrecorded_jobs(
    queue: Queue, runs: Sequence[RunRecord], aggregates: Sequence[AggregateRecord], paths: Paths
) -> list[UnrecordedJob]:
    """Live jobs that run a wrapper of this checkout, or settings of this work directory, and are in no run's record."""
    recorded: dict[tuple[str, str], list[tuple[JobRecord, str]]] = {}
    for run in runs:
        for key, job in run.jobs.items():
            recorded.setdefault((run.cluster, job.job_id), []).append((job, key))
    for aggregate in aggregates:
        recorded.setdefault((aggregate.job.cluster, aggregate.job.job_id), []).append((aggregate.job, aggregate.key))
    found = []
    for place, tasks in queue.tasks.items():
        state = next((task for task in tasks if task.live), None)
        if state is None or any(is_same_job(state, job, key) for job, key in recorded.get(place, ())):
            continue
        parts = re.match(r"(.*?\.sh)(?: (.*))?$", state.command)
        if not parts:
            continue
        wrapper, words = Path(parts[1]), parts[2] or ""
        settings = re.search(r"--settings[ =](.*?/runs/[^/]+/settings\.json)", words)
        below = settings is not None and Path(settings[1]).is_relative_to(paths.work)
        stage = _stage_of(wrapper)
        if not stage or not (below or _is_of_checkout(wrapper)):
            continue
        if settings and not below and not _writes_where(Path(settings[1]), paths):
            continue
        seed = re.search(r"--seed[ =](\d+)", words)
        number = int(seed[1]) if seed else DEFAULT_SEED
        shared = any(item.key == stage and not item.per_seed for item in STAGES) or stage == AGGREGATE
        found.append(UnrecordedJob(state, stage, None if shared else number, settings is not None and not below))
    return found


def _writes_where(settings_file: Path, paths: Paths) -> bool:
    """Whether a run in another work directory writes what this one writes: same experiment, profile and PROJECT_DIR."""
    if settings_file.parents[2].name != paths.work.name:
        return False
    try:
        frozen = json.loads(settings_file.read_text(encoding="utf-8"))["settings"]
        return Path(frozen["PROJECT_DIR"]) == paths.project
    except (OSError, ValueError, KeyError, TypeError):
        return True  # not known: better seen in vain than not at all


def _is_of_checkout(wrapper: Path) -> bool:
    return wrapper.resolve().parent == CHECKOUT / "jobs"  # resolved: a wrapper may be submitted through a link


def _stage_of(wrapper: Path) -> str:
    """Key of the stage that a wrapper runs; "" if it is none of ours."""
    name = wrapper.resolve().name
    if name == "job_multi_seed_aggregate.sh":
        return AGGREGATE
    return next((stage.key for stage in STAGES if Path(stage.wrapper).name == name), "")
