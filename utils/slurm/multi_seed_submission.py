"""run_multi_seed.sh: several seeds and their aggregate, queued at once or run here. Torch-free.

Each seed is an ordinary run of submission.py. Seeds beyond MAX_PARALLEL_SEEDS wait for the end of an earlier one,
and the aggregate for the end of all, however they ended: it checks itself which are complete.
"""

from __future__ import annotations

import argparse
import json
import shlex
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path

from utils.core.errors import StageError, UserError
from utils.core.files import write_json
from utils.core.paths import CHECKOUT, Paths
from utils.core.provenance import timestamp
from utils.core.settings import Settings, freeze, load_settings
from utils.pipeline.stages import STAGES
from utils.slurm import cluster, sbatch, submission
from utils.slurm.live_jobs import cancel_seed, live_jobs
from utils.slurm.run_record import RunRecord, new_directory, records

AGGREGATE = replace(STAGES[-1], wrapper="jobs/job_multi_seed_aggregate.sh", minutes=30)


def main(arguments: list[str]) -> int:
    """The command; returns the exit code."""
    options = _options(arguments)
    try:
        settings = load_settings()
        paths = Paths.of(settings)
        if options.cancel:
            return _cancel(options.seeds, paths)
        if options.executor == "local" or options.dry_run:
            return _here(options, paths)
        return _submit(options, paths, settings)
    except UserError as error:
        print(f"run_multi_seed.sh: {error}", file=sys.stderr)
        return error.exit_code


def _here(options: argparse.Namespace, paths: Paths) -> int:
    """One seed after the other; a seed that fails does not keep the next from running, and the aggregate names it."""
    codes, stopped = {}, []
    if not options.dry_run:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # the stage at work gets it too, and saves
            signal.signal(number, lambda number, frame: stopped.append(number))
    for count, seed in enumerate(options.seeds, 1):
        print(f"\n==== seed {seed} ({count} of {len(options.seeds)}) ====", flush=True)
        codes[seed] = submission.main(_words(options, seed))
        if stopped:
            raise StageError(f"stopped by {signal.Signals(stopped[0]).name}. The same command goes on from here.")
    if options.dry_run:
        print(f"\nthen the aggregate of seeds {', '.join(map(str, options.seeds))} into {paths.multi_seed}")
        return max(codes.values())
    print("\n==== aggregate ====", flush=True)
    failed = [str(seed) for seed, code in codes.items() if code]
    if failed:
        print(f"run_multi_seed.sh: seed {', '.join(failed)} failed, see above.", file=sys.stderr)
    code = submission.run_wrapper(["bash", str(CHECKOUT / AGGREGATE.wrapper), *_aggregate_words(options)])
    return next((code for code in codes.values() if code), code)


def _submit(options: argparse.Namespace, paths: Paths, settings: Settings) -> int:
    last: dict[int, str] = {}
    for count, seed in enumerate(options.seeds):
        print(f"\n==== seed {seed} ({count + 1} of {len(options.seeds)}) ====", flush=True)
        queued = _live(paths, seed)
        if queued:
            print(f"in the queue already: run {queued.run_id}")
            last[seed] = _last_job(queued)
            continue
        before = [options.seeds[count - settings.MAX_PARALLEL_SEEDS]] if count >= settings.MAX_PARALLEL_SEEDS else []
        code = submission.main(_words(options, seed, after=[last[other] for other in before if other in last]))
        if code:
            raise StageError(
                f"seed {seed} was not submitted, see above. The seeds before it are in the queue: "
                "the same command adds the rest, --cancel ends all."
            )
        queued = _live(paths, seed)
        if queued:
            last[seed] = _last_job(queued)
    _submit_aggregate(options, paths, settings, sorted(set(last.values()), key=int))
    return 0


def _submit_aggregate(options: argparse.Namespace, paths: Paths, settings: Settings, after: list[str]) -> None:
    for directory in _aggregates(paths, options.seeds):
        _cancel_aggregate(directory)  # it would run before the seeds that were added now
    directory = new_directory(paths, time.strftime("%Y%m%d_%H%M%S") + "_multi_seed")
    freeze(settings, directory / "settings.json")
    words = sbatch.command(
        AGGREGATE,
        settings,
        cluster.resolve(settings),
        name="mono_s2s_multi_seed",
        arguments=[*_aggregate_words(options), "--settings", str(directory / "settings.json")],
        dependency="afterany:" + ":".join(after) if after else "",
    )
    answer = sbatch.submit(words)
    out, _ = sbatch.log_paths(AGGREGATE.wrapper, 1)
    facts = {
        "seeds": options.seeds,
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


def _cancel(seeds: list[int], paths: Paths) -> int:
    for directory in _aggregates(paths, seeds):
        _cancel_aggregate(directory)
    newest = {seed: records(paths, seed)[0].facts["unix_timestamp"] for seed in seeds if records(paths, seed)}
    # The last one first: jobs that a later seed waits for are left alone while that one is in the queue.
    return max(cancel_seed(seed, paths) for seed in sorted(seeds, key=lambda seed: -newest.get(seed, 0)))


def _cancel_aggregate(directory: Path) -> None:
    facts = json.loads((directory / "multi_seed.json").read_text(encoding="utf-8"))
    if any(state.live for state in cluster.queue([facts["job_id"]], facts["cluster"])):
        sbatch.cancel([facts["job_id"]], facts["cluster"])
        print(f"cancelled the aggregate {facts['job_id']} of an earlier submission")


def _aggregates(paths: Paths, seeds: list[int]) -> list[Path]:
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


def _words(options: argparse.Namespace, seed: int, after: list[str] | None = None) -> list[str]:
    words = ["--seed", str(seed), "--executor", options.executor, "--python", options.python]
    words += ["--force"] if options.force else []
    words += ["--dry-run"] if options.dry_run else []
    return [*words, *(["--after", ":".join(after)] if after else [])]


def _aggregate_words(options: argparse.Namespace) -> list[str]:
    return ["--seeds", ",".join(map(str, options.seeds)), "--python", options.python]


def _options(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="run_multi_seed.sh", allow_abbrev=False)
    parser.add_argument("seeds", nargs="+", type=int)
    parser.add_argument("--executor", choices=("slurm", "local"), required=True)
    parser.add_argument("--python", default="")
    for flag in ("--force", "--dry-run", "--cancel"):
        parser.add_argument(flag, action="store_true")
    return parser.parse_args(arguments)
