"""check_training_status.sh: where each stage of a seed is, from flags, the run's record, squeue, and sacct. Torch-free.

What SLURM does not tell is called unknown, never finished. Only a flag that holds makes a stage done.
"""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from utils.core.locks import is_locked
from utils.core.paths import Paths
from utils.core.settings import Settings, load_settings
from utils.core.text import duration, lines_of, tail_of
from utils.pipeline.flags import problem_of, read_flag
from utils.pipeline.stages import STAGES, Stage
from utils.slurm import cluster
from utils.slurm.cluster import JobState, NoAnswer
from utils.slurm.live_jobs import cluster_of
from utils.slurm.run_record import RunRecord, records

TRAINED = {2: "baseline", 3: "monotonic"}
REFRESH = 15  # seconds between two looks with --watch
BEHIND = "a job before it failed"

WORDS = {
    "TIMEOUT": "timed out",
    "OUT_OF_MEMORY": "out of memory",
    "CANCELLED": "cancelled",
    "NODE_FAIL": "node failed",
    "PREEMPTED": "preempted",
    "FAILED": "failed",
    "BOOT_FAIL": "node failed",
    "DEADLINE": "timed out",
}


@dataclass
class StageStatus:
    """One row. `state` is one of done, running, queued, waiting, never satisfiable, failed, timed out, out of memory,
    cancelled, node failed, preempted, stopped, stale, not started, unknown; `detail` says more in words."""

    stage: str
    state: str
    detail: str = ""
    job_id: str = ""
    log: str = ""
    progress: dict[str, Any] = field(default_factory=dict)


@dataclass
class SeedStatus:
    seed: int
    run_id: str
    stages: list[StageStatus]
    note: str = ""


def main(seeds: Sequence[int], *, watch: bool = False, as_json: bool = False) -> int:
    """Print the state of these seeds (none: of all that were ever run); returns the exit code."""
    paths = Paths.of(load_settings())
    try:
        while True:
            found = statuses(seeds or _known_seeds(paths) or [42], paths)
            text = json.dumps([asdict(item) for item in found], indent=1) if as_json else "\n\n".join(map(show, found))
            print(("\033[2J\033[H" if watch and sys.stdout.isatty() else "") + text, flush=True)
            if not watch:
                return 0
            time.sleep(REFRESH)
    except KeyboardInterrupt:  # what ends --watch
        return 0


def statuses(seeds: Sequence[int], paths: Paths) -> list[SeedStatus]:
    """All eight stages of each seed, under the settings of its newest run (of this shell, where it has none)."""
    runs_of = {seed: records(paths, seed) for seed in seeds}
    note, states = "", {}
    try:
        states = _ask([run for runs in runs_of.values() for run in runs])
    except NoAnswer as error:
        note = f"{error} What is not done is unknown."
    found = []
    for seed, runs in runs_of.items():
        settings = _settings_of(runs[0]) if runs else load_settings()
        asked = note if any(run.jobs for run in runs) else ""
        stages = [_stage_status(stage, seed, paths, settings, runs, states, bool(asked)) for stage in STAGES]
        _mark_never_satisfiable(stages, runs, states)
        found.append(SeedStatus(seed, runs[0].run_id if runs else "", stages, asked))
    return found


def status_of(seed: int, paths: Paths) -> SeedStatus:
    """`statuses` of one."""
    return statuses([seed], paths)[0]


def _ask(runs: Sequence[RunRecord]) -> dict[str, JobState]:
    """The state of every job of these runs, by id: one squeue, and one sacct for what squeue has forgotten."""
    states: dict[str, JobState] = {}
    for name in sorted({cluster_of(run) for run in runs}):
        ids = {job["job_id"] for run in runs if cluster_of(run) == name for job in run.jobs.values()}
        states |= _joint(cluster.queue(ids, name))
        states |= _joint(cluster.accounting(ids - set(states), name))
    return states


