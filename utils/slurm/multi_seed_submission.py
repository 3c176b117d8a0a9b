"""run_multi_seed.sh: several seeds and their aggregate, queued at once or run here. Torch-free.

Each seed is an ordinary run of submission.py. Seeds beyond MAX_PARALLEL_SEEDS wait for the end of an earlier one,
and the aggregate for the end of all, however they ended: it checks itself which are complete.
"""

from __future__ import annotations

import contextlib
import signal
import sys
import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from utils.core.errors import CommandStopped, UserError
from utils.core.paths import CHECKOUT, Paths, check_directory
from utils.core.provenance import timestamp
from utils.core.settings import Settings, as_typed, freeze, load_settings
from utils.pipeline.stages import STAGES
from utils.slurm import cluster, sbatch, submission
from utils.slurm.identity import NAME, rows_of
from utils.slurm.interpreter import interpreter_for
from utils.slurm.live_jobs import cancel_seeds, live_jobs, refuse_if_live
from utils.slurm.local_run import run_wrapper
from utils.slurm.options import MultiSeedOptions, RunOptions
from utils.slurm.queue import ask_queue, unrecorded_jobs
from utils.slurm.requests import JobRequest
from utils.slurm.run_record import AGGREGATE as AGGREGATES
from utils.slurm.run_record import AggregateRecord, RunRecord, aggregates, new_directory, records
from utils.slurm.site import resolve


@dataclass(frozen=True)
class AggregateJob:
    """The job that aggregates several seeds: what it runs and asks for."""

    number: int = -1  # no stage
    wrapper: str = "jobs/job_multi_seed_aggregate.sh"
    gpu: bool = False
    memory_gb: int = 8
    minutes: int = 30


AGGREGATE = AggregateJob()


@dataclass
class Chain:
    """The last job of each seed in the order of submission, over variants; `data`: jobs that the data wait for."""

    last: list[str] = field(default_factory=list)
    data: tuple[str, ...] = ()


def main(options: MultiSeedOptions) -> int:
    """run_multi_seed.sh; returns the exit code."""
    settings = load_settings()
    paths = Paths.of(settings)
    if options.cancel:
        with submission.one_submission(paths) if paths.runs.is_dir() else contextlib.nullcontext():
            return _cancel(options.seeds, paths)
    check(options, settings, paths)
    if options.dry_run:
        return _print_plans(options, paths)
    if options.executor == "local":
        return _here(options, paths)
    submit(options, paths, settings, Chain())
    return 0


def check(options: MultiSeedOptions, settings: Settings, paths: Paths) -> None:
    """What keeps any seed from being done is said before the first one starts."""
    for seed in options.seeds:
        submission.plan_of(_one(options, seed), settings, paths)
    check_directory("PROJECT_DIR", paths.multi_seed)


def _print_plans(options: MultiSeedOptions, paths: Paths) -> int:
    for seed in _announced(options.seeds):
        submission.main(_one(options, seed))
    print(f"\nthen the aggregate of seeds {', '.join(map(str, options.seeds))} into {paths.multi_seed}")
    return 0


def _announced(seeds: Sequence[int]) -> Iterator[int]:
    for count, seed in enumerate(seeds, 1):
        print(f"\n==== seed {seed} ({count} of {len(seeds)}) ====", flush=True)
        yield seed


def _here(options: MultiSeedOptions, paths: Paths) -> int:
    """One seed after the other; a seed that fails does not keep the next from running, and the aggregate names it."""
    codes: dict[int, int] = {}
    python = interpreter_for(options.executor, options.demo)
    stopped: list[int] = []
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # the running stage gets it too, and saves
        if signal.getsignal(number) is not signal.SIG_IGN:  # nohup
            signal.signal(number, lambda number, frame: stopped.append(number))
    for seed in _announced(options.seeds):
        try:
            # Forced, setup and data are made anew for the first seed; the others take them.
            first = 2 if options.force and codes.get(options.seeds[0]) == 0 else 0
            codes[seed] = submission.main(_one(options, seed, first=first))
        except UserError as error:
            print(as_typed(f"run_multi_seed.sh: seed {seed}: {error}"), file=sys.stderr)
            codes[seed] = error.exit_code
        if stopped:
            name = signal.Signals(stopped[0]).name
            raise CommandStopped(f"interrupted by {name}. Progress saved; run the same command to resume.")
    print("\n==== aggregate ====", flush=True)
    failed = [str(seed) for seed, code in codes.items() if code]
    if failed:
        print(f"run_multi_seed.sh: seed {', '.join(failed)} failed, see above.", file=sys.stderr)
    code = run_wrapper(["bash", str(CHECKOUT / AGGREGATE.wrapper), *_aggregate_words(options, python)])
    return next((code for code in codes.values() if code), code)


def submit(options: MultiSeedOptions, paths: Paths, settings: Settings, chain: Chain) -> str:
    """Queue what is not done yet of the seeds, each behind an earlier one of the chain; the id of their aggregate."""
    python = interpreter_for(options.executor, options.demo)
    with submission.one_submission(paths):
        return _submit(options, python, paths, settings, chain)


