"""Whose job is it: a number alone is not believed, other clusters are left alone, one PROJECT has one writer."""

import signal
from dataclasses import replace
from pathlib import Path

import pytest

from tests.shell_world import World
from tests.test_shell import SLOW, start, until_begun
from utils.core.paths import Paths
from utils.slurm import cluster, live_jobs
from utils.slurm.cluster import JobState
from utils.slurm.identity import is_same_job
from utils.slurm.run_record import JobRecord, RunRecord

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
    ],
    ids=["another program", "another stage", "submitted before ours", "another run", "another work directory"],
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
        assert "in work for the same PROJECT_DIR" in refused.stderr and str(world.scratch) in refused.stderr
        assert not (Path(elsewhere["SCRATCH"]) / "mono_s2s_work" / "stage_logs").exists()
        assert world.all("7", "--local", "--stop-stage", "1", **elsewhere).returncode == 0  # another seed may
        other_project = {"PROJECT": str(tmp_path / "another project")}
        assert world.all("42", "--local", "--stop-stage", "1", **elsewhere, **other_project).returncode == 0
    finally:
        running.send_signal(signal.SIGTERM)
        running.wait()
    world.behave()
    assert world.all("42", "--local", **elsewhere).returncode == 0  # the first has stopped