def _mark_never_satisfiable(rows: list[StageStatus], runs: list[RunRecord], states: dict[str, JobState]) -> None:
    """SLURM gives that reason to the first job behind a failed one only; the jobs behind that one wait as long."""
    dead = {job_id for job_id, state in states.items() if not state.live and state.state != "COMPLETED"}
    jobs = {job["job_id"]: job for run in runs for job in run.jobs.values()}
    for row in rows:
        if row.state == "waiting":
            needed = re.findall(r"afterok:([0-9:]+)", jobs[row.job_id]["dependency"])
            if dead & {job_id for ids in needed for job_id in ids.split(":")}:
                row.state, row.detail = "never satisfiable", BEHIND
        if row.state == "never satisfiable":
            dead.add(row.job_id)


def _joint(states: list[JobState]) -> dict[str, JobState]:
    """One state per job: of an array's tasks the one that matters most, and how many have ended."""
    rank = {"RUNNING": 0, "PENDING": 2, "COMPLETED": 4}
    found: dict[str, JobState] = {}
    for job_id in dict.fromkeys(state.job_id for state in states):
        tasks = [state for state in states if state.job_id == job_id]
        first = min(tasks, key=lambda state: rank.get(state.state, 1 if state.live else 3))
        if len(tasks) > 1:
            ended = sum(not state.live for state in tasks)
            first = replace(first, node=f"{first.node} ({ended} of {len(tasks)} array tasks ended)".strip())
        found[job_id] = first
    return found


def _stage_status(
    stage: Stage,
    seed: int,
    paths: Paths,
    settings: Settings,
    runs: list[RunRecord],
    states: dict[str, JobState],
    silent: bool,
) -> StageStatus:
    row = StageStatus(stage.key, "not started", log=str(paths.log(stage.key, stage.seed_of(seed))))
    problem = problem_of(stage, seed, paths, settings)
    if problem is None:
        flag = read_flag(stage, seed, paths)
        row.state, row.detail = "done", f"{flag.finished}, {duration(flag.seconds)}"
        return row
    if _at_work(stage, seed, paths):
        row.state = "running"
    job, later_here = _job_of(stage, runs)
    state = states.get(job["job_id"]) if job else None
    if not (state and state.live) and (row.state == "running" or (later_here and not silent)):
        job = None  # what happened here since is newer than what became of the job
    if job is None:
        if row.state == "not started" and problem != "not done yet":
            row.state, row.detail = "stale", problem
        elif row.state == "not started" and Path(row.log).exists():
            row.state, row.detail = "stopped", _last_line(Path(row.log))
    else:
        row.job_id = job["job_id"]
        out = _log_of(job["out"], state)
        row.log = next((path for path in (str(out), row.log) if Path(path).exists()), job["out"])
        _of_job(row, out, job["dependency"], state, silent, problem)
    if row.state == "running":
        row.progress = _progress(stage, seed, paths, _log_of(job["err"], state) if job else None)
        row.detail = ", ".join(part for part in (row.detail, _in_words(row.progress)) if part)
    return row


def _job_of(stage: Stage, runs: list[RunRecord]) -> tuple[dict[str, Any] | None, bool]:
    """The newest job of the stage, and whether the seed ran here (--local) after that was submitted."""
    later_here = False
    for run in runs:
        if stage.key in run.jobs:
            return run.jobs[stage.key], later_here
        later_here |= run.facts.get("executor") == "local"
    return None, later_here


def _log_of(path: str, state: JobState | None) -> Path:
    """A job's log; of an array the log of the task that `state` is about, else the newest."""
    if "%a" not in path:
        return Path(path)
    if state and state.task.isdigit():
        return Path(path.replace("%a", state.task))
    logs = Path(path).parent.glob(Path(path).name.replace("%a", "*"))
    return max(logs, key=lambda log: log.stat().st_mtime, default=Path(path))


