"""check_training_status.sh: every stage from flags, records and a real queue; it changes nothing."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.shell_world import World


@pytest.fixture
def world(tmp_path) -> World:
    return World(tmp_path)


@pytest.fixture
def queue(world, cluster) -> World:
    world.environment |= cluster.environment
    return world


def rows(world, *words, **environment) -> dict[str, dict]:
    """The stages of the one seed asked for, by key."""
    result = world.run("check_training_status.sh", "--json", *words, **environment)
    assert result.returncode == 0, result.stderr
    (seed,) = json.loads(result.stdout)
    return {row["stage"]: row for row in seed["stages"]}


def states(world, *words, **environment) -> list[str]:
    return [row["state"] for row in rows(world, *words, **environment).values()]


def test_from_nothing_to_done_and_stale(world):
    before = world.snapshot()
    assert states(world) == ["not started"] * 8
    assert world.snapshot() == before
    assert world.all("--local").returncode == 0
    assert states(world) == ["done"] * 8
    text = world.run("check_training_status.sh").stdout
    assert text.startswith("seed 42, run ") and text.count(" done ") == 8
    (world.scratch / "mono_s2s_results" / "seed_42" / "predictions.jsonl").write_text("changed")
    stale = rows(world)
    assert stale["4_evaluate"]["state"] == "stale" and "predictions.jsonl" in stale["4_evaluate"]["detail"]
    assert stale["3_train_monotonic"]["state"] == "done"
    assert "next: ./diagnose_and_recover.sh 42" in world.run("check_training_status.sh").stdout


def test_settings_of_the_run_count_not_those_of_this_shell(world):
    assert world.all("--local", "--stop-stage", "3", MONO_S2S_LEARNING_RATE="0.5").returncode == 0
    assert states(world)[:4] == ["done"] * 4


def test_a_failed_and_a_running_stage_here(world):
    world.behave(s2_train_baseline={"fail": "the loss is NaN"})
    assert world.all("--local").returncode == 1
    row = rows(world)["2_train_baseline"]
    assert row["state"] == "stopped" and "the loss is NaN" in row["detail"] and Path(row["log"]).exists()
    world.behave(s2_train_baseline={"units": 100, "seconds": 0.2})
    process = subprocess.Popen(
        [str(world.checkout / "run_all.sh"), "--local"], env=world.environment, stdout=subprocess.DEVNULL
    )
    try:
        end = time.monotonic() + 30
        while rows(world)["2_train_baseline"]["state"] != "running":
            assert time.monotonic() < end
            time.sleep(0.2)
        progress = world.work / "seed_42" / "baseline_model" / "progress.json"
        progress.parent.mkdir(parents=True, exist_ok=True)
        facts = {"epoch": 2, "epochs": 7, "step": 1234, "total_steps": 9999, "loss": 2.5, "examples_per_second": 88.8,
                 "seconds_left": 3700, "updated": time.time()}  # fmt: skip
        progress.write_text(json.dumps(facts))
        text = world.run("check_training_status.sh").stdout
        assert "epoch 2 of 7, step 1,234 of 9,999, loss 2.5000, 89 examples/s, 1:01:40 left" in text
        progress.write_text(json.dumps(facts | {"updated": time.time() - 3600}))
        assert "no news for 1:00:00" in world.run("check_training_status.sh").stdout
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)


@pytest.mark.slurm
def test_on_slurm_running_waiting_and_failed_jobs(cluster, queue):
    queue.behave(s2_train_baseline={"units": 100, "seconds": 0.2}, s3_train_monotonic={"fail": "NaN loss"})
    assert queue.all("--stop-stage", "4", MONO_S2S_SLURM_KILL_ON_INVALID_DEP="False").returncode == 0
    jobs = {key: job["job_id"] for key, job in queue.record()["jobs"].items()}
    cluster.wait(jobs["3_train_monotonic"], "FAILED")
    found = rows(queue)
    assert found["2_train_baseline"]["state"] == "running" and "on g1" in found["2_train_baseline"]["detail"]
    assert found["3_train_monotonic"]["state"] == "failed" and "NaN loss" in found["3_train_monotonic"]["detail"]
    assert Path(found["3_train_monotonic"]["log"]).exists()
    cluster.until(lambda: rows(queue)["4_evaluate"]["state"] == "never satisfiable", 20, "never satisfiable")
    said = queue.run("check_training_status.sh", "42").stdout
    assert "./run_all.sh --cancel 42" in said
    cluster("scancel", jobs["2_train_baseline"])
    cluster.wait(jobs["2_train_baseline"], "CANCELLED")
    assert rows(queue)["2_train_baseline"]["state"] == "cancelled"
    assert states(queue)[-3:] == ["not started"] * 3


@pytest.mark.slurm
def test_on_slurm_dependents_wait_and_a_silent_slurm_means_unknown(cluster, queue):
    queue.behave(s0_setup={"units": 100, "seconds": 0.5})
    assert queue.all().returncode == 0
    cluster.wait(queue.record()["jobs"]["0_setup"]["job_id"], "RUNNING")
    found = rows(queue)
    assert found["1_prepare_data"]["state"] == "waiting" and "afterok" in found["1_prepare_data"]["detail"]
    site = queue.root / "site"
    site.mkdir()
    (site / "squeue").write_text("#!/bin/sh\necho 'slurm_load_jobs error: Unable to contact controller' >&2\nexit 1\n")
    (site / "squeue").chmod(0o755)
    path = f"{site}{os.pathsep}{queue.environment['PATH']}"
    first, *rest = states(queue, PATH=path)
    assert first in ("running", "unknown"), "its lock may tell what SLURM does not"
    assert rest == ["unknown"] * 7
    text = queue.run("check_training_status.sh", PATH=path).stdout
    assert "Unable to contact controller" in text


@pytest.mark.parametrize("words", [["abc"], ["--wtch"], ["42", "-x"]])
def test_wrong_usage_names_itself(world, words):
    result = world.run("check_training_status.sh", *words)
    assert result.returncode == 2 and words[-1] in result.stderr
