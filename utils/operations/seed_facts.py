"""What is known of a seed, collected once: flags, locks, recorded jobs, and what SLURM says of them. Torch-free.

Status, diagnosis and clean-up all start from here, so that they agree on what runs and what is done.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from utils.core.hashes import Allowance
from utils.core.paths import Paths
from utils.core.seeds import DEFAULT_SEED
from utils.core.settings import Settings, load_settings
from utils.pipeline.flags import Completion, Flag, read_flag
from utils.pipeline.stages import STAGES, Stage
from utils.slurm.cluster import JobState
from utils.slurm.identity import rows_of
from utils.slurm.live_jobs import is_at_work, is_elsewhere, known_seeds
from utils.slurm.queue import Queue, UnrecordedJob, ask_queue, unrecorded_jobs
from utils.slurm.run_record import AggregateRecord, JobRecord, RunRecord, aggregates, records, variant_pages


@dataclass(frozen=True)
class JobFacts:
    """A recorded job. `out` and `err` may hold %a, the array task; `tasks`: what SLURM says, empty where it forgot."""

    job_id: str
    run_id: str
    dependency: str
    out: str
    err: str
    tasks: tuple[JobState, ...] = ()

    @property
    def live(self) -> bool:
        """Whether any of it still waits or runs."""
        return any(task.live for task in self.tasks)

    @property
    def failed(self) -> tuple[JobState, ...]:
        """Its tasks that ended otherwise than well."""
        return tuple(task for task in self.tasks if not task.live and task.state != "COMPLETED")


@dataclass(frozen=True)
class StageFacts:
    """One stage of a seed. `problem` says why it is not done, None if it is (then there is a `flag`).

    `locked`: a process on a machine that shares the lock is at it. `job`: its newest recorded job. `local_since`: the
    seed ran with --local after that job was submitted. `unread`: times of its files changed, and they are too large to
    compare now.
    """

    stage: Stage
    log: Path
    problem: str | None
    flag: Flag | None
    locked: bool
    job: JobFacts | None = None
    local_since: bool = False
    by_hand: tuple[UnrecordedJob, ...] = ()
    unread: bool = False


@dataclass(frozen=True)
class AggregateFacts:
    """The aggregate (or page of variants) that run_multi_seed.sh queued last for exactly these seeds (and variants)."""

    record: AggregateRecord
    job: JobFacts


@dataclass(frozen=True)
class SeedFacts:
    """A seed. `runs`: newest first; `settings`: those of the newest run; `silence`: why SLURM's answer is missing.

    `live_ids`: jobs that any of its runs queued and that wait or run; those of another seed's run are not among them.
    """

    seed: int
    settings: Settings
    runs: tuple[RunRecord, ...]
    stages: tuple[StageFacts, ...]
    aggregates: tuple[AggregateFacts, ...] = ()
    elsewhere: tuple[UnrecordedJob, ...] = ()
    silence: str = ""
    live_ids: tuple[str, ...] = ()

    @property
    def run_id(self) -> str:
        return self.runs[0].run_id if self.runs else ""

    @property
    def unknown(self) -> str:
        """Why the state of recorded jobs is not known; "" if it is, or there are none."""
        return self.silence if self.aggregates or any(run.jobs for run in self.runs) else ""


READ_NOW = 5 * 10**8  # bytes that a status may hash, half a second; the rest is compared by later looks, or when used


def collect(
    seeds: Sequence[int] | None, paths: Paths, *, flags: bool = True, read_all: bool = False
) -> list[SeedFacts]:
    """The facts of these seeds, each under the settings of its newest run (of this shell, where it has none).

    None: of every seed that was ever run here or that a job in the queue names.

    flags: False does not look at what is done. read_all: compare the content of large files, too, whose times changed.
    """
    runs = records(paths)
    queued_together = _newest_aggregates(paths)
    queue = ask_queue(runs, queued_together)
    unrecorded = unrecorded_jobs(queue, runs, queued_together, paths)
    now = load_settings()
    allowance = None if read_all else Allowance(READ_NOW)
    here = [job for job in unrecorded if not job.elsewhere]
    if seeds is None:
        named = {job.seed for job in here if job.seed is not None}
        seeds = sorted({*known_seeds(paths), *named}) or [DEFAULT_SEED]
    found = []
    for seed in seeds:
        mine = [run for run in runs if run.seed == seed]
        settings = _settings_of(mine[0], now) if mine else now
        completion = Completion(seed, paths, settings, allowance) if flags else None
        found.append(
            SeedFacts(
                seed,
                settings,
                tuple(mine),
                tuple(_stage_facts(stage, seed, mine, queue, here, paths, completion) for stage in STAGES),
                tuple(_aggregate_of(record, queue) for record in queued_together if seed in record.seeds),
                tuple(job for job in unrecorded if job.elsewhere and job.seed == seed),
                queue.silence,
                tuple(dict.fromkeys(_live_ids(mine, queue))),
            )
        )
    return found


def _stage_facts(
    stage: Stage,
    seed: int,
    runs: Sequence[RunRecord],
    queue: Queue,
    unrecorded: Sequence[UnrecordedJob],
    paths: Paths,
    completion: Completion | None,
) -> StageFacts:
    problem = completion.problem(stage) if completion else "not looked at"
    log = paths.log(stage.key, stage.seed_of(seed))
    job, local_since = _job_of(stage, runs, queue)
    return StageFacts(
        stage,
        log,
        problem,
        read_flag(stage, seed, paths) if problem is None else None,
        is_at_work(stage, seed, paths),
        job,
        local_since,
        tuple(item for item in unrecorded if item.stage == stage.key and item.seed == stage.seed_of(seed)),
        completion is not None and stage.number in completion.unread,
    )


# ---- records ------------------------------------------------------------------------------------------------------


def _job_of(stage: Stage, runs: Sequence[RunRecord], queue: Queue) -> tuple[JobFacts | None, bool]:
    """The newest job of the stage, and whether the seed ran here (--local) after that was submitted."""
    local_since = False
    for run in runs:
        if stage.key in run.jobs:
            recorded = run.jobs[stage.key]
            answer = Queue(silence=queue.silence) if is_elsewhere(run) else queue
            return _job_facts(recorded, stage.key, run.run_id, answer), local_since
        local_since |= run.executor == "local"
    return None, local_since


def _live_ids(runs: Sequence[RunRecord], queue: Queue) -> Iterator[str]:
    for run in (run for run in runs if not is_elsewhere(run)):
        for key, job in run.own_jobs.items():
            if _job_facts(job, key, run.run_id, queue).live:
                yield job.job_id


def _newest_aggregates(paths: Paths) -> list[AggregateRecord]:
    """The newest record of each set of seeds (and of variants) that was ever queued together.

    Without those that a later one for all of their seeds has replaced.
    """
    newest: list[AggregateRecord] = []
    for record in [*aggregates(paths), *variant_pages(paths)]:
        if not any(set(record.seeds) <= set(later.seeds) and _same_page(record, later) for later in newest):
            newest.append(record)
    return newest[::-1]


def _same_page(record: AggregateRecord, other: AggregateRecord) -> bool:
    return set(record.variants) == set(other.variants)


def _aggregate_of(record: AggregateRecord, queue: Queue) -> AggregateFacts:
    return AggregateFacts(record, _job_facts(record.job, record.key, record.directory.name, queue))


def _job_facts(job: JobRecord, key: str, run_id: str, queue: Queue) -> JobFacts:
    """What SLURM says of a recorded job; a job that only has its number is not believed to be it."""
    tasks = rows_of(queue.tasks.get((job.cluster, job.job_id), []), job, key)
    return JobFacts(job.job_id, run_id, job.dependency, job.out, job.err, tasks)


def _settings_of(run: RunRecord, now: Settings) -> Settings:
    """The run's frozen settings; those of this shell where it has none (its file is gone, or the setting is newer)."""
    try:
        frozen = json.loads(run.settings_file.read_text(encoding="utf-8"))["settings"]
    except (OSError, ValueError, KeyError):
        return now
    return now.replaced(**frozen)