def _of_job(row: StageStatus, out: Path, after: str, state: JobState | None, silent: bool, problem: str) -> None:
    """Fill in what SLURM says of the stage's job."""
    if silent:
        row.state, row.detail = "unknown", "SLURM does not answer"
    elif state is None:
        row.state = "unknown"
        row.detail = f"SLURM has forgotten the job; its log ends: {_last_line(out)}"
    elif state.state == "PENDING" and state.reason == "DependencyNeverSatisfied":
        row.state, row.detail = "never satisfiable", BEHIND
    elif state.state == "PENDING" and state.reason == "Dependency":
        row.state, row.detail = "waiting", f"after {after or 'another run'}"
    elif state.live and state.state != "RUNNING":
        row.state, row.detail = "queued", f"{state.state.lower()}: {state.reason}"
    elif state.live:
        row.state, row.detail = "running", f"on {state.node}"
    elif state.state == "COMPLETED":
        row.state, row.detail = "stale", problem
    elif state.state.startswith("CANCELLED") and state.reason == "DependencyNeverSatisfied":
        row.state, row.detail = "cancelled", BEHIND
    else:
        row.state = WORDS.get(state.state.split()[0], state.state.lower())
        row.detail = _last_line(out)


def _progress(stage: Stage, seed: int, paths: Paths, errors: Path | None) -> dict[str, Any]:
    """What the running stage wrote about itself last: the training's own file, or its progress bar in the job's log."""
    if stage.number in TRAINED:
        path = paths.training(seed, TRAINED[stage.number]) / "progress.json"
        try:
            return dict(json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError):
            return {}
    bar = _last_line(errors) if errors else ""
    return {"bar": bar} if "%|" in bar else {}


def _in_words(progress: dict[str, Any]) -> str:
    if "bar" in progress:
        return str(progress["bar"])
    if not progress:
        return ""
    age = time.time() - progress["updated"]
    loss, left = progress["loss"], progress["seconds_left"]  # null before the first steps are counted
    parts = [
        f"epoch {progress['epoch']} of {progress['epochs']}",
        f"step {progress['step']:,} of {progress['total_steps']:,}",
        "" if loss is None else f"loss {loss:.4f}",
        f"{progress['examples_per_second']:.0f} examples/s",
        "" if left is None else f"{duration(left)} left",
        f"no news for {duration(age)}" if age > 300 else "",
    ]
    return ", ".join(part for part in parts if part)


def _at_work(stage: Stage, seed: int, paths: Paths) -> bool:
    """Whether a process on this machine does the stage: it holds the lock that utils/pipeline/runner.py takes."""
    return any(is_locked(path) for path in paths.locks(stage.key, stage.seed_of(seed)))


def _last_line(path: Path) -> str:
    """The last line with something in it, of a log or of a progress bar that returns to its start."""
    try:
        lines = lines_of(tail_of(path))
    except OSError:
        return "no log"
    failed = [line for line in lines if " ERROR " in line]
    return (failed or lines or ["nothing"])[-1]


def _known_seeds(paths: Paths) -> list[int]:
    return sorted({int(run.facts["seed"]) for run in records(paths)})


def _settings_of(run: RunRecord) -> Settings:
    """The run's frozen settings; those of this shell where it has none (its file is gone, or the setting is newer)."""
    now = load_settings()
    try:
        frozen = json.loads(run.settings_file.read_text(encoding="utf-8"))["settings"]
    except (OSError, ValueError, KeyError):
        return now
    return now.replaced(**frozen)


def show(status: SeedStatus) -> str:
    """The table of one seed, for people."""
    lines = [f"seed {status.seed}" + (f", run {status.run_id}" if status.run_id else ", never submitted")]
    lines += [status.note] if status.note else []
    for row in status.stages:
        job = f"job {row.job_id}" if row.job_id and row.state != "done" else ""
        lines.append(f"  {row.stage:<18} {row.state:<17} {job:<10} {row.detail}".rstrip())
        if row.state not in ("done", "queued", "waiting", "not started", "never satisfiable"):
            lines.append(f"  {'':<18} log: {row.log}")
    left = [row for row in status.stages if row.state != "done"]
    broken = [row for row in left if row.state not in ("running", "queued", "waiting", "not started", "unknown")]
    if any(row.state == "never satisfiable" for row in left):
        lines.append(f"what can never start goes by: ./run_all.sh --cancel {status.seed}")
    if broken:
        lines.append(f"next: ./diagnose_and_recover.sh {status.seed}")
    elif left and all(row.state == "not started" for row in left):
        lines.append(f"next: ./run_all.sh {status.seed}")
    return "\n".join(lines)
