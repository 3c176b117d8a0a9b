"""check_training_status.sh: where each stage of a seed is, from what seed_facts.py collects. Torch-free.

What SLURM does not tell is called unknown, never finished. Only a flag that holds makes a stage done.
"""

from __future__ import annotations

import json
import re
import shlex
import sys
import time
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from utils.core.names import BASELINE, MONOTONIC
from utils.core.paths import Paths
from utils.core.settings import as_typed, load_settings, variable_text
from utils.core.text import duration, printable
from utils.operations.logs import last_words
from utils.operations.pending_reasons import explain
from utils.operations.seed_facts import (
    AggregateFacts,
    JobFacts,
    SeedFacts,
    StageFacts,
    collect,
)
from utils.slurm.cluster import JobState

TRAINED = {2: BASELINE, 3: MONOTONIC}
REFRESH = 15  # seconds between two looks with --watch
SILENT_SECONDS = 300  # a training that has written no news for so long is worth a word
BEHIND = "a job before it failed"
NOT_BROKEN = ("done", "running", "queued", "waiting", "not started")
WITHOUT_LOG = ("done", "queued", "waiting", "not started", "never satisfiable", "stuck")

# What people call the states in which SLURM ends a job; any other is shown in lower case.
ENDS = {
    "TIMEOUT": "timed out",
    "OUT_OF_MEMORY": "out of memory",
    "CANCELLED": "cancelled",
    "NODE_FAIL": "node failed",
    "PREEMPTED": "preempted",
    "FAILED": "failed",
    "BOOT_FAIL": "node failed",
    "DEADLINE": "timed out",
}


@dataclass(frozen=True)
class StageStatus:
    """One row. `state` is one of done, running, queued, waiting, stuck (pending for a reason that does not pass),
    never satisfiable, failed, timed out, out of memory, cancelled, node failed, preempted, stopped, stale,
    not started, unknown; `detail` says more in words. `reason` is SLURM's own, `exit_code` sacct's, "" if unknown."""

    stage: str
    state: str
    detail: str = ""
    job_id: str = ""
    log: str = ""
    reason: str = ""
    exit_code: str = ""
    progress: dict[str, Any] | None = None


@dataclass(frozen=True)
class SeedStatus:
    """The eight rows of a seed, its aggregates with other seeds, and notes on what is not known or not recorded."""

    seed: int
    run_id: str
    stages: tuple[StageStatus, ...]
    aggregates: tuple[StageStatus, ...] = ()
    notes: tuple[str, ...] = ()


def main(seeds: Sequence[int], *, watch: bool = False, as_json: bool = False) -> int:
    """Print the state of these seeds (none: of all that were ever run); returns the exit code."""
    paths = Paths.of(load_settings())
    try:
        while True:
            found = statuses(seeds or None, paths)
            text = json.dumps([asdict(item) for item in found], indent=1) if as_json else as_typed(show(found))
            print(("\033[2J\033[H" if watch and sys.stdout.isatty() else "") + text, flush=True)
            if not watch:
                return 0
            time.sleep(REFRESH)
    except KeyboardInterrupt:  # what ends --watch
        return 0


def statuses(seeds: Sequence[int] | None, paths: Paths) -> list[SeedStatus]:
    """All eight stages of each seed (None: of all), under the settings of its newest run, or else of this shell."""
    return [status_of(facts, paths) for facts in collect(seeds, paths)]


def status_of(facts: SeedFacts, paths: Paths) -> SeedStatus:
    """The rows that these facts make."""
    rows = tuple(_row(stage, facts, paths) for stage in facts.stages)
    notes = [f"{facts.unknown} What is not done is unknown."] if facts.unknown else []
    notes += [f"not of this work directory: {job}" for job in facts.elsewhere]
    return SeedStatus(
        facts.seed,
        facts.run_id,
        _mark_never_satisfiable(rows, facts),
        tuple(_aggregate_row(aggregate, facts) for aggregate in facts.aggregates),
        tuple(notes),
    )


# ---- one row --------------------------------------------------------------------------------------------------------


def _row(facts: StageFacts, seed: SeedFacts, paths: Paths) -> StageStatus:
    row = StageStatus(facts.stage.key, "not started", log=str(facts.log))
    if facts.problem is None:
        done = f"{facts.flag.finished}, {duration(facts.flag.seconds)}" if facts.flag else ""
        done += " (file times changed since, content not compared yet)" if facts.unread else ""
        return replace(row, state="done", detail=done)
    job = facts.job
    if job and not job.live and (facts.locked or facts.by_hand or (facts.local_since and not seed.unknown)):
        job = None  # what happened here since is newer than what became of the job
    if job:
        row = _with_log(_job_row(row, job, seed, facts.problem), job, facts.log)
    elif facts.by_hand:
        state = facts.by_hand[0].state
        row = _live_row(replace(row, job_id=state.job_id), state, "", seed)
        row = replace(row, detail=f"{row.detail} (submitted by hand)")
    elif not facts.locked and facts.problem != "not done yet":
        row = replace(row, state="stale", detail=facts.problem)
    elif not facts.locked and facts.log.exists():
        row = replace(row, state="stopped", detail=last_words(facts.log))
    if facts.locked and row.state != "running":
        row = replace(row, state="running")
    return _with_progress(row, facts, seed.seed, paths) if row.state == "running" else row


