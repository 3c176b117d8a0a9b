"""Whether a job in the queue is the one that was recorded: numbers alone begin anew on another cluster. Torch-free."""

from __future__ import annotations

from collections.abc import Iterable

from utils.slurm.cluster import JobState
from utils.slurm.run_record import JobRecord

NAME = "mono_s2s_"  # what the names of all our jobs begin with


def is_same_job(state: JobState, job: JobRecord, key: str) -> bool:
    """Whether SLURM's row is about the recorded job of stage `key`, as far as either side tells.

    The number was equal already. Numbers begin anew on another cluster, after a controller was installed again and
    after MaxJobId, so name, time of submission and the run's own settings file have to agree as well. A requeue gives
    a job a later time of submission, never an earlier one. A job may have the empty name: whether SLURM tells names at
    all, its time of submission shows.
    """
    if state.name or state.submitted:
        same = state.name == job.name if job.name else state.name.startswith(f"{NAME}{key}")
        if not same:
            return False
    if state.submitted and job.submit_time and state.submitted < job.submit_time:
        return False
    return not (job.settings_file and state.command) or f"--settings {job.settings_file}" in state.command


def rows_of(states: Iterable[JobState], job: JobRecord, key: str) -> tuple[JobState, ...]:
    """The rows, one an array task, that are about the recorded job."""
    return tuple(state for state in states if state.job_id == job.job_id and is_same_job(state, job, key))
