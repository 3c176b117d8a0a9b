"""What every stage does around its work: options, settings, inputs, log, flag, errors, signals, exit code.

A stage script is `run_stage(4, work)`: `work(context)` does the stage's job with what the context offers and leaves
its outputs behind; everything else is here, so that all eight stages keep the same promises.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import shutil
import signal
import sys
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from utils.core.environment import forget_launch
from utils.core.errors import (
    InputError,
    Interrupted,
    ShardDone,
    StageError,
    UsageError,
    UserError,
    explain,
    is_disk_full,
)
from utils.core.files import write_text
from utils.core.fingerprint import fingerprint
from utils.core.locks import file_lock
from utils.core.output import drop_what_cannot_be_written, keep_working_without_reader, open_closed_streams
from utils.core.packages import advice, is_missing_package
from utils.core.paths import Paths
from utils.core.provenance import code_revision, new_run_id, surroundings, timestamp
from utils.core.results import write_result
from utils.core.seeds import DEFAULT_SEED, seed_argument
from utils.core.settings import Settings, as_typed, load_settings, run_command
from utils.pipeline.flags import (
    Basis,
    Flag,
    basis_of,
    clear_flag,
    input_problem,
    output_hashes,
    problem_of,
    read_flag,
    write_flag,
)
from utils.pipeline.stages import STAGES, Stage, upstream

_TYPED = "typed "  # a --force that somebody typed: the next one is another
FETCHING = (0, 1)  # stages that may ask the hub; all others read what these two wrote, on nodes without internet too


@dataclass
class StageContext:
    """What a stage's work gets.

    stage, seed, settings, paths, log: who it is. started: Unix time. shard: (index, number of shards) of a job array.
    basis: what the work starts from, as it was when it started. forced: name of the forced run ("" for none): the
    stage's progress was removed once for it. stop_signal: name of the signal that asked to stop, "" before.
    provenance: facts that the work adds to the metadata of its result files.
    """

    stage: Stage
    seed: int
    settings: Settings
    paths: Paths
    log: logging.Logger
    started: float
    shard: tuple[int, int] = (0, 1)
    forced: str = ""
    basis: Basis = field(default_factory=lambda: Basis({}, {}, {}))
    stop_signal: str = ""
    provenance: dict[str, Any] = field(default_factory=dict)

    def stop_requested(self) -> bool:
        """True after the time-limit warning or a preemption: save and raise Interrupted soon."""
        return bool(self.stop_signal)

    def metadata(self) -> dict[str, Any]:
        """The `_metadata` of a result file: when, which run, and everything that made it."""
        names = sorted({name for item in (*upstream(self.stage.number), self.stage) for name in item.settings})
        inputs = {
            path: digest
            for number in self.stage.needs
            for path, digest in output_hashes(STAGES[number], self.seed, self.paths).items()
        }
        about = self.settings.subset(("PROFILE", "USE_FULL_TEST_SETS"))
        return {
            "timestamp": timestamp(self.started),
            "run_id": new_run_id(self.seed, self.started),
            "seed": self.seed,
            "unix_timestamp": self.started,
            "stage": self.stage.key,
            "profile": about["PROFILE"],
            "experiment": self.settings.EXPERIMENT,
            "full_test_sets": about["USE_FULL_TEST_SETS"],
            "settings": self.settings.subset(names),
            "config_fingerprint": fingerprint(self.settings.subset(names)),
            "seconds": round(time.time() - self.started, 3),
            **surroundings(),
            "inputs": inputs,
            **self.provenance,
        }

    def write_result(self, name: str, results: Any, *, shared: bool = False) -> Path:
        """Write a result file into the seed's results directory (`shared`: into that of all seeds as well)."""
        metadata = self.metadata()
        if shared:
            write_result(self.paths.results_root / name, results, metadata)
        path = self.paths.results(self.seed) / name
        write_result(path, results, metadata)
        self.log.info("wrote %s", path)
        return path


