"""run_multi_seed.sh: several seeds and their aggregate, queued at once or run here. Torch-free.

Each seed is an ordinary run of submission.py. Seeds beyond MAX_PARALLEL_SEEDS wait for the end of an earlier one,
and the aggregate for the end of all, however they ended: it checks itself which are complete.
"""

from __future__ import annotations

import json
import shlex
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from utils.core.errors import StageError, UserError
from utils.core.files import write_json
from utils.core.paths import CHECKOUT, Paths
from utils.core.provenance import timestamp
from utils.core.settings import Settings, freeze, load_settings
from utils.pipeline.stages import STAGES
from utils.slurm import cluster, sbatch, submission
from utils.slurm.interpreter import interpreter_for
from utils.slurm.live_jobs import cancel_seeds, live_jobs
from utils.slurm.options import MultiSeedOptions, RunOptions
from utils.slurm.run_record import RunRecord, new_directory, records

AGGREGATE = replace(STAGES[-1], wrapper="jobs/job_multi_seed_aggregate.sh", minutes=30)


def main(options: MultiSeedOptions) -> int:
    """run_multi_seed.sh; returns the exit code."""
    settings = load_settings()
    paths = Paths.of(settings)
    if options.cancel:
        return _cancel(options.seeds, paths)
    if options.dry_run:
        return _print_plans(options, paths)
    if options.executor == "local":
        return _here(options, settings, paths)
    return _submit(options, paths, settings)


def _print_plans(options: MultiSeedOptions, paths: Paths) -> int:
    for seed in _announced(options.seeds):
        submission.main(_one(options, seed))
    print(f"\nthen the aggregate of seeds {', '.join(map(str, options.seeds))} into {paths.multi_seed}")
    return 0


def _announced(seeds: Sequence[int]) -> Iterator[int]:
    for count, seed in enumerate(seeds, 1):
        print(f"\n==== seed {seed} ({count} of {len(seeds)}) ====", flush=True)
        yield seed


def _here(options: MultiSeedOptions, settings: Settings, paths: Paths) -> int:
    """One seed after the other; a seed that fails does not keep the next from running, and the aggregate names it."""
    codes: dict[int, int] = {}
    paths.check_writable()
    python = interpreter_for(options.executor, options.demo)
    stopped: list[int] = []
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # the running stage gets it too, and saves
        if signal.getsignal(number) is not signal.SIG_IGN:  # nohup
            signal.signal(number, lambda number, frame: stopped.append(number))
    for seed in _announced(options.seeds):
        try:
            codes[seed] = submission.main(_one(options, seed))
        except UserError as error:
            print(f"run_multi_seed.sh: seed {seed}: {error}", file=sys.stderr)
            codes[seed] = error.exit_code
        if stopped:
            name = signal.Signals(stopped[0]).name
            raise StageError(f"interrupted by {name}. Progress saved; run the same command to resume.")
    print("\n==== aggregate ====", flush=True)
    failed = [str(seed) for seed, code in codes.items() if code]
    if failed:
        print(f"run_multi_seed.sh: seed {', '.join(failed)} failed, see above.", file=sys.stderr)
    code = submission.run_wrapper(["bash", str(CHECKOUT / AGGREGATE.wrapper), *_aggregate_words(options, python)])
    return next((code for code in codes.values() if code), code)


def _submit(options: MultiSeedOptions, paths: Paths, settings: Settings) -> int:
    last: dict[int, str] = {}
    python = interpreter_for(options.executor, options.demo)
    for count, seed in enumerate(_announced(options.seeds)):
        queued = _live(paths, seed)
        if queued:
            print(f"in the queue already: run {queued.run_id}")
            last[seed] = _last_job(queued)
            continue
        before = [options.seeds[count - settings.MAX_PARALLEL_SEEDS]] if count >= settings.MAX_PARALLEL_SEEDS else []
        try:
            submission.main(_one(options, seed, after=tuple(last[other] for other in before if other in last)))
        except UserError as error:
            rest = "The seeds before it are in the queue: the same command adds the rest, --cancel ends all."
            raise type(error)(f"seed {seed} was not submitted: {error}" + (f"\n{rest}" if count else "")) from None
        queued = _live(paths, seed)
        if queued:
            last[seed] = _last_job(queued)
    _submit_aggregate(options, python, paths, settings, sorted(set(last.values()), key=int))
    return 0


