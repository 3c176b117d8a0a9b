"""run_all.sh's other half: plan a run, print it, hand it to SLURM or run it here. Torch-free.

A run freezes its settings into a file of its own and gives each job that file, so neither a later edit of the
configuration nor a variable in the environment can mix two experiments.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

from utils.core.errors import StageError, UsageError
from utils.core.locks import LockHeld, file_lock
from utils.core.paths import CHECKOUT, Paths
from utils.core.settings import Settings, freeze, load_settings
from utils.pipeline.plan import Step, make_plan, table, to_run
from utils.pipeline.stages import STAGES, Stage
from utils.slurm import cluster, sbatch
from utils.slurm.cluster import NoAnswer, Site
from utils.slurm.interpreter import chosen_python, interpreter_for
from utils.slurm.live_jobs import cancel_seeds, cluster_of, own_ids, refuse_if_live
from utils.slurm.options import RunOptions
from utils.slurm.run_record import RunRecord, new_record
from utils.slurm.shared_jobs import shared_jobs


def main(options: RunOptions) -> int:
    """run_all.sh; returns the exit code. Settings and plan are checked before an environment is made."""
    settings = load_settings()
    paths = Paths.of(settings)
    if options.cancel:
        return cancel_seeds([options.seed], paths)
    paths.check_writable()
    if options.executor == "slurm":
        sbatch.extra_options(settings)
        _check_log_directory()
    steps = make_plan(options.seed, paths, settings, first=options.first, last=options.last, force=options.force)
    print(f"seed {options.seed}, profile {settings.PROFILE}, work in {paths.work}")
    print(table(steps), flush=True)
    if options.dry_run:
        return print_plan(options.seed, to_run(steps), paths, settings, options)
    if not to_run(steps):
        print("everything is done.")
        return _tell_report(options.seed, steps, paths)
    python = interpreter_for(options.executor, options.demo)
    with _only_one(paths):
        refuse_if_live(options.seed, paths)
        shared = shared_jobs(to_run(steps), paths, settings) if options.executor == "slurm" else {}
        record = new_record(paths, options.seed, profile=settings.PROFILE, executor=options.executor, python=python)
        freeze(settings, record.settings_file)
        record.save()
        if options.executor == "slurm":
            site = cluster.resolve(settings)
            (CHECKOUT / "logs").mkdir(exist_ok=True)
            submit_graph(record, to_run(steps), settings, site, options.force, shared, ":".join(options.after))
    if options.executor == "slurm":
        _tell_submitted(record, options.seed, paths)
        return 0
    with _only_one(paths, options.seed):
        code = run_here(record, to_run(steps), options.force)
    return code or _tell_report(options.seed, steps, paths)


# ---- SLURM --------------------------------------------------------------------------------------------------------


def submit_graph(
    record: RunRecord,
    steps: list[Step],
    settings: Settings,
    site: Site,
    force: bool,
    shared: dict[str, dict[str, Any]],
    after: str = "",
) -> None:
    """Queue every step with its dependencies, but for the `shared` ones, which another run has queued.

    `after`: job ids, joined by colons; the seed's own stages start when these have ended, however they ended.
    If one is refused, cancel what this run queued, and say so.
    """
    for key, job in shared.items():
        record.add_job(key, job)
    for step in steps:
        if step.stage.key in shared:
            continue
        dependency = dependency_of(step.stage, record, after)
        words = _command(record, step.stage, settings, site, force, dependency)
        out, err = sbatch.log_paths(step.stage.wrapper, sbatch.array_tasks(step.stage, settings))
        try:
            answer = sbatch.submit(words)
            record.add_job(
                step.stage.key,
                {
                    "job_id": answer.job_id,
                    "cluster": answer.cluster,
                    "dependency": dependency,
                    "line": shlex.join(words),
                    "out": out.replace("%j", answer.job_id).replace("%A", answer.job_id).replace("%%", "%"),
                    "err": err.replace("%j", answer.job_id).replace("%A", answer.job_id).replace("%%", "%"),
                    "tasks": sbatch.array_tasks(step.stage, settings),
                },
            )
        except (StageError, OSError) as error:  # OSError: its job is queued, but the record has no room on the disk
            raise StageError(f"stage {step.stage.key} was not queued: {error}\n{_undo(record)}") from None
        except KeyboardInterrupt:
            raise StageError(
                f"interrupted at stage {step.stage.key}; squeue --me shows whether it came through.\n{_undo(record)}"
            ) from None


def dependency_of(stage: Stage, record: RunRecord, after: str = "") -> str:
    """afterok on the jobs of this run that the stage needs, afterany on `after` for its first ones; "" if none."""
    needed = [STAGES[n] for n in stage.needs if STAGES[n].key in record.jobs]
    parts = ["afterok:" + ":".join(record.jobs[item.key]["job_id"] for item in needed)] if needed else []
    if after and stage.per_seed and not any(item.per_seed for item in needed):
        parts.append(f"afterany:{after}")
    return ",".join(parts)


def _undo(record: RunRecord) -> str:
    ids = own_ids(record)
    if not ids:
        return "Nothing was queued."
    try:
        sbatch.cancel(ids, cluster_of(record))
    except StageError as error:
        return f"The jobs that this run had queued before are still in the queue: {error}"
    return f"The jobs that this run had queued before are cancelled: {', '.join(ids)}."


def _command(
    record: RunRecord, stage: Stage, settings: Settings, site: Site, force: bool, dependency: str
) -> list[str]:
    seed = record.facts["seed"]
    return sbatch.command(
        stage,
        settings,
        site,
        name=f"mono_s2s_{stage.key}" + (f"_seed{seed}" if stage.per_seed else ""),
        arguments=_arguments(seed, record.settings_file, record.facts["python"], force),
        dependency=dependency,
    )


def _arguments(seed: int, settings_file: Path, python: str, force: bool) -> list[str]:
    return ["--seed", str(seed), "--settings", str(settings_file), "--python", python, *(["--force"] if force else [])]


def _check_log_directory() -> None:
    """UsageError if SLURM's logs could not be written: a job would end at once, without a word."""
    directory = CHECKOUT / "logs"
    if not os.access(directory if directory.exists() else CHECKOUT, os.W_OK | os.X_OK):
        raise UsageError(f"cannot write to {directory}, where SLURM's logs go. Use a checkout of your own.")


