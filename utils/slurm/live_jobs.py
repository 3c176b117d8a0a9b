"""Jobs of recorded runs that still wait or run: no seed is queued twice, one command ends a seed. Torch-free."""

from __future__ import annotations

from collections.abc import Sequence

from utils.core.errors import UsageError
from utils.core.paths import Paths
from utils.pipeline.stages import STAGES
from utils.slurm import cluster, sbatch
from utils.slurm.run_record import RunRecord, records


def live_jobs(runs: Sequence[RunRecord]) -> dict[str, list[str]]:
    """Ids of each run's own jobs that wait or run, by run id; runs without any are left out. One squeue per cluster."""
    live: set[tuple[str, str]] = set()
    for name in sorted({cluster_of(run) for run in runs}):
        ids = [job_id for run in runs if cluster_of(run) == name for job_id in own_ids(run)]
        live |= {(name, state.job_id) for state in cluster.queue(ids, name) if state.live}
    found = {run.run_id: [i for i in own_ids(run) if (cluster_of(run), i) in live] for run in runs}
    return {run_id: ids for run_id, ids in found.items() if ids}


def own_ids(run: RunRecord) -> list[str]:
    """The jobs that this run queued itself."""
    return [job["job_id"] for job in run.jobs.values() if "shared_with" not in job]


def cluster_of(run: RunRecord) -> str:
    """The cluster's name where there are several, else ""."""
    return next((job["cluster"] for job in run.jobs.values()), "")


def refuse_if_live(seed: int, paths: Paths) -> None:
    """UsageError if a stage of this seed still waits or runs; setup and data, which all seeds share, do not count."""
    runs = records(paths, seed)
    live = live_jobs(runs)
    for run in runs:
        own = {run.jobs[stage.key]["job_id"] for stage in STAGES if stage.per_seed and stage.key in run.jobs}
        ids = [job_id for job_id in live.get(run.run_id, []) if job_id in own]
        if ids:
            raise UsageError(
                f"seed {seed} has jobs in the queue already ({', '.join(ids)}, run {run.run_id}). "
                f"Watch them: ./check_training_status.sh {seed}   End them: ./run_all.sh --cancel {seed}"
            )


def cancel_seeds(seeds: Sequence[int], paths: Paths) -> int:
    """scancel the jobs of these seeds' runs that still wait or run, and only those; returns the exit code.

    A job that another seed's run waits for (they share stages 0 and 1) is left alone, and it says so.
    """
    runs = records(paths)
    live = live_jobs(runs)
    mine = [run for run in runs if run.facts["seed"] in seeds and run.run_id in live]
    waiting = [run for run in runs if run.facts["seed"] not in seeds and run.run_id in live]
    for run in mine:
        shared = {
            job["job_id"]: f"{key}, for seed {other.facts['seed']}"
            for other in waiting
            for key, job in other.jobs.items()
            if job.get("shared_with") == run.run_id
        }
        ids = [job_id for job_id in live[run.run_id] if job_id not in shared]
        if ids:
            sbatch.cancel(ids, cluster_of(run))
            print(f"cancelled {', '.join(ids)} of run {run.run_id}")
        for job_id in live[run.run_id]:
            if job_id in shared:
                print(f"left alone: {job_id} ({shared[job_id]})")
    for seed in seeds:
        if seed not in {run.facts["seed"] for run in mine}:
            print(f"seed {seed} has no jobs in the queue.")
    return 0
