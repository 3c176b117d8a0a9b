"""From a plan to a submitted graph: one request a job, then one job record a request. Torch-free."""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from utils.core.errors import StageError
from utils.core.settings import Settings
from utils.pipeline.plan import Step
from utils.pipeline.stages import STAGES
from utils.slurm import cluster, sbatch
from utils.slurm.cluster import NoAnswer
from utils.slurm.identity import NAME
from utils.slurm.run_record import JobRecord, RunRecord
from utils.slurm.site import Site


@dataclass(frozen=True)
class JobRequest:
    """A job that is to be queued.

    key: of its stage · job: what it runs and asks for · arguments: of its wrapper · needs: keys of the stages that have
    to end well before it starts · after: ids of jobs that have to end before, however they end.
    """

    key: str
    name: str
    job: sbatch.Job
    arguments: tuple[str, ...]
    settings_file: Path
    needs: tuple[str, ...] = ()
    after: tuple[str, ...] = ()

    def dependency(self, jobs: Mapping[str, JobRecord]) -> str:
        """sbatch's --dependency, given the jobs that are queued; "" if it waits for nothing."""
        ids = [jobs[key].job_id for key in self.needs if key in jobs]
        parts = ["afterok:" + ":".join(ids)] if ids else []
        return ",".join([*parts, *(["afterany:" + ":".join(self.after)] if self.after else [])])

    def command(self, settings: Settings, site: Site, jobs: Mapping[str, JobRecord]) -> list[str]:
        """The exact sbatch line."""
        return sbatch.command(
            self.job, settings, site, name=self.name, arguments=self.arguments, dependency=self.dependency(jobs)
        )

    def submit(self, settings: Settings, site: Site, jobs: Mapping[str, JobRecord]) -> JobRecord:
        """Queue it; StageError with what sbatch answered if it is refused."""
        words = self.command(settings, site, jobs)
        answer = sbatch.submit(words)
        tasks = sbatch.array_tasks(self.job, settings)
        out, err = (
            path.replace("%j", answer.job_id).replace("%A", answer.job_id).replace("%%", "%")
            for path in sbatch.log_paths(self.job.wrapper, tasks)
        )
        return JobRecord(
            job_id=answer.job_id,
            cluster=answer.cluster,
            name=self.name,
            dependency=self.dependency(jobs),
            line=shlex.join(words),
            out=out,
            err=err,
            tasks=tasks,
            settings_file=str(self.settings_file),
        )


def requests_of(
    steps: Sequence[Step],
    seed: int,
    settings_file: Path,
    python: str,
    *,
    force: bool,
    after: Sequence[str] = (),
    after_for_data: Sequence[str] = (),
) -> list[JobRequest]:
    """One request a step. The seed's own first stages start when the jobs `after` have ended, however they ended.

    The first of setup and data start when `after_for_data` have.
    """
    queued = {step.stage.number: step.stage for step in steps}
    requests = []
    for step in steps:
        stage = step.stage
        needed = [queued[number] for number in stage.needs if number in queued]
        first_of_seed = stage.per_seed and not any(item.per_seed for item in needed)
        first_of_all = not stage.per_seed and not needed
        requests.append(
            JobRequest(
                key=stage.key,
                name=f"{NAME}{stage.key}" + (f"_seed{seed}" if stage.per_seed else ""),
                job=stage,
                arguments=tuple(wrapper_arguments(seed, settings_file, python, force)),
                settings_file=settings_file,
                needs=tuple(item.key for item in needed),
                after=tuple(after) if first_of_seed else tuple(after_for_data) if first_of_all else (),
            )
        )
    return requests


def wrapper_arguments(seed: int, settings_file: Path, python: str, force: bool) -> list[str]:
    """What a stage's wrapper is given."""
    return ["--seed", str(seed), "--settings", str(settings_file), "--python", python, *(["--force"] if force else [])]


def submit_graph(record: RunRecord, requests: Sequence[JobRequest], settings: Settings, site: Site) -> RunRecord:
    """Queue every request whose stage the record has no job for yet; returns the record with all of them.

    run.json is written after each. If one is refused, what this run queued is cancelled, and the StageError says so.
    """
    for request in requests:
        if request.key in record.jobs:
            continue
        try:
            record = record.with_job(request.key, request.submit(settings, site, record.jobs))
        except (StageError, OSError) as error:  # OSError: its job is queued, but the record has no room on the disk
            raise StageError(f"stage {request.key} was not queued: {error}\n{_undo(record)}") from None
        except KeyboardInterrupt:
            raise StageError(
                f"interrupted at stage {request.key}; squeue --me shows whether it came through.\n{_undo(record)}"
            ) from None
    return with_submit_times(record)


def with_submit_times(record: RunRecord) -> RunRecord:
    """The record with SLURM's own time of submission of each job, which tells it from a later job of its number."""
    ids = [job.job_id for job in record.own_jobs.values()]
    with contextlib.suppress(NoAnswer):  # the name and the settings file tell a job as well
        times = {state.job_id: state.submitted for state in cluster.queue(ids, record.cluster)}
        jobs = {
            key: replace(job, submit_time=times.get(job.job_id, "")) if key in record.own_jobs else job
            for key, job in record.jobs.items()
        }
        return replace(record, jobs=jobs).saved()
    return record


def with_placeholders(record: RunRecord, requests: Sequence[JobRequest]) -> RunRecord:
    """The record as if every request had been queued, with JOB_4 for the id of stage 4: what a dry run prints."""
    numbers = {stage.key: stage.number for stage in STAGES}
    made = {request.key: JobRecord(f"JOB_{numbers[request.key]}", name=request.name) for request in requests}
    return replace(record, jobs=made | record.jobs)


def _undo(record: RunRecord) -> str:
    ids = [job.job_id for job in record.own_jobs.values()]
    if not ids:
        return "Nothing was queued."
    try:
        sbatch.cancel(ids, record.cluster)
    except StageError as error:
        return f"The jobs that this run had queued before are still in the queue: {error}"
    return f"The jobs that this run had queued before are cancelled: {', '.join(ids)}."