def run_stage(
    number: int,
    work: Callable[[StageContext], None],
    argv: list[str] | None = None,
    *,
    may_start: Callable[[StageContext, str], None] = lambda context, reason: None,
) -> int:
    """Run stage `number` as a command; returns the exit code (0 done, 1 failed, 2 usage, 3 inputs missing or stale).

    may_start: raises a UserError where it must not be made now, for `reason`. Asked where it is typed by hand: of what
    a run of run_all.sh started, that has been asked.
    """
    stage = STAGES[number]
    open_closed_streams()
    options = _options(stage, argv)
    keep_working_without_reader(OSError)
    forget_launch()  # of the shell that we were started from: this is one process, torch would wait for others
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    if number not in FETCHING:
        os.environ["HF_HUB_OFFLINE"] = "1"  # before the libraries are imported: they read it once
    try:
        if options.settings:
            os.environ["MONO_S2S_SETTINGS_FILE"] = str(options.settings)
        settings = load_settings()
        paths = Paths.of(settings)
        paths.check_writable()
        return _run(stage, work, options, settings, paths, may_start)
    except UserError as error:
        print(as_typed(f"stage {stage.key}: {error}"), file=sys.stderr)
        return error.exit_code
    finally:
        drop_what_cannot_be_written()


def _run(
    stage: Stage,
    work: Callable[[StageContext], None],
    options: argparse.Namespace,
    settings: Settings,
    paths: Paths,
    may_start: Callable[[StageContext, str], None],
) -> int:
    seed = options.seed
    log = _open_log(stage, seed, paths)
    started = time.time()
    forced = _forced_run(options, paths) if options.force else ""
    context = StageContext(stage, seed, settings, paths, log, started, _shard(options.shard), forced)
    _listen(context)
    lock = paths.lock(stage.key, stage.seed_of(seed), context.shard)
    try:
        with file_lock(
            lock,
            unprotected="nothing stops a second process from doing this stage at the same time: start it only once",
            on_wait=lambda: log.info("another process is at this stage: waiting for it"),
            stop_requested=context.stop_requested,
            log=log,
        ):
            return _work(context, work, (lambda *_: None) if _of_a_run(options, paths) else may_start)
    except Interrupted:
        again = " (without --force, which starts from scratch)" if forced.startswith(_TYPED) else ""
        log.warning("Interrupted by %s. Progress saved; run the same command%s to resume.", context.stop_signal, again)
        return 1


def _work(
    context: StageContext, work: Callable[[StageContext], None], may_start: Callable[[StageContext, str], None]
) -> int:
    stage, seed, settings, paths, log = context.stage, context.seed, context.settings, context.paths, context.log
    started = context.started = time.time()  # waiting for another process is not part of the work
    problem = problem_of(stage, seed, paths, settings)
    if problem is None:
        flag = read_flag(stage, seed, paths)
        if not context.forced or context.forced == flag.forced:
            _note_other_code(flag, log)
            note = "this forced run rebuilt it" if context.forced else "--force runs it again"
            log.info("already done: its flag matches settings, inputs and outputs; %s.", note)
            return 0
    log.info("starts: %s", "forced" if problem is None else problem)
    missing = input_problem(stage, seed, paths, settings)
    if missing:
        log.error("inputs missing or stale: %s. Run that first: %s %d", missing, run_command(settings), seed)
        return InputError.exit_code
    may_start(context, problem or "forced")
    clear_flag(stage, seed, paths)
    try:
        if context.forced:
            _remove_progress_once(context)
        context.basis = basis_of(stage, seed, paths, settings)
        work(context)
        absent = [str(path) for path in stage.outputs(paths, seed) if not path.exists()]
        if absent:
            raise StageError(f"finished without writing {', '.join(absent)}. This is a bug of the stage.")
        facts = {
            "code": code_revision(),
            "finished": timestamp(time.time()),
            "run_id": new_run_id(seed, started),
            "seconds": round(time.time() - started, 3),
            "slurm_job_id": os.environ.get("SLURM_JOB_ID"),
        }
        write_flag(stage, seed, paths, settings, context.basis, forced=context.forced, facts=facts)
    except Interrupted:
        raise
    except ShardDone as done:
        log.info("%s", done)
        return 0
    except UserError as error:
        log.error("failed: %s", as_typed(str(error)))
        return error.exit_code
    except OSError as error:
        if not is_disk_full(error):
            log.exception("failed: %s", explain(error))
            return 1
        log.error(
            "failed: no space left for %s. Free some (%s), then run again.",
            *(error.filename, as_typed("./clean_checkpoints.sh")),
        )
        return 1
    except Exception as error:  # the one place where a bug becomes an exit code
        if is_missing_package(error):
            log.error("failed: %s", advice(error))
            return 1
        log.exception("failed: %s: %s. This looks like a bug; the traceback is above.", type(error).__name__, error)
        return 1
    log.info("done in %.1f s", time.time() - started)
    return 0


