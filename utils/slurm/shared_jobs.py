"""Stages 0 and 1 do not depend on the seed: a seed waits for another seed's jobs. Torch-free."""

from __future__ import annotations

import json
from typing import Any

from utils.core.errors import UsageError
from utils.core.paths import Paths
from utils.core.settings import Settings
from utils.pipeline.plan import Step
from utils.pipeline.stages import Stage
from utils.slurm.live_jobs import live_jobs
from utils.slurm.run_record import RunRecord, records


def shared_jobs(steps: list[Step], paths: Paths, settings: Settings) -> dict[str, dict[str, Any]]:
    """Facts of a live job, by key, for each step that another seed's run is doing already with the same settings.

    UsageError if a run is doing one of them with other settings: the two would overwrite each other's data.
    """
    wanted = [step.stage for step in steps if not step.stage.per_seed]
    owners = [
        (record, stage, job)
        for record in (records(paths) if wanted else [])
        for stage in wanted
        if (job := record.jobs.get(stage.key)) and "shared_with" not in job
    ]
    live = live_jobs([record for record, *_ in owners])
    found: dict[str, dict[str, Any]] = {}
    for record, stage, job in owners:
        if job["job_id"] not in live.get(record.run_id, []) or stage.key in found:
            continue
        changed = _differences(record, stage, settings)
        if changed:
            raise UsageError(
                f"run {record.run_id} is at stage {stage.key} with other settings ({', '.join(changed)}). Wait for it, "
                f"or end it: ./run_all.sh --cancel {record.facts['seed']}"
            )
        found[stage.key] = job | {"shared_with": record.run_id, "dependency": "", "line": ""}
    return found


def _differences(record: RunRecord, stage: Stage, settings: Settings) -> list[str]:
    frozen = json.loads(record.settings_file.read_text(encoding="utf-8"))["settings"]
    now = settings.subset(stage.settings)
    return [
        f"{name} {frozen.get(name)} there, {value} here" for name, value in now.items() if frozen.get(name) != value
    ]
