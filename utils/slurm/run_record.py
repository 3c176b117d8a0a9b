"""What a run did to the queue: a directory per run with its frozen settings and run.json. Torch-free.

run.json names every job: id, name, when SLURM took it, what it waits for, the exact sbatch line, its log. It is
rewritten after each submission, so a submission that dies in the middle leaves no job that nobody knows. Whatever is
cancelled or looked up later is read from here, never from the user's whole queue.
"""

from __future__ import annotations

import json
import logging
import os
import shlex
import socket
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from utils.core.files import write_json
from utils.core.paths import CHECKOUT, Paths
from utils.core.provenance import code_revision, new_run_id, timestamp

log = logging.getLogger("mono_s2s.runs")
AGGREGATE, PAGE = "multi_seed", "variants"  # what is made of several seeds, and of several experiments


@dataclass(frozen=True)
class JobRecord:
    """One job in the queue, as it was submitted. Times are local; "" where something is not known or not so.

    cluster: what --clusters takes, where sbatch named one · submit_time: SLURM's own, as 2026-01-29T10:15:30 ·
    submitted_at: by the clock of the submitting machine, as 2026-01-29 10:15:30 · dependency, line: of sbatch ·
    out, err: its logs, with %a where it is an array of `tasks` · settings_file: the frozen settings it was given ·
    shared_with: the run whose job it is, if not its own.
    """

    job_id: str
    cluster: str = ""
    name: str = ""
    submit_time: str = ""
    submitted_at: str = ""
    dependency: str = ""
    line: str = ""
    out: str = ""
    err: str = ""
    tasks: int = 1
    settings_file: str = ""
    shared_with: str = ""

    @classmethod
    def from_json(cls, facts: Mapping[str, Any]) -> JobRecord:
        """KeyError without a job_id; names that this version does not know are left out."""
        known = {item.name for item in fields(cls)}
        return cls(job_id=facts["job_id"], **{name: facts[name] for name in known & set(facts) - {"job_id"}})

    def to_json(self) -> dict[str, Any]:
        facts = asdict(self)
        return facts if self.shared_with else {name: value for name, value in facts.items() if name != "shared_with"}


@dataclass(frozen=True)
class RunRecord:
    """One run of one seed. `directory` holds settings.json and run.json; `jobs` is by stage key.

    executor: slurm or local · python: the interpreter of its jobs · cluster_name: SLURM's name of the cluster that
    took the jobs, "" where it did not tell · unix_timestamp: seconds, when it was made.
    """

    directory: Path
    seed: int
    profile: str
    executor: str
    python: str = ""
    submitted_at: str = ""
    unix_timestamp: float = 0.0
    host: str = ""
    pid: int = 0
    checkout: str = ""
    cluster_name: str = ""
    code: dict[str, Any] = field(default_factory=dict)
    jobs: dict[str, JobRecord] = field(default_factory=dict)

    @property
    def run_id(self) -> str:
        return self.directory.name

    @property
    def settings_file(self) -> Path:
        return self.directory / "settings.json"

    @property
    def own_jobs(self) -> dict[str, JobRecord]:
        """The jobs that this run queued itself, by stage key."""
        return {key: job for key, job in self.jobs.items() if not job.shared_with}

    @property
    def cluster(self) -> str:
        """What --clusters takes, where there are several clusters, else ""."""
        return next((job.cluster for job in self.jobs.values()), "")

    def with_job(self, key: str, job: JobRecord) -> RunRecord:
        """The record with one more job; run.json is written."""
        return replace(self, jobs=self.jobs | {key: replace(job, submitted_at=timestamp(time.time()))}).saved()

    def saved(self) -> RunRecord:
        """Write run.json atomically, and return the record."""
        write_json(self.directory / "run.json", self.to_json())
        return self

    @classmethod
    def from_json(cls, directory: Path, facts: Mapping[str, Any]) -> RunRecord:
        """KeyError or TypeError where it is no record of a run."""
        known = {item.name for item in fields(cls)} - {"directory", "jobs"}
        jobs = {key: JobRecord.from_json(job) for key, job in facts["jobs"].items()}
        return cls(directory=directory, jobs=jobs, **{name: facts[name] for name in known & set(facts)})

    def to_json(self) -> dict[str, Any]:
        facts = {item.name: getattr(self, item.name) for item in fields(self) if item.name != "directory"}
        return {"run_id": self.run_id} | facts | {"jobs": {key: job.to_json() for key, job in self.jobs.items()}}