def _options(stage: Stage, argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog=Path(stage.script).name,
        description=f"Stage {stage.key}: {stage.purpose}.",
        epilog="Exit codes: 0 done or already done, 1 failed, 2 wrong usage, 3 inputs missing or stale.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--seed", type=seed_argument, default=DEFAULT_SEED, help=f"training seed (default {DEFAULT_SEED})"
    )
    parser.add_argument(
        "--force", action="store_true", help="run the stage from scratch: its earlier progress is removed"
    )
    parser.add_argument("--forced-by", default="", metavar="NAME", help="with --force: a repeat of that name resumes")
    parser.add_argument("--settings", type=Path, metavar="FILE", help="a run's frozen settings (run_all.sh writes it)")
    parser.add_argument("--shard", default="0/1", metavar="I/N", help="do only shard I of N, from 0 (job arrays)")
    options = parser.parse_args(argv)
    try:
        _shard(options.shard)
    except UsageError as error:
        parser.error(str(error))
    return options


def _shard(text: str) -> tuple[int, int]:
    index, slash, count = text.partition("/")
    if not (slash and index.isdigit() and count.isdigit() and int(index) < int(count)):
        raise UsageError(f"--shard {text}: expected I/N with 0 <= I < N")
    return int(index), int(count)


def _forced_run(options: argparse.Namespace, paths: Paths) -> str:
    """Names what --force was given for: a run of run_all.sh or a SLURM job keeps its name when it is requeued."""
    if _of_a_run(options, paths):
        return f"run {options.settings.resolve().parent.name}"
    return options.forced_by or _TYPED + uuid.uuid4().hex


def _of_a_run(options: argparse.Namespace, paths: Paths) -> bool:
    """Whether a run of run_all.sh started this, or queued it."""
    return bool(options.settings) and options.settings.resolve().parent.parent == paths.runs.resolve()


def _remove_progress_once(context: StageContext) -> None:
    """Forced means made anew: remove what the stage would resume from, once; a requeue of the forced run resumes."""
    stage, seed, paths = context.stage, context.seed, context.paths
    if not stage.progress(paths, seed):
        return
    marker = paths.forced(stage.key, seed)
    with file_lock(
        marker.with_suffix(".lock"),
        unprotected="two tasks of a forced job array that start together may remove each other's work",
        log=context.log,
    ):
        if marker.exists() and marker.read_text(encoding="utf-8") == json.dumps(context.forced):
            return
        for path in stage.progress(paths, seed):
            if path.exists():
                context.log.info("forced: %s is removed", path)
                shutil.rmtree(path)
        write_text(marker, json.dumps(context.forced))


def _open_log(stage: Stage, seed: int, paths: Paths) -> logging.Logger:
    path = paths.log(stage.key, stage.seed_of(seed))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        to_file = logging.FileHandler(path, encoding="utf-8")
    except OSError as error:
        raise UsageError(f"cannot write the log {path}: {error.strerror}") from None
    tag = stage.key if stage.seed_of(seed) is None else f"{stage.key} seed {seed}"
    form = logging.Formatter(f"%(asctime)s %(levelname)s stage {tag}: %(message)s", "%Y-%m-%d %H:%M:%S")
    handlers = (logging.StreamHandler(sys.stdout), to_file)
    for name in ("mono_s2s", "utils"):  # the stage's own lines, and those of the library
        log = logging.getLogger(name)
        log.setLevel(logging.INFO)
        log.propagate = False
        log.handlers.clear()
        for handler in handlers:
            handler.setFormatter(form)
            log.addHandler(handler)
    return logging.getLogger("mono_s2s")


def _listen(context: StageContext) -> None:
    """Stages that can save their progress are asked to; the others (setup, data, aggregate) just end."""
    if not context.stage.resumable:
        return

    def ask(number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and context.stop_signal:
            raise KeyboardInterrupt  # the second Ctrl-C does not wait for a unit to finish
        context.stop_signal = signal.Signals(number).name

    for name in (signal.SIGUSR1, signal.SIGTERM, signal.SIGINT):
        signal.signal(name, ask)


def _note_other_code(flag: Flag, log: logging.Logger) -> None:
    made, now = flag.code, code_revision()
    if made["commit"] != now["commit"]:
        log.info("note: it was made by code revision %s, this is %s", made["commit"][:10], now["commit"][:10])