def _submit(options: MultiSeedOptions, python: str, paths: Paths, settings: Settings, chain: Chain) -> str:
    last: dict[int, str] = {}
    made_by = ""  # the run that makes setup and data anew, where all is forced
    for seed in options.seeds:  # before anything is queued: a seed that cannot be completed now would be left out
        if not _all_queued(seed, paths):
            refuse_if_live(seed, paths)
    for count, seed in enumerate(_announced(options.seeds)):
        queued = None if options.force else _all_queued(seed, paths)
        if queued:
            print(f"in the queue already: run {queued.run_id}")
            last[seed] = _last_job(queued)
            chain.last.append(last[seed])
            continue
        place = len(chain.last) - settings.MAX_PARALLEL_SEEDS
        before = tuple(filter(None, chain.last[place : place + 1])) if place >= 0 else ()
        try:
            one = replace(_one(options, seed, after=before), after_for_data=chain.data, made_by=made_by)
            submission.main(one)
        except UserError as error:
            rest = "The seeds before it are in the queue: the same command adds the rest, --cancel ends all."
            raise type(error)(f"seed {seed} was not submitted: {error}" + (f"\n{rest}" if count else "")) from None
        if options.force and not made_by:
            made_by = records(paths, seed)[0].run_id
        queued = _all_queued(seed, paths)
        if queued:
            last[seed] = _last_job(queued)
        if seed in last:  # a seed that was done already holds no place in the chain
            chain.last.append(last[seed])
    return _submit_aggregate(options, python, paths, settings, sorted(set(last.values()), key=int))


def _all_queued(seed: int, paths: Paths) -> RunRecord | None:
    """The run whose live jobs end with the seed's last stage; None where some of the seed's work is in no queue.

    A run of the first stages alone, or one whose last stages were cancelled, leaves work to be queued.
    """
    runs = records(paths, seed)
    live = live_jobs(runs)
    key = STAGES[-1].key
    return next((run for run in runs if key in run.own_jobs and run.jobs[key].job_id in live.get(run.run_id, [])), None)


def _submit_aggregate(
    options: MultiSeedOptions, python: str, paths: Paths, settings: Settings, after: list[str]
) -> str:
    """The id of the job."""
    # Of other seeds: both stay, one after the other, since they write into the same directory.
    earlier = cancel_earlier(aggregates(paths), options.seeds)
    runs, together = records(paths), aggregates(paths)
    others = [
        job for job in unrecorded_jobs(ask_queue(runs, together), runs, together, paths) if job.stage == AGGREGATES
    ]
    after += [record.job.job_id for record in earlier] + [other.state.job_id for other in others]
    record = queue_together(AGGREGATES, _aggregate_words(options, python), settings, paths, options.seeds, after)
    seeds = ", ".join(map(str, options.seeds))
    print(f"\naggregate of seeds {seeds}: job {record.job.job_id}, after {', '.join(after) or '-'}")
    for other in earlier:
        print(
            f"note: the {other} (job {other.job.job_id}) stays in the queue. Both write to "
            f"{paths.multi_seed}; this one runs last."
        )
    for job in others:
        print(f"note: {job}, writes to {paths.multi_seed} as well; this one runs last.")
    print(as_typed(f"watch:   ./check_training_status.sh {' '.join(map(str, options.seeds))}"))
    print(f"results: {paths.multi_seed}. You can log out.")
    return record.job.job_id


def queue_together(
    key: str,
    words: Sequence[str],
    settings: Settings,
    paths: Paths,
    seeds: tuple[int, ...],
    after: Sequence[str],
    **about: Any,
) -> AggregateRecord:
    """Queue what is made of several seeds or experiments when the jobs `after` have ended, however they ended."""
    directory = new_directory(paths, f"{time.strftime('%Y%m%d_%H%M%S')}_{key}")
    settings_file = directory / "settings.json"
    freeze(settings, settings_file)
    request = JobRequest(
        key=key,
        name=f"{NAME}{key}",
        job=AGGREGATE,
        arguments=(*words, "--settings", str(settings_file)),
        settings_file=settings_file,
        after=tuple(after),
    )
    job = replace(request.submit(settings, resolve(settings), {}), submitted_at=timestamp(time.time()))
    return AggregateRecord(directory, seeds, job, **about).saved()


def cancel_earlier(
    queued: Iterable[AggregateRecord], seeds: Collection[int], variants: Collection[str] = ()
) -> list[AggregateRecord]:
    """End those that are about nothing but these seeds (and experiments): they would run too early. The others live."""
    others = []
    for record in queued:
        job = record.job
        if not any(state.live for state in rows_of(cluster.queue([job.job_id], job.cluster), job, record.key)):
            continue
        if set(record.variants) <= set(variants) and set(record.seeds) <= set(seeds):
            sbatch.cancel([job.job_id], job.cluster)
            print(f"cancelled the {record} (job {job.job_id}) of an earlier submission")
        else:
            others.append(record)
    return others


def _cancel(seeds: Sequence[int], paths: Paths) -> int:
    for record in cancel_earlier(aggregates(paths), seeds):
        if set(record.seeds) & set(seeds):
            print(f"left alone: {record.job.job_id} (the {record})")
    return cancel_seeds(seeds, paths)


def _last_job(run: RunRecord) -> str:
    return list(run.jobs.values())[-1].job_id


def _one(options: MultiSeedOptions, seed: int, after: tuple[str, ...] = (), first: int = 0) -> RunOptions:
    return RunOptions(
        seed,
        options.executor,
        demo=options.demo,
        first=first,
        force=options.force,
        dry_run=options.dry_run,
        after=after,
    )


def _aggregate_words(options: MultiSeedOptions, python: str) -> list[str]:
    return ["--seeds", ",".join(map(str, options.seeds)), "--python", python]
