"""Whose job is it: a number alone is not believed, other clusters are left alone, one PROJECT has one writer."""

import logging
import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest

from tests.shell_world import World
from tests.test_shell import SLOW, start, until_begun
from utils.core.errors import UsageError
from utils.core.locks import file_lock
from utils.core.paths import CHECKOUT, Paths
from utils.core.settings import freeze, load_settings
from utils.pipeline.plan import Step
from utils.pipeline.runner import StageContext
from utils.pipeline.stages import STAGES
from utils.slurm import cluster, live_jobs, shared_jobs
from utils.slurm.cluster import JobState
from utils.slurm.identity import is_same_job
from utils.slurm.queue import Queue, unrecorded_jobs
from utils.slurm.run_record import JobRecord, RunRecord
from utils.slurm.shared_jobs import refuse_by_hand, refuse_to_change_data, tell_stale_seeds

pytestmark = pytest.mark.slow

RECORDED = JobRecord(
    "101",
    name="mono_s2s_4_evaluate_seed42",
    submit_time="2026-11-25T10:00:00",
    settings_file="/scratch/work/runs/20261125_seed42/settings.json",
)
COMMAND = "/x/jobs/job_4_evaluate.sh --seed 42 --settings /scratch/work/runs/20261125_seed42/settings.json --python p"
OURS = JobState(
    "101", "", "PENDING", name="mono_s2s_4_evaluate_seed42", submitted="2026-11-25T10:00:00", command=COMMAND
)


def test_the_recorded_job_is_believed_also_after_a_requeue_and_where_slurm_says_little():
    assert is_same_job(OURS, RECORDED, "4_evaluate")
    assert is_same_job(replace(OURS, submitted="2026-11-25T18:00:00"), RECORDED, "4_evaluate")  # requeued
    assert is_same_job(JobState("101", "", "RUNNING"), RECORDED, "4_evaluate")
    assert is_same_job(OURS, JobRecord("101"), "4_evaluate")  # a record of an older version


@pytest.mark.parametrize(
    "other",
    [
        {"name": "my_phd_simulation", "command": "/home/me/simulate.sh"},
        {"name": "mono_s2s_5_uat_attacks_seed42"},
        {"submitted": "2026-11-24T09:00:00"},
        {"command": COMMAND.replace("20261125_seed42", "20261101_seed42")},
        {"command": COMMAND.replace("/scratch/work", "/other/work")},
        {"name": ""},
        {"name": f"{OURS.name}3"},
        {"command": "(null)"},  # sbatch --wrap
        {"command": "/x/jobs/job_4_evaluate.sh --seed 42"},
    ],
    ids=[
        "another program",
        "another stage",
        "submitted before ours",
        "another run",
        "another work directory",
        "no name",
        "a longer name",
        "no wrapper",
        "typed by hand",
    ],
)
def test_another_job_of_its_number_is_not(other):
    assert not is_same_job(replace(OURS, **other), RECORDED, "4_evaluate")


def test_jobs_of_another_cluster_are_neither_counted_nor_cancelled(monkeypatch, tmp_path, capsys):
    paths = Paths(tmp_path / "scratch", tmp_path / "project")
    directory = paths.runs / "20261125_100000_seed42"
    run = RunRecord(directory, 42, "full", "slurm", cluster_name="alpine", jobs={"4_evaluate": RECORDED})
    run.saved()
    cancelled: list[str] = []
    monkeypatch.setattr(cluster, "queue", lambda ids, name="": [OURS] if list(ids) else [])
    monkeypatch.setattr(live_jobs.sbatch, "cancel", lambda ids, name="": cancelled.extend(ids))
    monkeypatch.setattr(cluster, "cluster_name", lambda: "blanca")
    assert live_jobs.live_jobs([run]) == {}
    assert live_jobs.cancel_seeds([42], paths) == 0 and not cancelled
    assert "submitted to cluster alpine: cancel it there" in capsys.readouterr().out
    monkeypatch.setattr(cluster, "cluster_name", lambda: "alpine")
    assert live_jobs.live_jobs([run]) == {run.run_id: ["101"]}
    assert live_jobs.cancel_seeds([42], paths) == 0 and cancelled == ["101"]


def test_two_work_directories_do_not_write_one_seed_of_a_project_at_once(tmp_path):
    world = World(tmp_path)
    world.behave(s2_train_baseline=SLOW)
    running = start(world, "42", "--local")
    try:
        until_begun(world)
        elsewhere = {"SCRATCH": str(tmp_path / "another scratch")}
        refused = world.all("42", "--local", **elsewhere)
        assert refused.returncode == 2, refused.stdout + refused.stderr
        assert "in progress for the same PROJECT_DIR" in refused.stderr and str(world.scratch) in refused.stderr
        assert not (Path(elsewhere["SCRATCH"]) / "mono_s2s_work" / "stage_logs").exists()
        assert world.all("7", "--local", "--stop-stage", "1", **elsewhere).returncode == 0  # another seed may
        other_project = {"PROJECT": str(tmp_path / "another project")}
        assert world.all("42", "--local", "--stop-stage", "1", **elsewhere, **other_project).returncode == 0
    finally:
        running.send_signal(signal.SIGTERM)
        running.wait()
    world.behave()
    assert world.all("42", "--local", **elsewhere).returncode == 0  # the first has stopped


