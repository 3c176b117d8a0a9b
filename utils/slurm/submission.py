"""run_all.sh: settings -> plan -> queue -> job requests -> submitted graph, or the same plan run here. Torch-free.

A run freezes its settings into a file of its own and gives each job that file, so neither a later edit of the
configuration nor a variable in the environment can mix two experiments.
"""

from __future__ import annotations

import contextlib
import functools
import os
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from utils.core.errors import UsageError
from utils.core.locks import LockHeld, file_lock
from utils.core.paths import CHECKOUT, Paths
from utils.core.settings import Settings, as_typed, freeze, load_settings
from utils.pipeline.flags import Completion
from utils.pipeline.plan import Step, make_plan, table, to_run
from utils.pipeline.stages import STAGES
from utils.slurm import sbatch
from utils.slurm.cluster import NoAnswer, cluster_name
from utils.slurm.inputs import check_inputs
from utils.slurm.interpreter import chosen_python, interpreter_for
from utils.slurm.live_jobs import cancel_seeds, refuse_if_live
from utils.slurm.local_run import run_here
from utils.slurm.options import RunOptions
from utils.slurm.project_claim import claim, refuse_if_claimed
from utils.slurm.requests import requests_of, submit_graph, with_placeholders, wrapper_arguments
from utils.slurm.run_record import JobRecord, RunRecord, new_record, records
from utils.slurm.shared_jobs import refuse_other_model, refuse_to_change_data, shared_jobs, tell_stale_seeds
from utils.slurm.site import resolve


@dataclass(frozen=True)
class RunPlan:
    """What the user asked for, with the settings it is done under and what has to be done for it."""

    options: RunOptions
    settings: Settings
    paths: Paths
    steps: tuple[Step, ...]

    @property
    def seed(self) -> int:
        return self.options.seed

    @property
    def wanted(self) -> list[Step]:
        """The steps that are not done."""
        return to_run(list(self.steps))


def main(options: RunOptions) -> int:
    """run_all.sh; returns the exit code. Settings and plan are checked before an environment is made."""
    settings = load_settings()
    paths = Paths.of(settings)
    if options.cancel:
        with one_submission(paths) if paths.runs.is_dir() else contextlib.nullcontext():
            return cancel_seeds([options.seed], paths)
    plan = plan_of(options, settings, paths)
    print(f"seed {plan.seed}, profile {settings.PROFILE}, work in {paths.work}")
    print(table(list(plan.steps)), flush=True)
    if not plan.wanted:
        print("everything is done.")
        return _tell_report(plan)
    if options.dry_run:
        return print_plan(plan)
    python = interpreter_for(options.executor, options.demo)
    if options.executor == "slurm":
        record = submit(plan, python)
        if record is None:
            print("everything is done: the last stage ended while this command waited for its turn.")
            return _tell_report(plan)
        _tell_submitted(record, plan)
        return 0
    with one_submission(paths):
        refuse_if_live(plan.seed, paths)
        refuse_if_claimed(plan.seed, paths)
        refuse_to_change_data(plan.wanted, plan.seed, paths, settings, force=options.force)
        record = _frozen(plan, python)
    with _one_local_run(paths, plan.seed):
        code = run_here(record, plan.wanted, settings, options.force)
    return code or _tell_report(plan)


def plan_of(options: RunOptions, settings: Settings, paths: Paths) -> RunPlan:
    """The plan, checked as far as that can be done without asking anybody: nothing may turn up hours later."""
    paths.check_writable(options.seed)
    if options.executor == "slurm":
        sbatch.check_extra_options(settings)
        _check_log_directory()
    refuse_other_model(options.seed, paths, settings)
    steps = make_plan(options.seed, paths, settings, first=options.first, last=options.last, force=options.force)
    check_inputs([step.stage for step in to_run(steps)], settings)
    return RunPlan(options, settings, paths, tuple(steps))


def submit(plan: RunPlan, python: str) -> RunRecord | None:
    """Queue the plan's graph; returns the record of the run, jobs of other runs that it waits for included.

    None where nothing is left to do when its turn comes.
    """
    options, settings, paths = plan.options, plan.settings, plan.paths
    with one_submission(paths):
        refuse_if_live(plan.seed, paths)
        refuse_if_claimed(plan.seed, paths)
        shared = shared_jobs(plan.wanted, paths, settings)
        # Flags are read again after the queue: a job that ended since the first plan is in neither, and would be queued
        # once more.
        plan = _without_what_was_made(plan_of(options, settings, paths), shared)
        if not plan.wanted:
            return None
        shared = {step.stage.key: shared[step.stage.key] for step in plan.wanted if step.stage.key in shared}
        anew = [step for step in plan.wanted if step.stage.key not in shared]
        refuse_to_change_data(anew, plan.seed, paths, settings, force=options.force)
        site = resolve(settings)
        record = _frozen(plan, python)
        for key, job in shared.items():
            record = record.with_job(key, job)
        (CHECKOUT / "logs").mkdir(exist_ok=True)
        requests = requests_of(
            plan.wanted,
            plan.seed,
            record.settings_file,
            python,
            force=options.force,
            after=options.after,
            after_for_data=options.after_for_data,
        )
        return submit_graph(record, requests, settings, site)


