"""Jobs of recorded runs that still wait or run: no seed is queued twice, one command ends a seed. Torch-free."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from utils.core.errors import UsageError
from utils.core.locks import is_locked
from utils.core.paths import Paths
from utils.pipeline.stages import STAGES, Stage
from utils.slurm import cluster, sbatch
from utils.slurm.cluster import JobState
from utils.slurm.identity import rows_of
from utils.slurm.queue import ask_queue, unrecorded_jobs
from utils.slurm.run_record import RunRecord, aggregates, records, variant_pages


def live_jobs(runs: Sequence[RunRecord]) -> dict[str, list[str]]:
    """Ids of each run's own jobs that wait or run, by run id; runs without any are left out. One squeue per cluster."""
    runs = [run for run in runs if not is_elsewhere(run)]
    rows: dict[str, list[JobState]] = {}
    for name in sorted({run.cluster for run in runs}):
        rows[name] = cluster.queue([i for run in runs if run.cluster == name for i in own_ids(run)], name)
    found = {
        run.run_id: [
            job.job_id
            for key, job in run.own_jobs.items()
            if any(state.live for state in rows_of(rows[run.cluster], job, key))
        ]
        for run in runs
    }
    return {run_id: ids for run_id, ids in found.items() if ids}


def is_elsewhere(run: RunRecord) -> bool:
    """Whether the run's jobs were taken by another cluster than the one that would be asked about them.

    Job numbers mean nothing there. sbatch --clusters names a cluster itself (`run.cluster`): that one is asked.
    """
    if run.cluster or not run.cluster_name or not run.own_jobs:
        return False
    here = cluster.cluster_name()
    return bool(here) and here != run.cluster_name


def own_ids(run: RunRecord) -> list[str]:
    """The jobs that this run queued itself."""
    return [job.job_id for job in run.own_jobs.values()]


def known_seeds(paths: Paths) -> list[int]:
    """Every seed that was ever run here: submitted, or started by hand."""
    names = [path.name.removeprefix("seed_") for path in paths.work.glob("seed_*")]
    names += [path.name.split("_seed")[1].split(".")[0] for path in paths.work.glob("stage_logs/stage_*_seed*")]
    recorded = {run.seed for run in records(paths)} | {seed for page in variant_pages(paths) for seed in page.seeds}
    return sorted(recorded | {int(name) for name in names if name.isdigit()})


def refuse_if_live(seed: int, paths: Paths) -> None:
    """UsageError if a stage of this seed still waits or runs; setup and data, which all seeds share, do not count."""
    runs = records(paths, seed)
    live = live_jobs(runs)
    for run in runs:
        own = {run.jobs[stage.key].job_id for stage in STAGES if stage.per_seed and stage.key in run.jobs}
        ids = [job_id for job_id in live.get(run.run_id, []) if job_id in own]
        if ids:
            raise UsageError(
                f"seed {seed} has jobs in the queue already ({', '.join(ids)}, run {run.run_id}). "
                f"Watch them: ./check_training_status.sh {seed}   "
                f"End them: ./run_all.sh --cancel {seed}"
            )
    for sentence in _started_by_hand([seed], paths):
        raise UsageError(f"seed {seed} is in progress already: {sentence}")


def at_work_here(seed: int, paths: Paths, *, shared: bool = False) -> Iterator[str]:
    """Sentences about what holds a lock of this seed: a stage, however it was started, or run_all.sh --local.

    `shared`: setup and data, which all seeds share, count as well.
    """
    for stage in (stage for stage in STAGES if stage.per_seed or shared):
        if is_at_work(stage, seed, paths):
            of_seed = f" of seed {seed}" if stage.per_seed else ""
            log = paths.log(stage.key, stage.seed_of(seed))
            yield f"stage {stage.key}{of_seed} is running (its lock is held, log: {log}). Stop it where it runs."
    lock = paths.runs / f"seed_{seed}.lock"
    if is_locked(lock):
        yield f"run_all.sh --local is running here for seed {seed} (it holds {lock}). Stop it there."


def is_at_work(stage: Stage, seed: int, paths: Paths) -> bool:
    """Whether a process, here or where the lock is shared, is at the stage."""
    return any(is_locked(path) for path in paths.locks(stage.key, stage.seed_of(seed)))


def _started_by_hand(seeds: Sequence[int], paths: Paths) -> list[str]:
    """Sentences about what is at work for these seeds and that no run recorded: typed, local, or of another SCRATCH."""
    runs, together = records(paths), aggregates(paths)
    # Silence is no obstacle: recorded jobs were asked for before, and a submission to a silent SLURM fails by itself.
    jobs = unrecorded_jobs(ask_queue(runs, together), runs, together, paths)
    typed = [f"{job}. Cancel it: scancel {job.state.job_id}" for job in jobs if job.seed in seeds]
    return typed + [text for seed in seeds for text in at_work_here(seed, paths)]


def cancel_seeds(seeds: Sequence[int], paths: Paths) -> int:
    """scancel the jobs of these seeds' runs that still wait or run, and only those; returns the exit code.

    The newest run first: its jobs may wait for those of an earlier one. A job that another seed's run waits for (they
    share stages 0 and 1) is left alone, and it says so.
    """
    runs = records(paths)
    live = live_jobs(runs)
    mine = [run for run in runs if run.seed in seeds and run.run_id in live]
    waiting = [run for run in runs if run.seed not in seeds and run.run_id in live]
    for run in mine:
        shared = {
            job.job_id: f"{key}, for seed {other.seed}"
            for other in waiting
            for key, job in other.jobs.items()
            if job.shared_with == run.run_id
        }
        ids = [job_id for job_id in live[run.run_id] if job_id not in shared]
        if ids:
            sbatch.cancel(ids, run.cluster)
            print(f"cancelled {', '.join(ids)} of run {run.run_id}")
        for job_id in live[run.run_id]:
            if job_id in shared:
                print(f"left alone: {job_id} ({shared[job_id]})")
    for run in runs:
        if run.seed in seeds and is_elsewhere(run):
            print(f"run {run.run_id} was submitted to cluster {run.cluster_name}: cancel it there.")
    by_hand = _started_by_hand([seed for seed in seeds if seed not in {run.seed for run in mine}], paths)
    for sentence in by_hand:
        print(f"left alone: {sentence}")
    for seed in seeds:
        if seed not in {run.seed for run in mine} and not by_hand:
            print(f"seed {seed} has no jobs in the queue.")
    return 0
