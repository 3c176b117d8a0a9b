"""What a run did to the queue: a directory per run with its frozen settings and run.json. Torch-free.

run.json names every job: id, what it waits for, the exact sbatch line, where its log is. It is rewritten after each
submission, so a submission that dies in the middle leaves no job that nobody knows. Whatever is cancelled or looked
up later is read from here, never from the user's whole queue.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from utils.core.files import write_json
from utils.core.paths import CHECKOUT, Paths
from utils.core.provenance import code_revision, new_run_id, timestamp

log = logging.getLogger("mono_s2s.runs")


@dataclass
class RunRecord:
    """One run: `directory` holds settings.json and run.json, `facts` is the content of run.json."""

    directory: Path
    facts: dict[str, Any]

    @property
    def run_id(self) -> str:
        return self.directory.name

    @property
    def settings_file(self) -> Path:
        return self.directory / "settings.json"

    @property
    def jobs(self) -> dict[str, dict[str, Any]]:
        """Facts of each job by stage key: job_id, cluster, dependency, line, out, err, tasks, submitted_at.

        shared_with: the run whose job it is.
        """
        return self.facts["jobs"]

    def add_job(self, key: str, facts: dict[str, Any]) -> None:
        """Record a job and write run.json."""
        self.jobs[key] = facts | {"submitted_at": timestamp(time.time())}
        self.save()

    def save(self) -> None:
        """Write run.json atomically."""
        write_json(self.directory / "run.json", self.facts)


def new_record(paths: Paths, seed: int, **facts: Any) -> RunRecord:
    """A new run's directory, made, and its record (not yet written)."""
    moment = time.time()
    directory = new_directory(paths, new_run_id(seed, moment))
    record = {
        "run_id": directory.name,
        "seed": seed,
        "submitted_at": timestamp(moment),
        "unix_timestamp": moment,
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "checkout": str(CHECKOUT),
        "code": code_revision(),
        **facts,
        "jobs": {},
    }
    return RunRecord(directory, record)


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
        try:
            facts = json.loads(path.read_text(encoding="utf-8"))
            record = RunRecord(path.parent, facts)
            if seed is None or facts["seed"] == seed:
                found.append((facts["unix_timestamp"], record.run_id, record))
        except (OSError, ValueError, KeyError, TypeError) as error:
            log.warning("%s is damaged (%s): its jobs are not known", path, error)
    return [record for *_, record in sorted(found, key=lambda item: item[:2], reverse=True)]