@pytest.fixture
def waiting(monkeypatch, tmp_path):
    """Settings, places, and seed 42's run, whose evaluation waits in the queue."""
    for name in [name for name in os.environ if name.startswith("MONO_S2S_")]:
        monkeypatch.delenv(name)
    settings = load_settings().replaced(SCRATCH_DIR=str(tmp_path / "scratch"), PROJECT_DIR=str(tmp_path / "project"))
    paths = Paths.of(settings)
    run = RunRecord(paths.runs / "20261125_100000_seed42", 42, "full", "slurm", jobs={"4_evaluate": RECORDED})
    run.saved()
    freeze(settings, run.settings_file)
    monkeypatch.setattr(shared_jobs, "live_jobs", lambda runs: {r.run_id: ["101"] for r in runs})
    return settings, paths


ANEW = [Step(STAGES[1], "settings changed")]


@pytest.mark.parametrize("change", [{"MAX_INPUT_LENGTH": 256}, {"DATA_SEED": 5}, {"TRAIN_DATASETS": ("dialogsum",)}])
def test_other_data_settings_are_refused_while_another_seed_needs_the_data(waiting, change):
    settings, paths = waiting
    with pytest.raises(UsageError, match=rf"{next(iter(change))}.*seed 42 has jobs in the queue.*101.*--cancel 42"):
        refuse_to_change_data(ANEW, 7, paths, settings.replaced(**change), force=False)
    refuse_to_change_data(ANEW, 42, paths, settings.replaced(**change), force=False)  # its own jobs: refused elsewhere
    refuse_to_change_data(ANEW, 7, paths, settings.replaced(LEARNING_RATE=1e-3), force=False)  # not of the data
    refuse_to_change_data([Step(STAGES[4], "forced")], 7, paths, settings.replaced(**change), force=True)


def test_forced_data_are_refused_while_another_seed_needs_them(waiting):
    settings, paths = waiting
    with pytest.raises(UsageError, match=r"rebuilt with --force, but seed 42"):
        refuse_to_change_data(ANEW, 7, paths, settings, force=True)
    refuse_to_change_data(ANEW, 7, paths, settings, force=False)  # the same data again
    edited = [Step(STAGES[1], "its input DATASETS_FILE/dialogsum/train[0]/a.jsonl was changed (a.jsonl)")]
    with pytest.raises(UsageError, match=r"other files \(its input .*a.jsonl.*seed 42"):
        refuse_to_change_data(edited, 7, paths, settings, force=False)


def test_data_are_not_changed_under_a_seed_that_runs_here_nor_by_a_stage_that_is_typed(waiting, monkeypatch):
    settings, paths = waiting
    other = [Step(STAGES[1], "settings changed: MAX_INPUT_LENGTH 512 -> 256")]
    changed = settings.replaced(MAX_INPUT_LENGTH=256)
    context = StageContext(STAGES[1], 42, changed, paths, logging.getLogger("test"), 0.0)
    with pytest.raises(UsageError, match=r"MAX_INPUT_LENGTH.*seed 42 has jobs in the queue"):
        refuse_by_hand(context, other[0].reason)
    monkeypatch.setattr(shared_jobs, "live_jobs", lambda runs: {})
    refuse_by_hand(context, other[0].reason)
    with file_lock(paths.lock("2_train_baseline", 1337), unprotected=""):  # typed by hand: no record
        for seed, force in ((7, False), (7, True), (42, False)):
            with pytest.raises(UsageError, match="stage 2_train_baseline of seed 1337 is running"):
                refuse_to_change_data(other, seed, paths, changed, force=force)
        refuse_to_change_data(other, 1337, paths, changed, force=False)
        refuse_to_change_data([Step(STAGES[1], "its output x is gone")], 7, paths, settings, force=False)
    refuse_to_change_data(other, 7, paths, changed, force=False)
    for number, name in ((0, "setup"), (1, "prepare_data")):
        script = (Path(__file__).parents[1] / "scripts" / f"stage_{number}_{name}.py").read_text()
        assert f"run_stage({number}, work, may_start=refuse_by_hand)" in script


def test_a_number_of_ours_that_another_of_our_jobs_has_now_is_seen(tmp_path):
    paths = Paths(tmp_path / "scratch", tmp_path / "project")
    run = RunRecord(paths.runs / "20261125_100000_seed42", 42, "full", "slurm", jobs={"4_evaluate": RECORDED})
    typed = replace(OURS, name="mono_s2s_4_evaluate", command=f"{CHECKOUT}/jobs/job_4_evaluate.sh --seed 77")

    def seen(state: JobState) -> list[int | None]:
        return [job.seed for job in unrecorded_jobs(Queue({("", "101"): [state]}), [run], [], paths)]

    assert seen(OURS) == [] and seen(typed) == [77]
    # A run in another SCRATCH counts where it writes into the same PROJECT.
    for project, expected in ((tmp_path / "project", [5]), (tmp_path / "other", [])):
        file = tmp_path / "scratch2" / "mono_s2s_work" / "runs" / "x" / "settings.json"
        freeze(load_settings().replaced(PROJECT_DIR=str(project)), file)
        command = f"{CHECKOUT}/jobs/job_4_evaluate.sh --seed 5 --settings {file} --python p"
        assert seen(replace(typed, command=command)) == expected


def test_finished_seeds_that_rest_on_the_data_are_named(waiting, capsys):
    _, paths = waiting
    tell_stale_seeds(ANEW, 7, paths)
    assert not capsys.readouterr().out  # data that were never made make nobody stale
    for name in ("stage_1_prepare_data", "stage_2_train_baseline_seed42", "stage_7_aggregate_seed1337",
                 "stage_2_train_baseline_seed7"):  # fmt: skip
        (paths.work / f"{name}.flag").write_text("{}")
    tell_stale_seeds(ANEW, 7, paths)
    assert "seeds 42, 1337 have finished stages that rest on 1_prepare_data" in capsys.readouterr().out
    tell_stale_seeds([Step(STAGES[4], "forced")], 7, paths)
    assert not capsys.readouterr().out