def _submit_aggregate(
    options: MultiSeedOptions, python: str, paths: Paths, settings: Settings, after: list[str]
) -> None:
    for directory in _aggregates(paths, options.seeds):
        _cancel_aggregate(directory)  # it would run before the seeds that were added now
    directory = new_directory(paths, time.strftime("%Y%m%d_%H%M%S") + "_multi_seed")
    freeze(settings, directory / "settings.json")
    words = sbatch.command(
        AGGREGATE,
        settings,
        cluster.resolve(settings),
        name="mono_s2s_multi_seed",
        arguments=[*_aggregate_words(options, python), "--settings", str(directory / "settings.json")],
        dependency="afterany:" + ":".join(after) if after else "",
    )
    answer = sbatch.submit(words)
    out, _ = sbatch.log_paths(AGGREGATE.wrapper, 1)
    facts = {
        "seeds": list(options.seeds),
        "job_id": answer.job_id,
        "cluster": answer.cluster,
        "line": shlex.join(words),
        "out": out.replace("%j", answer.job_id).replace("%%", "%"),
        "submitted_at": timestamp(time.time()),
    }
    write_json(directory / "multi_seed.json", facts)
    seeds = ", ".join(map(str, options.seeds))
    print(f"\naggregate of seeds {seeds}: job {answer.job_id}, after {', '.join(after) or '-'}")
    print(f"watch:   ./check_training_status.sh {' '.join(map(str, options.seeds))}")
    print(f"results: {paths.multi_seed}. You can log out.")


def _cancel(seeds: Sequence[int], paths: Paths) -> int:
    for directory in _aggregates(paths, seeds):
        _cancel_aggregate(directory)
    newest = {seed: records(paths, seed)[0].facts["unix_timestamp"] for seed in seeds if records(paths, seed)}
    # The last one first: jobs that a later seed waits for are left alone while that one is in the queue.
    return max(cancel_seeds([seed], paths) for seed in sorted(seeds, key=lambda seed: -newest.get(seed, 0)))


def _cancel_aggregate(directory: Path) -> None:
    facts = json.loads((directory / "multi_seed.json").read_text(encoding="utf-8"))
    if any(state.live for state in cluster.queue([facts["job_id"]], facts["cluster"])):
        sbatch.cancel([facts["job_id"]], facts["cluster"])
        print(f"cancelled the aggregate {facts['job_id']} of an earlier submission")


def _aggregates(paths: Paths, seeds: Sequence[int]) -> list[Path]:
    """Directories of earlier submissions that aggregate any of these seeds."""
    found = []
    for path in sorted(paths.runs.glob("*/multi_seed.json")):
        if set(json.loads(path.read_text(encoding="utf-8"))["seeds"]) & set(seeds):
            found.append(path.parent)
    return found


def _live(paths: Paths, seed: int) -> RunRecord | None:
    runs = records(paths, seed)
    live = live_jobs(runs)
    return next((run for run in runs if run.run_id in live), None)


def _last_job(run: RunRecord) -> str:
    return str(list(run.jobs.values())[-1]["job_id"])


def _one(options: MultiSeedOptions, seed: int, after: tuple[str, ...] = ()) -> RunOptions:
    return RunOptions(
        seed, options.executor, demo=options.demo, force=options.force, dry_run=options.dry_run, after=after
    )


def _aggregate_words(options: MultiSeedOptions, python: str) -> list[str]:
    return ["--seeds", ",".join(map(str, options.seeds)), "--python", python]