def _tell_submitted(record: RunRecord, seed: int, paths: Paths) -> None:
    width = max(len(key) for key in record.jobs)
    print(f"\nsubmitted as run {record.run_id}:\n  {'stage':<{width}}  {'job':<10}  after")
    for key, job in record.jobs.items():
        print(f"  {key:<{width}}  {job['job_id']:<10}  {_after(job)}")
    print(f"\nsbatch lines and settings: {record.directory}")
    print(f"watch:   ./check_training_status.sh {seed}")
    print(f"logs:    {CHECKOUT}/logs/")
    print(f"cancel:  ./run_all.sh --cancel {seed}")
    print(f"results: {paths.results(seed)}, then {paths.final(seed)}. You can log out.")


def _after(job: dict[str, Any]) -> str:
    return f"shared with run {job['shared_with']}" if "shared_with" in job else job["dependency"] or "-"


# ---- here ---------------------------------------------------------------------------------------------------------


def run_here(record: RunRecord, steps: list[Step], force: bool) -> int:
    """Run the wrappers of these steps one after the other; stop at the first failure with its exit code."""
    started = time.time()
    facts = record.facts
    for count, step in enumerate(steps, 1):
        print(f"\n[{count}/{len(steps)}] stage {step.stage.key}: {step.stage.purpose}", flush=True)
        arguments = _arguments(facts["seed"], record.settings_file, facts["python"], force)
        code = run_wrapper(["bash", str(CHECKOUT / step.stage.wrapper), *arguments])
        if code:
            print(
                f"\nrun_all.sh: stage {step.stage.key} ended with exit code {code} (see above). "
                f"The same command{' without --force' if force else ''} resumes from there.",
                file=sys.stderr,
            )
            return code
    print(f"\nall done in {time.time() - started:.0f} s")
    return 0


def run_wrapper(words: list[str]) -> int:
    """Run a wrapper to its end; whoever asks us to stop, asks it to stop, and we wait for it to save its progress."""
    process = subprocess.Popen(words, start_new_session=False)

    def pass_on(number: int, frame: FrameType | None) -> None:
        if number != signal.SIGINT:  # a terminal sends Ctrl-C to both
            process.send_signal(number)
        caller = before[number]
        if callable(caller) and caller is not signal.default_int_handler:
            caller(number, frame)

    before: dict[int, Any] = {
        number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)
    }
    for number in before:
        signal.signal(number, pass_on)
    try:
        code = process.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return code if code >= 0 else 128 - code


def _tell_report(seed: int, steps: list[Step], paths: Paths) -> int:
    if steps[-1].stage.number == len(STAGES) - 1:
        print(f"results: {paths.results(seed)}\nkept in: {paths.final(seed)}")
        print(f"report:  {paths.results(seed) / 'report.html'}")
    return 0


# ---- shared -------------------------------------------------------------------------------------------------------


def print_plan(seed: int, steps: list[Step], paths: Paths, settings: Settings, options: RunOptions) -> int:
    """What would happen, touching nothing: the sbatch lines (ids as names), or the local commands, and the paths."""
    settings_file = paths.runs / f"RUN_seed{seed}" / "settings.json"
    python = chosen_python() or str(CHECKOUT / ".venv" / "bin" / "python")
    record = RunRecord(settings_file.parent, {"seed": seed, "python": python, "jobs": {}})
    if options.executor == "slurm":
        site = cluster.resolve(settings)
        try:
            record.jobs.update(shared_jobs(steps, paths, settings))
        except NoAnswer as error:
            print(f"\nwhat is in the queue is not known: {error}")
        for key, job in record.jobs.items():
            print(f"\nwould wait for job {job['job_id']} ({key}) of run {job['shared_with']}")
        print("\nwould submit:")
        for step in steps:
            if step.stage.key in record.jobs:
                continue
            dependency = dependency_of(step.stage, record)
            print("  " + shlex.join(_command(record, step.stage, settings, site, options.force, dependency)))
            record.jobs[step.stage.key] = {"job_id": f"JOB_{step.stage.number}"}
    else:
        print("\nwould run here:")
        for step in steps:
            words = ["bash", str(CHECKOUT / step.stage.wrapper)]
            print("  " + shlex.join(words + _arguments(seed, settings_file, python, options.force)))
    print(f"\nwork:    {paths.work}\nresults: {paths.results(seed)}\nkept in: {paths.final(seed)}")
    print("dry run: nothing was touched.")
    return 0


@contextlib.contextmanager
def _only_one(paths: Paths, seed: int | None = None) -> Iterator[None]:
    """Two submissions at once take turns; a second local run of the same seed is refused."""
    try:
        paths.runs.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"SCRATCH_DIR={paths.scratch}: cannot make {paths.runs} ({error.strerror}).") from None
    path = paths.runs / ("submission.lock" if seed is None else f"seed_{seed}.lock")
    try:
        with file_lock(path, wait=seed is None, unprotected="start one run at a time: two at once would mix"):
            yield
    except LockHeld:
        raise UsageError(f"seed {seed} is running here already (run_all.sh --local holds {path}).") from None