def _job_row(row: StageStatus, job: JobFacts, seed: SeedFacts, problem: str) -> StageStatus:
    """Fill in what SLURM says of the stage's job: of an array the task that matters most."""
    row = replace(row, job_id=job.job_id)
    if not job.tasks:
        if seed.unknown:
            return replace(row, state="unknown", detail="SLURM does not answer")
        ends = last_words(_log_of(job.out, None))
        return replace(row, state="unknown", detail=f"SLURM has forgotten the job; its log ends: {ends}")
    if job.failed:
        state = job.failed[0]
        row = _ended_row(row, state, last_words(_log_of(job.out, state)))
        if len(job.tasks) > 1 and row.detail != BEHIND:
            others = sum(task.live for task in job.tasks)
            still = f"; {others} others still wait or run" if others else ""
            row = replace(row, detail=f"array task {state.task}: {row.detail}{still}")
        return row
    if not job.live:
        return replace(row, state="stale", detail=problem)  # COMPLETED, and yet its flag does not hold
    state = min((task for task in job.tasks if task.live), key=lambda task: task.state != "RUNNING")
    row = _live_row(row, state, job.dependency, seed)
    if len(job.tasks) > 1:
        ended = sum(not task.live for task in job.tasks)
        row = replace(row, detail=f"{row.detail} ({ended} of {len(job.tasks)} array tasks ended)")
    return row


def _live_row(row: StageStatus, state: JobState, dependency: str, seed: SeedFacts) -> StageStatus:
    row = replace(row, reason=state.reason)
    if state.state == "RUNNING":
        return replace(row, state="running", detail=f"on {state.node}")
    if state.state == "SUSPENDED":
        return replace(row, state="running", detail=f"suspended on {state.node}: it resumes when SLURM lets it")
    if state.state == "PENDING" and state.reason == "Dependency":
        return replace(row, state="waiting", detail=f"after {dependency or 'another run'}")
    if state.state == "PENDING" and state.reason == "DependencyNeverSatisfied":
        return replace(row, state="never satisfiable", detail=BEHIND)
    known = explain(state.reason) if state.state not in ("CONFIGURING", "COMPLETING") else None
    if known is None:
        return replace(row, state="queued", detail=f"{state.state.lower()}: {state.reason}")
    detail = f"{state.reason}: {known.meaning}. {known.remedy_for(row.job_id, *commands_about(row, seed))}"
    return replace(row, state="stuck" if known.stuck else "queued", detail=detail)


def commands_about(row: StageStatus, facts: SeedFacts, changed: Collection[str] = ()) -> tuple[str, str]:
    """What cancels the row's job, with those submitted together with it, and what queues them again, where they ran.

    With the settings that what is done was made with (of a named experiment all that make it): this shell may have
    others. `changed`: settings that were changed on purpose.
    """
    for aggregate in facts.aggregates:
        if str(aggregate.record) == row.stage:
            return f"{aggregate.record.command} --cancel", aggregate.record.command
    newest = facts.runs[0] if facts.runs else None
    options = ["--local"] if newest and newest.executor == "local" else []
    if newest and newest.profile == "demo":
        options = ["--demo", *([] if options else ["--slurm"])]
    named = newest and facts.settings.EXPERIMENT
    names = sorted({name for item in facts.stages if named or item.problem is None for name in item.stage.settings})
    then, now = facts.settings.subset(names), load_settings().subset(names)
    variables = [
        f"MONO_S2S_{name}={shlex.quote(variable_text(then[name]))}"
        for name in names
        if then[name] != now[name] and name not in changed
    ]
    return f"./run_all.sh --cancel {facts.seed}", " ".join([*variables, "./run_all.sh", str(facts.seed), *options])


def _ended_row(row: StageStatus, state: JobState, words: str) -> StageStatus:
    name = ENDS.get(state.state.split()[0], state.state.lower())  # sacct says "CANCELLED by 1000"
    behind = name == "cancelled" and state.reason == "DependencyNeverSatisfied"
    detail = BEHIND if behind else words
    return replace(row, state=name, detail=detail, reason=state.reason, exit_code=state.exit_code)


def _with_log(row: StageStatus, job: JobFacts, stage_log: Path | None) -> StageStatus:
    state = next(iter(job.failed), next((task for task in job.tasks if task.live), None))
    out = _log_of(job.out, state)
    places = [out, *([stage_log] if stage_log else [])]
    return replace(row, log=str(next((path for path in places if path.exists()), out)))


