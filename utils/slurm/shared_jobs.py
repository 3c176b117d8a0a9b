"""Stages 0 and 1 do not depend on the seed: a seed waits for another seed's jobs. Torch-free."""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import replace
from pathlib import Path

from utils.core.errors import InputError, UsageError
from utils.core.locks import is_locked
from utils.core.paths import Paths
from utils.core.results import read_result
from utils.core.settings import Settings
from utils.pipeline.flags import INPUT, SETTINGS_CHANGED, problem_of
from utils.pipeline.plan import Step
from utils.pipeline.runner import StageContext
from utils.pipeline.stages import STAGES, Stage
from utils.slurm.cluster import NoAnswer
from utils.slurm.live_jobs import at_work_here, is_at_work, known_seeds, live_jobs
from utils.slurm.run_record import JobRecord, RunRecord, records


def shared_jobs(steps: list[Step], paths: Paths, settings: Settings) -> dict[str, JobRecord]:
    """A live job, by key, for each step that another seed's run is doing already with the same settings.

    UsageError if a run is doing one of them with other settings: the two would overwrite each other's data.
    """
    wanted = [step.stage for step in steps if not step.stage.per_seed]
    owners = [
        (record, stage, job)
        for record in (records(paths) if wanted else [])
        for stage in wanted
        if (job := record.jobs.get(stage.key)) and not job.shared_with
    ]
    live = live_jobs([record for record, *_ in owners])
    found: dict[str, JobRecord] = {}
    for record, stage, job in owners:
        if job.job_id not in live.get(record.run_id, []) or stage.key in found:
            continue
        changed = _differences(record, stage, settings)
        if changed:
            raise UsageError(
                f"run {record.run_id} is at stage {stage.key} with other settings ({', '.join(changed)}). Wait for it, "
                f"or end it: ./run_all.sh --cancel {record.seed}"
            )
        found[stage.key] = replace(job, shared_with=record.run_id, dependency="", line="")
    return found


def refuse_to_change_data(
    steps: list[Step], seed: int | None, paths: Paths, settings: Settings, *, force: bool
) -> None:
    """UsageError where setup or data would be made anew while another seed's stages rely on them as they are.

    Prepared data are shared by all seeds: made with other settings, from other files, or forced, they change under
    whoever waits in the queue or runs here. seed: whose own work does not count; None: everybody's does.
    """
    shared = [step for step in steps if not step.stage.per_seed]
    if not shared:
        return
    names = " and ".join(step.stage.key for step in shared)
    keys = {step.stage.key for step in shared}
    in_work = any(is_at_work(step.stage, 0, paths) for step in shared)  # it reads the files as they are now
    files = [] if in_work else [str(step.reason) for step in shared if str(step.reason).startswith(INPUT)]
    others = [record for record in records(paths) if record.seed != seed]
    live = live_jobs(others)
    for record in others:
        waiting = [
            job.job_id
            for key, job in record.own_jobs.items()
            if job.job_id in live.get(record.run_id, []) and key not in keys
        ]
        if waiting and (why := _why(_changes(record, shared, settings), files, force)):
            raise UsageError(
                f"{names} would be rebuilt with {why}, but seed {record.seed} has jobs in the queue that need them "
                f"as they are ({', '.join(waiting)}, run {record.run_id}). Wait for them, or cancel them: "
                f"./run_all.sh --cancel {record.seed}"
            )
    newest = {record.seed: record for record in reversed(others)}
    for other in (number for number in known_seeds(paths) if number != seed):
        sentences = list(at_work_here(other, paths))
        by_run = is_locked(paths.runs / f"seed_{other}.lock") and other in newest  # else nobody knows its settings
        reasons = [str(step.reason) for step in shared if str(step.reason).startswith(SETTINGS_CHANGED)]
        changes = _changes(newest[other], shared, settings) if by_run else reasons
        if sentences and (why := _why(changes, files, force)):
            raise UsageError(f"{names} would be rebuilt with {why}, but {sentences[0]}")


def refuse_by_hand(context: StageContext, reason: str) -> None:
    """The same for setup or data that somebody starts by hand: no submission has looked at the queue for it."""
    step = Step(context.stage, reason)
    try:
        refuse_to_change_data([step], None, context.paths, context.settings, force=bool(context.forced))
    except NoAnswer as error:
        context.log.warning("whether jobs in the queue need %s as it is, is not known: %s", context.stage.key, error)


def _changes(record: RunRecord, shared: list[Step], settings: Settings) -> list[str]:
    return [text for step in shared for text in _differences(record, step.stage, settings)]


def _why(changes: list[str], files: list[str], force: bool) -> str:
    for words, texts in (("other settings", changes), ("other files", files)):
        if texts:
            return f"{words} ({', '.join(dict.fromkeys(texts))})"
    return "--force" if force else ""


def refuse_other_model(seed: int, paths: Paths, settings: Settings) -> None:
    """UsageError where another MODEL_NAME would replace the model that finished stages of any seed rest on."""
    setup = paths.results_root / "setup_complete.json"
    seeds = [str(number) for number in _with_finished_stages(paths)]
    if not seeds or settings.PROFILE == "demo" or problem_of(STAGES[0], seed, paths, settings) is None:
        return
    try:
        model = str(read_result(setup)["results"]["model"]["source"])
    except (InputError, KeyError, TypeError):
        return  # gone, damaged or being written: stage 0 makes it anew, and flags see whether the model is another
    if model == settings.MODEL_NAME:
        return
    name = re.sub(r"[^A-Za-z0-9._-]", "-", Path(settings.MODEL_NAME).name).lstrip("._-") or "other"
    raise UsageError(
        f"seed {', '.join(seeds)} has finished stages with MODEL_NAME={model}; {settings.MODEL_NAME} would replace "
        f"them. Side by side: MONO_S2S_MODEL_NAME={shlex.quote(settings.MODEL_NAME)} MONO_S2S_EXPERIMENT={name} "
        f"./run_all.sh {seed}"
    )


def _with_finished_stages(paths: Paths) -> list[int]:
    """The seeds that have a flag of a stage of their own."""
    name = re.compile(r"stage_[2-7]_[a-z_]+_seed(\d+)\.flag")
    matches = (name.fullmatch(path.name) for path in paths.work.glob("stage_*_seed*.flag"))
    return sorted({int(match[1]) for match in matches if match})


def tell_stale_seeds(steps: list[Step], seed: int, paths: Paths) -> None:
    """Print which other seeds' finished stages rest on the setup or data that are about to be made anew."""
    again = [step for step in steps if not step.stage.per_seed and paths.flag(step.stage.key, None).exists()]
    if not again:
        return
    others = [other for other in _with_finished_stages(paths) if other != seed]
    if others:
        print(
            f"note: seeds {', '.join(map(str, others))} have finished stages that rest on "
            f"{' and '.join(step.stage.key for step in again)}. Unless they come out the same, those stages are stale."
        )


def _differences(record: RunRecord, stage: Stage, settings: Settings) -> list[str]:
    frozen = json.loads(record.settings_file.read_text(encoding="utf-8"))["settings"]
    now = settings.subset(stage.settings)
    return [
        f"{name} {frozen.get(name)} there, {value} here" for name, value in now.items() if frozen.get(name) != value
    ]