@dataclass(frozen=True)
class AggregateRecord:
    """The aggregate of several seeds in the queue; `directory` holds settings.json and multi_seed.json.

    variants, file: of a page about experiments (variants.json) their names, and the file that describes them.
    """

    directory: Path
    seeds: tuple[int, ...]
    job: JobRecord
    cluster_name: str = ""
    variants: tuple[str, ...] = ()
    file: str = ""

    @property
    def key(self) -> str:
        return PAGE if self.variants else AGGREGATE

    @property
    def command(self) -> str:
        """What was typed to queue it; with --cancel it ends it."""
        words = ["./run_multi_seed.sh", *map(str, self.seeds)]
        return " ".join([*words, "--variants", shlex.quote(self.file)] if self.file else words)

    def __str__(self) -> str:
        of_seeds = f"of seeds {', '.join(map(str, self.seeds))}"
        return f"page of variants {', '.join(self.variants)}, {of_seeds}" if self.variants else f"aggregate {of_seeds}"

    @property
    def settings_file(self) -> Path:
        return self.directory / "settings.json"

    def saved(self) -> AggregateRecord:
        """Write multi_seed.json (of a page variants.json) atomically, and return the record."""
        about = {"variants": list(self.variants), "file": self.file} if self.variants else {}
        facts = {"seeds": list(self.seeds), "cluster_name": self.cluster_name, **about, **self.job.to_json()}
        write_json(self.directory / f"{self.key}.json", facts)
        return self

    @classmethod
    def from_json(cls, directory: Path, facts: Mapping[str, Any]) -> AggregateRecord:
        return cls(
            directory,
            tuple(facts["seeds"]),
            JobRecord.from_json(facts),
            facts.get("cluster_name", ""),
            tuple(facts.get("variants", ())),
            facts.get("file", ""),
        )


def new_record(
    paths: Paths, seed: int, *, profile: str, executor: str, python: str, cluster_name: str = ""
) -> RunRecord:
    """A new run's directory, made, and its record (not yet written)."""
    moment = time.time()
    return RunRecord(
        directory=new_directory(paths, new_run_id(seed, moment)),
        seed=seed,
        profile=profile,
        executor=executor,
        python=python,
        submitted_at=timestamp(moment),
        unix_timestamp=moment,
        host=socket.gethostname(),
        pid=os.getpid(),
        checkout=str(CHECKOUT),
        cluster_name=cluster_name,
        code=code_revision(),
    )


def new_directory(paths: Paths, stem: str) -> Path:
    """runs/<stem>, made; numbered where another submission of the same second took the name."""
    directory, count = paths.runs / stem, 0
    while True:
        try:
            directory.mkdir(parents=True)
            return directory
        except FileExistsError:
            count += 1
            directory = paths.runs / f"{stem}_{count}"


def records(paths: Paths, seed: int | None = None) -> list[RunRecord]:
    """The runs of a seed (None: of all), newest first. A damaged record is named in the log and left out."""
    found = []
    for path in paths.runs.glob("*/run.json"):
        if (facts := _read(path)) is None:
            continue
        try:
            record = RunRecord.from_json(path.parent, facts)
        except (KeyError, TypeError, AttributeError) as error:
            _warn(path, error)
            continue
        if seed is None or record.seed == seed:
            found.append(record)
    return sorted(found, key=lambda record: (record.unix_timestamp, record.run_id), reverse=True)


def aggregates(paths: Paths) -> list[AggregateRecord]:
    """The aggregates of several seeds that were submitted, newest first."""
    return _aggregates(paths, AGGREGATE)


def variant_pages(paths: Paths) -> list[AggregateRecord]:
    """The pages about several variants that were submitted, newest first."""
    return _aggregates(paths, PAGE)


def _aggregates(paths: Paths, name: str) -> list[AggregateRecord]:
    found = []
    for path in sorted(paths.runs.glob(f"*/{name}.json"), reverse=True):
        if (facts := _read(path)) is None:
            continue
        try:
            found.append(AggregateRecord.from_json(path.parent, facts))
        except (KeyError, TypeError) as error:
            _warn(path, error)
    return found


def _read(path: Path) -> dict[str, Any] | None:
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        _warn(path, error)
        return None
    return facts if isinstance(facts, dict) else {}


def _warn(path: Path, error: Exception) -> None:
    log.warning("%s is damaged (%s): its jobs are not known", path, error)