def _log_of(path: str, state: JobState | None) -> Path:
    """A job's log; of an array the log of the task that `state` is about, else the newest."""
    if "%a" not in path:
        return Path(path)
    if state and state.task.isdigit():
        return Path(path.replace("%a", state.task))
    logs = Path(path).parent.glob(Path(path).name.replace("%a", "*"))
    return max(logs, key=lambda log: log.stat().st_mtime, default=Path(path))


def _mark_never_satisfiable(rows: Sequence[StageStatus], facts: SeedFacts) -> tuple[StageStatus, ...]:
    """SLURM gives that reason to the first job behind a failed one only; the jobs behind that one wait as long."""
    dead = {stage.job.job_id for stage in facts.stages if stage.job and stage.job.failed}
    marked = []
    for row, stage in zip(rows, facts.stages, strict=True):
        if row.state == "waiting" and stage.job:
            needed = re.findall(r"afterok:([0-9:]+)", stage.job.dependency)
            if dead & {job_id for ids in needed for job_id in ids.split(":")}:
                row = replace(row, state="never satisfiable", detail=BEHIND)
        if row.state == "never satisfiable":
            dead.add(row.job_id)
        marked.append(row)
    return tuple(marked)


def _aggregate_row(aggregate: AggregateFacts, facts: SeedFacts) -> StageStatus:
    """The aggregate of several seeds. It has no flag: done is what SLURM, or else its log, says."""
    row = _job_row(StageStatus(str(aggregate.record), "not started"), aggregate.job, facts, "")
    row = _with_log(row, aggregate.job, None)
    ends = re.search(r"exit status (\d+)", last_words(Path(row.log)))
    if row.state == "stale" or (row.state == "unknown" and ends and ends[1] == "0"):
        return replace(row, state="done", detail="")
    return replace(row, state="failed") if row.state == "unknown" and ends else row


# ---- progress -------------------------------------------------------------------------------------------------------


def _with_progress(row: StageStatus, facts: StageFacts, seed: int, paths: Paths) -> StageStatus:
    """What the running stage wrote about itself last: the training's own file, or its progress bar in the job's log."""
    progress: dict[str, Any] = {}
    words = ""
    if facts.stage.number in TRAINED:
        path = paths.training(seed, TRAINED[facts.stage.number]) / "progress.json"
        try:
            progress = dict(json.loads(path.read_text(encoding="utf-8")))
            words = _in_words(progress)
        except (OSError, ValueError, KeyError, TypeError):
            progress = {}  # not there yet, or of another version
    elif facts.job and facts.job.live:
        running = next((task for task in facts.job.tasks if task.live), None)
        bar = last_words(_log_of(facts.job.err, running))
        if "%|" in bar:
            progress, words = {"bar": bar}, bar
    return replace(row, progress=progress, detail=", ".join(part for part in (row.detail, words) if part))


def _in_words(progress: dict[str, Any]) -> str:
    age = time.time() - progress["updated"]
    loss, left = progress["loss"], progress["seconds_left"]  # null before the first steps are counted
    parts = [
        f"epoch {progress['epoch']} of {progress['epochs']}",
        f"step {progress['step']:,} of {progress['total_steps']:,}",
        "" if loss is None else f"loss {loss:.4f}",
        f"{progress['examples_per_second']:.0f} examples/s",
        "" if left is None else f"{duration(left)} left",
        f"no news for {duration(age)}" if age > SILENT_SECONDS else "",
    ]
    return ", ".join(part for part in parts if part)


# ---- for people -----------------------------------------------------------------------------------------------------


def show(found: Sequence[SeedStatus]) -> str:
    """A table for each seed, and a line for each aggregate."""
    aggregates = {row.stage: row for status in found for row in status.aggregates}
    tables = [_table(status) for status in found]
    if aggregates:
        tables.append("\n".join(line for row in aggregates.values() for line in _lines(row, 0)))
    return printable("\n\n".join(tables))


def _table(status: SeedStatus) -> str:
    lines = [f"seed {status.seed}" + (f", run {status.run_id}" if status.run_id else ", never submitted")]
    lines += status.notes
    lines += [line for row in status.stages for line in _lines(row, 18)]
    left = [row for row in status.stages if row.state != "done"]
    broken = [row for row in left if row.state not in (*NOT_BROKEN, "unknown")]
    if any(row.state == "never satisfiable" for row in left):
        lines.append(f"Jobs with DependencyNeverSatisfied: cancel with ./run_all.sh --cancel {status.seed}")
    if broken:
        lines.append(f"next: ./diagnose_and_recover.sh {status.seed}")
    elif left and all(row.state == "not started" for row in left):
        lines.append(f"next: ./run_all.sh {status.seed}")
    return "\n".join(lines)


def _lines(row: StageStatus, width: int) -> list[str]:
    job = f"job {row.job_id}" if row.job_id and row.state != "done" else ""
    lines = [f"  {row.stage:<{width}} {row.state:<17} {job:<10} {row.detail}".rstrip()]
    if row.state not in WITHOUT_LOG:
        lines.append(f"  {'':<{width}} log: {row.log}")
    return lines
