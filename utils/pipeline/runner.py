"""What every stage does around its work: options, settings, inputs, log, flag, errors, signals, exit code.

A stage script is `run_stage(4, work)`: `work(context)` does the stage's job with what the context offers and leaves
its outputs behind; everything else is here, so that all eight stages keep the same promises.
"""

from __future__ import annotations

import argparse
import errno
import logging
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from utils.core.errors import InputError, Interrupted, PartDone, StageError, UsageError, UserError
from utils.core.fingerprint import fingerprint
from utils.core.locks import file_lock
from utils.core.paths import Paths
from utils.core.provenance import code_revision, new_run_id, surroundings, timestamp
from utils.core.results import write_result
from utils.core.settings import Settings, load_settings
from utils.pipeline.flags import clear_flag, input_problem, output_hashes, problem_of, read_flag, write_flag
from utils.pipeline.stages import STAGES, Stage, upstream

DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
FETCHING = (0, 1)  # stages that may ask the hub; all others read what these two wrote, on nodes without internet too


@dataclass
class StageContext:
    """What a stage's work gets: who it is, its settings and paths, a log, and whether it was asked to stop."""

    stage: Stage
    seed: int
    settings: Settings
    paths: Paths
    log: logging.Logger
    started: float
    shard: tuple[int, int] = (0, 1)
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
        return {
            "timestamp": timestamp(self.started),
            "run_id": new_run_id(self.seed, self.started),
            "seed": self.seed,
            "unix_timestamp": self.started,
            "stage": self.stage.key,
            "profile": self.settings.PROFILE,
            "full_test_sets": self.settings.USE_FULL_TEST_SETS,
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


def run_stage(number: int, work: Callable[[StageContext], None], argv: list[str] | None = None) -> int:
    """Run stage `number` as a command; returns the exit code (0 done, 1 failed, 2 usage, 3 inputs missing or stale)."""
    stage = STAGES[number]
    options = _options(stage, argv)
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    if number not in FETCHING:
        os.environ["HF_HUB_OFFLINE"] = "1"  # before the libraries are imported: they read it once
    try:
        if options.settings:
            os.environ["MONO_S2S_SETTINGS_FILE"] = str(options.settings)
        settings = load_settings()
        paths = Paths.of(settings)
        paths.check_writable()
        return _run(stage, work, options, settings, paths)
    except UserError as error:
        print(f"stage {stage.key}: {error}", file=sys.stderr)
        return error.exit_code


def _run(
    stage: Stage,
    work: Callable[[StageContext], None],
    options: argparse.Namespace,
    settings: Settings,
    paths: Paths,
) -> int:
    seed = options.seed
    log = _open_log(stage, seed, paths)
    started = time.time()
    context = StageContext(stage, seed, settings, paths, log, started, _shard(options.shard))
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
            return _work(context, work, force=options.force)
    except Interrupted:
        log.warning("stopped by %s; what is done is saved. Start it again and it goes on.", context.stop_signal)
        return 1


def _work(context: StageContext, work: Callable[[StageContext], None], *, force: bool) -> int:
    stage, seed, settings, paths, log = context.stage, context.seed, context.settings, context.paths, context.log
    started = context.started = time.time()  # waiting for another process is not part of the work
    problem = problem_of(stage, seed, paths, settings)
    if problem is None and not force:
        _note_other_code(stage, seed, paths, log)
        log.info("already done: its flag matches settings, inputs and outputs. --force makes it again.")
        return 0
    log.info("starts: %s", "forced" if problem is None else problem)
    missing = input_problem(stage, seed, paths, settings)
    if missing:
        log.error("inputs missing or stale: %s. Run that first: ./run_all.sh %d", missing, seed)
        return InputError.exit_code
    clear_flag(stage, seed, paths)
    try:
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
        write_flag(stage, seed, paths, settings, facts)
    except Interrupted:
        raise
    except PartDone as part:
        log.info("%s", part)
        return 0
    except UserError as error:
        log.error("failed: %s", error)
        return error.exit_code
    except OSError as error:
        if error.errno not in DISK_FULL:
            log.exception("failed: %s", error)
            return 1
        log.error("failed: no space left for %s. Free some (clean_checkpoints.sh), then run again.", error.filename)
        return 1
    except Exception as error:  # the one place where a bug becomes an exit code
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
    parser.add_argument("--seed", type=_seed, default=42, help="training seed (default 42)")
    parser.add_argument("--force", action="store_true", help="run even if the stage is done")
    parser.add_argument("--settings", type=Path, metavar="FILE", help="a run's frozen settings (run_all.sh writes it)")
    parser.add_argument("--shard", default="0/1", metavar="I/N", help="do only the I-th of N parts (job arrays)")
    options = parser.parse_args(argv)
    try:
        _shard(options.shard)
    except UsageError as error:
        parser.error(str(error))
    return options


def _seed(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) >= 2**31:
        raise argparse.ArgumentTypeError(f"seed {text!r}: expected a whole number from 0 to 2147483647")
    return int(text)


def _shard(text: str) -> tuple[int, int]:
    index, slash, count = text.partition("/")
    if not (slash and index.isdigit() and count.isdigit() and int(index) < int(count)):
        raise UsageError(f"--shard {text}: expected I/N with 0 <= I < N")
    return int(index), int(count)


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


def _note_other_code(stage: Stage, seed: int, paths: Paths, log: logging.Logger) -> None:
    made, now = read_flag(stage, seed, paths)["code"], code_revision()
    if made["commit"] != now["commit"]:
        log.info("note: it was made by code revision %s, this is %s", made["commit"][:10], now["commit"][:10])
