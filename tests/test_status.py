"""check_training_status.sh: every stage from flags, records and a real queue; it changes nothing."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.shell_world import World, children_cpu_seconds
from utils.core import hashes
from utils.core.files import sha256_of
from utils.core.paths import Paths
from utils.core.settings import freeze, load_settings
from utils.operations import seed_facts
from utils.operations.status import statuses
from utils.pipeline.flags import basis_of, write_flag
from utils.pipeline.stages import STAGES
from utils.slurm.run_record import JobRecord, new_record

pytestmark = pytest.mark.slow


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


# ---- many seeds -----------------------------------------------------------------------------------------------------

FACTS = {"code": {"commit": "x", "dirty": False}, "finished": "2026-01-29 10:15:30", "run_id": "r", "seconds": 1.0,
         "slurm_job_id": None}  # fmt: skip
LARGE, SMALL = 240_000, 500  # bytes of a model and of a result, a thousandth of the real ones


def finished_seeds(paths, settings, count: int) -> None:
    """Outputs and flags of `count` finished seeds."""
    for seed in range(count):
        for stage in STAGES if seed == 0 else STAGES[2:]:
            for path in stage.outputs(paths, seed):
                file = path if path.suffix else path / "model.safetensors"
                file.parent.mkdir(parents=True, exist_ok=True)
                size = 6 * LARGE if path == paths.prepared else SMALL if path.suffix else LARGE
                file.write_bytes(str(path).encode().ljust(size, b"."))
            write_flag(stage, seed, paths, settings, basis_of(stage, seed, paths, settings), facts=FACTS)


@pytest.fixture
def twenty(tmp_path, monkeypatch):
    """Twenty finished seeds whose files were touched, as people do against a purge; each SLURM query is noted."""
    paths, settings = Paths(tmp_path / "scratch", tmp_path / "project", ""), load_settings()
    finished_seeds(paths, settings, 20)
    paths.known_hashes.parent.mkdir()
    for seed in range(20):
        record = new_record(paths, seed, profile="full", executor="slurm", python="python")
        freeze(settings, record.settings_file)
        for number, stage in enumerate(STAGES):
            record = record.with_job(stage.key, JobRecord(str(100 * seed + number + 1), out="none.out", err="none.err"))
    site = tmp_path / "site"
    site.mkdir()
    for name in ("squeue", "sacct"):
        (site / name).write_text(f"#!/bin/sh\necho {name} >> {tmp_path}/calls\n")
        (site / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{site}{os.pathsep}{os.environ['PATH']}")
    subprocess.run(["find", str(paths.scratch), "-exec", "touch", "{}", "+"], check=True)
    hashes._hashed.clear()  # this process wrote the files; a command did not
    return paths


def test_twenty_seeds_cost_one_squeue_one_sacct_and_under_three_seconds(twenty, tmp_path, world):
    environment = {"SCRATCH": str(twenty.scratch), "PROJECT": str(twenty.project), "PATH": os.environ["PATH"]}
    seconds = []
    for _ in range(2):  # the better of two: other processes use this machine
        (tmp_path / "calls").unlink(missing_ok=True)
        started = children_cpu_seconds()
        result = world.run("check_training_status.sh", *map(str, range(20)), **environment)
        seconds.append(children_cpu_seconds() - started)
        assert result.stdout.count(" done ") == 160, result.stdout + result.stderr
        assert (tmp_path / "calls").read_text().split() == ["squeue", "sacct"]
    assert min(seconds) < 3


def test_after_touch_a_status_reads_a_little_and_later_ones_the_rest_each_file_once(twenty, monkeypatch):
    read: list[Path] = []
    monkeypatch.setattr(hashes, "sha256_of", lambda path: read.append(path) or sha256_of(path))
    monkeypatch.setattr(seed_facts, "READ_NOW", 3 * LARGE)
    monkeypatch.setattr(hashes, "SMALL", LARGE)

    def look() -> list[str]:
        read_before = len(read)
        found = statuses(range(20), twenty)
        assert all(row.state == "done" for status in found for row in status.stages)
        assert sum(1 for path in read[read_before:] if not path.suffix) <= 4
        hashes._hashed.clear()  # as in another process
        return [row.detail for status in found for row in status.stages if "not compared" in row.detail]

    looks = 1
    assert look()
    while look():
        looks += 1
        assert looks < 40
    large = [path for path in read if not path.suffix]
    assert len(large) == len(set(large)) == 42, "pretrained, prepared data and two models a seed"
    (twenty.model(3, "baseline") / "model.safetensors").write_bytes(b"another model")
    (status,) = statuses([3], twenty)
    assert status.stages[2].state != "done"