def _without_what_was_made(plan: RunPlan, shared: Mapping[str, JobRecord]) -> RunPlan:
    """The plan without the setup and data that this command has made by now for an earlier seed: forced is once."""
    if not plan.options.made_by:
        return plan
    earlier = next(record for record in records(plan.paths) if record.run_id == plan.options.made_by)
    completion = Completion(plan.seed, plan.paths, plan.settings)

    def made(step: Step) -> bool:
        key = step.stage.key
        ours = not step.stage.per_seed and key in earlier.own_jobs and key not in shared
        return ours and completion.problem(step.stage) is None

    return replace(plan, steps=tuple(replace(step, reason=None) if made(step) else step for step in plan.steps))


def print_plan(plan: RunPlan) -> int:
    """What would happen, touching nothing: the sbatch lines (ids as names), or the local commands, and the paths."""
    options, settings, paths = plan.options, plan.settings, plan.paths
    directory = paths.runs / f"RUN_seed{plan.seed}"
    python = chosen_python() or str(CHECKOUT / ".venv" / "bin" / "python")
    if options.executor == "slurm":
        site = resolve(settings)
        shared: dict[str, JobRecord] = {}
        try:
            shared = shared_jobs(plan.wanted, paths, settings)
        except NoAnswer as error:
            print(f"\nwhat is in the queue is not known: {error}")
        for key, job in shared.items():
            print(f"\nwould wait for job {job.job_id} ({key}) of run {job.shared_with}")
        print("\nwould submit:")
        record = RunRecord(directory, plan.seed, settings.PROFILE, options.executor, python, jobs=shared)
        requests = requests_of(plan.wanted, plan.seed, record.settings_file, python, force=options.force)
        jobs = with_placeholders(record, requests).jobs
        for request in requests:
            if request.key not in shared:
                print("  " + shlex.join(request.command(settings, site, jobs)))
    else:
        print("\nwould run here:")
        words = wrapper_arguments(plan.seed, directory / "settings.json", python, options.force)
        for step in plan.wanted:
            print("  " + shlex.join(["bash", str(CHECKOUT / step.stage.wrapper), *words]))
    tell_stale_seeds(plan.wanted, plan.seed, paths)
    print(f"\nwork:    {paths.work}\nresults: {paths.results(plan.seed)}\nkept in: {paths.final(plan.seed)}")
    print("dry run: nothing was touched.")
    return 0


def _frozen(plan: RunPlan, python: str) -> RunRecord:
    """A new run's record, written, beside its frozen settings."""
    tell_stale_seeds(plan.wanted, plan.seed, plan.paths)
    record = new_record(
        plan.paths,
        plan.seed,
        profile=plan.settings.PROFILE,
        executor=plan.options.executor,
        python=python,
        cluster_name=cluster_name() if plan.options.executor == "slurm" else "",
    )
    freeze(plan.settings, record.settings_file)
    claim(plan.seed, plan.paths)
    return record.saved()


def _check_log_directory() -> None:
    """UsageError if SLURM's logs could not be written: a job would end at once, without a word."""
    directory = CHECKOUT / "logs"
    if not os.access(directory if directory.exists() else CHECKOUT, os.W_OK | os.X_OK):
        raise UsageError(f"cannot write to {directory}, where SLURM's logs go. Use a checkout of your own.")


def _tell_submitted(record: RunRecord, plan: RunPlan) -> None:
    width = max(len(key) for key in record.jobs)
    print(f"\nsubmitted as run {record.run_id}:\n  {'stage':<{width}}  {'job':<10}  after")
    for key, job in record.jobs.items():
        after = f"shared with run {job.shared_with}" if job.shared_with else job.dependency or "-"
        print(f"  {key:<{width}}  {job.job_id:<10}  {after}")
    print(f"\nsbatch lines and settings: {record.directory}")
    print(as_typed(f"watch:   ./check_training_status.sh {plan.seed}"))
    print(f"logs:    {CHECKOUT}/logs/")
    print(as_typed(f"cancel:  ./run_all.sh --cancel {plan.seed}"))
    print(f"results: {plan.paths.results(plan.seed)}, then {plan.paths.final(plan.seed)}. You can log out.")


def _tell_report(plan: RunPlan) -> int:
    if plan.steps[-1].stage.number == len(STAGES) - 1:
        results = plan.paths.results(plan.seed)
        print(f"results: {results}\nkept in: {plan.paths.final(plan.seed)}\nreport:  {results / 'report.html'}")
    return 0


_submitting: set[Path] = set()  # locks that this process holds


@contextlib.contextmanager
def one_submission(paths: Paths) -> Iterator[None]:
    """Two submissions at once take turns; one of several seeds keeps its turn to the end."""
    path = _lock_file(paths, "submission.lock")
    if path in _submitting:
        yield
        return
    tell = functools.partial(print, "another submission is being made here: waiting for it", flush=True)
    with file_lock(path, wait=True, unprotected=_UNPROTECTED, on_wait=tell):
        _submitting.add(path)
        try:
            yield
        finally:
            _submitting.discard(path)


@contextlib.contextmanager
def _one_local_run(paths: Paths, seed: int) -> Iterator[None]:
    """A second local run of the same seed is refused."""
    path = _lock_file(paths, f"seed_{seed}.lock")
    try:
        with file_lock(path, wait=False, unprotected=_UNPROTECTED):
            yield
    except LockHeld:
        raise UsageError(f"seed {seed} is running here already (run_all.sh --local holds {path}).") from None


_UNPROTECTED = "start one run at a time: two at once would mix"


def _lock_file(paths: Paths, name: str) -> Path:
    try:
        paths.runs.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"SCRATCH_DIR={paths.scratch}: cannot make {paths.runs} ({error.strerror}).") from None
    return paths.runs / name
