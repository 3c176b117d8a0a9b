"""Faults on a real SLURM: time limits, cancelled and killed jobs, lost nodes, arrays, silent commands, other users."""

import json
import os
import pwd
import signal
import subprocess
from pathlib import Path

import pytest

from tests.shell_world import World

pytestmark = pytest.mark.slurm
SLOW = {"units": 60, "seconds": 0.25}
QUICK = {"units": 60, "seconds": 0}


@pytest.fixture
def world(cluster, tmp_path) -> World:
    world = World(tmp_path)
    world.environment |= cluster.environment
    return world


def submit(world, *options, **environment) -> dict[str, str]:
    """Submit, and return the job ids by stage key."""
    result = world.all(*options, **environment)
    assert result.returncode == 0, result.stdout + result.stderr
    return {key: job["job_id"] for key, job in world.record()["jobs"].items()}


def units(world, stage="train_baseline") -> list[dict]:
    path = world.work / "seed_42" / f"{stage}_units" / "units.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def has_begun(cluster, world, stage="train_baseline", count=3) -> None:
    cluster.until(lambda: len(units(world, stage)) >= count, 30, f"{count} units of {stage}")


def log_of(world, key) -> str:
    return Path(world.record()["jobs"][key]["out"]).read_text()


def each_once(found: list[dict]) -> None:
    assert [unit["unit"] for unit in found] == list(range(60)), "units are missing, or were done twice"


def payload_of(job: str) -> int:
    """Process id of the job's stage script."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_bytes().split(b"\0")
            if f"SLURM_JOB_ID={job}".encode() in (process / "environ").read_bytes().split(b"\0") and any(
                word.endswith(b".py") and b"/stage_" in word for word in words
            ):
                return int(process.name)
        except OSError:
            continue
    raise AssertionError(f"job {job} has no stage script")


def test_before_the_time_limit_it_saves_requeues_itself_and_goes_on(cluster, world):
    world.behave(s2_train_baseline={"units": 60, "seconds": 1.2})
    job = submit(world, "--stop-stage", "2")["2_train_baseline"]
    has_begun(cluster, world)
    # The end is nearer now than the 300 s of warning: SLURM sends it when it next looks at its jobs (every 30 s).
    cluster("scontrol", "update", f"jobid={job}", "endtime=now+200")
    cluster.until(lambda: cluster.field(job, "Restarts") == "1", 70, "the requeue")
    before = len(units(world))
    assert 3 <= before < 60
    world.behave(s2_train_baseline=QUICK)
    cluster.release(job)
    cluster.wait(job, "COMPLETED")
    found = units(world)
    each_once(found)
    assert {unit["restarts"] for unit in found[:before]} == {"0"} and found[-1]["restarts"] == "1"
    log = log_of(world, "2_train_baseline")
    assert "got SIGUSR1" in log and "requeue 1 of 5: the time limit is near" in log and "exit status 0" in log


def test_requeues_are_bounded_and_the_last_one_says_how_to_go_on(cluster, world):
    world.behave(s2_train_baseline=SLOW)
    job = submit(world, "--stop-stage", "2", MONO_S2S_SLURM_MAX_REQUEUES="0")["2_train_baseline"]
    has_begun(cluster, world)
    cluster("scancel", "--batch", "--signal=USR1", job)
    assert cluster.wait(job) == "FAILED"
    assert "not requeued" in log_of(world, "2_train_baseline") and "run_all.sh" in log_of(world, "2_train_baseline")
    world.behave(s2_train_baseline=QUICK)
    cluster.wait(submit(world, "--stop-stage", "2")["2_train_baseline"], "COMPLETED")
    each_once(units(world))


def test_a_preempted_job_goes_back_to_the_queue_and_goes_on(cluster, world):
    world.behave(s2_train_baseline=SLOW)
    job = submit(world, "--stop-stage", "2")["2_train_baseline"]
    has_begun(cluster, world)
    cluster("scancel", "--batch", "--signal=TERM", job)  # as preemption with a grace time: the job is still RUNNING
    cluster.until(lambda: cluster.field(job, "Restarts") == "1", 20, "the requeue")
    world.behave(s2_train_baseline=QUICK)
    cluster.release(job)
    cluster.wait(job, "COMPLETED")
    each_once(units(world))
    assert "requeue 1 of 5: preempted" in log_of(world, "2_train_baseline")


def test_a_stage_that_cannot_stop_half_way_goes_on_after_the_warning(cluster, world):
    world.behave(s1_prepare_data={"units": 1, "seconds": 3})
    job = submit(world, "--stop-stage", "1")["1_prepare_data"]
    cluster.wait(job, "RUNNING")
    cluster.until(lambda: "command:" in (log_of(world, "1_prepare_data") if Path(
        world.record()["jobs"]["1_prepare_data"]["out"]).exists() else ""), 20, "its log")  # fmt: skip
    cluster("scancel", "--batch", "--signal=USR1", job)
    cluster.wait(job, "COMPLETED")
    assert "cannot stop half-way and continues" in log_of(world, "1_prepare_data")


def test_scancel_ends_the_job_and_its_dependents_and_a_rerun_goes_on(cluster, world):
    world.behave(s2_train_baseline=SLOW)
    jobs = submit(world)
    has_begun(cluster, world)
    cluster("scancel", jobs["2_train_baseline"])
    cluster.wait(jobs["2_train_baseline"], "CANCELLED")
    cluster.until(lambda: not cluster("squeue", "-h", "-o", "%A").split(), 20, "an empty queue")
    assert cluster.state(jobs["7_aggregate"]) == "CANCELLED"
    assert "not requeued here" in log_of(world, "2_train_baseline")
    assert "stage_2_train_baseline_seed42" not in world.flags()
    world.behave(s2_train_baseline=QUICK)
    cluster.wait(submit(world)["7_aggregate"], "COMPLETED")
    each_once(units(world))


def test_a_payload_killed_at_once_fails_its_job_and_a_rerun_goes_on(cluster, world):
    world.behave(s2_train_baseline=SLOW)
    job = submit(world, "--stop-stage", "2")["2_train_baseline"]
    has_begun(cluster, world)
    os.kill(payload_of(job), signal.SIGKILL)
    assert cluster.wait(job) == "FAILED"
    assert "exit status 137" in log_of(world, "2_train_baseline")
    world.behave(s2_train_baseline=QUICK)
    cluster.wait(submit(world, "--stop-stage", "2")["2_train_baseline"], "COMPLETED")
    each_once(units(world))


def test_a_lost_node_gives_its_job_back_to_the_queue(cluster, world):
    world.behave(s1_prepare_data={"units": 60, "seconds": 0.25})
    job = submit(world, "--stop-stage", "1")["1_prepare_data"]
    has_begun(cluster, world, "prepare_data")
    node = cluster.field(job, "BatchHost")
    try:
        cluster.lose_node(node)
        cluster("scontrol", "update", f"nodename={node}", "state=down", "reason=test")
        cluster.until(lambda: cluster.field(job, "Restarts") == "1", 30, "the requeue by SLURM")
        world.behave(s1_prepare_data=QUICK)
        cluster.release(job)
        cluster.wait(job, "COMPLETED", seconds=90)
        assert cluster.field(job, "BatchHost") != node
        shared = list(world.work.glob("*/prepare_data_units/units.jsonl"))
        each_once([json.loads(line) for line in shared[0].read_text().splitlines()])
    finally:
        cluster.start_node(node)
        cluster("scontrol", "update", f"nodename={node}", "state=resume")
        cluster.until(lambda: "idle" in cluster("sinfo", "-h", "-N", "-n", node, "-o", "%T"), 30, "the node is back")


@pytest.mark.parametrize("command", ["squeue", "sinfo"])
@pytest.mark.parametrize("body", ["exit 1", "sleep 100"], ids=["fails", "hangs"])
def test_a_slurm_that_does_not_answer_is_said_and_nothing_is_queued_twice(cluster, world, command, body):
    world.behave(s0_setup={"units": 60, "seconds": 1})
    first = submit(world)
    patience = world.checkout / "utils" / "slurm" / "cluster.py"
    patience.write_text(patience.read_text().replace("TIMEOUT = 30", "TIMEOUT = 2"))
    site = world.root / "site"
    site.mkdir()
    (site / command).write_text(f"#!/bin/bash\n{body}\n")
    (site / command).chmod(0o755)
    path = f"{site}{os.pathsep}{world.environment['PATH']}"
    result = world.all(PATH=path)
    assert result.returncode != 0 and "Traceback" not in result.stderr
    if command == "squeue":
        assert "squeue" in result.stderr
    assert {*cluster("squeue", "-h", "-o", "%A").split()} == {*first.values()}


def test_another_users_checkout_is_refused_in_one_line(cluster, world, tmp_path):
    if os.getuid() != 0:
        pytest.skip("needs root, to become another user")
    other = pwd.getpwnam("nobody")
    for parent in (tmp_path, *tmp_path.parents):
        if parent.stat().st_uid == 0 and parent != Path("/") and parent != Path("/tmp"):
            parent.chmod(parent.stat().st_mode | 0o055)
    before = world.snapshot()
    (tmp_path / "own").mkdir()
    os.chown(tmp_path / "own", other.pw_uid, other.pw_gid)
    own = {"SCRATCH": f"{tmp_path}/own/s", "PROJECT": f"{tmp_path}/own/p", "HOME": f"{tmp_path}/own"}
    own |= {"MONO_S2S_PYTHON": "", "VIRTUAL_ENV": "", "PATH": "/usr/bin:/bin:" + world.environment["PATH"]}
    result = subprocess.run(
        [str(world.checkout / "run_all.sh"), "--slurm"],
        env=world.environment | own, capture_output=True, text=True, user=other.pw_uid, group=other.pw_gid, cwd="/",
    )  # fmt: skip
    assert result.returncode == 2, result.stdout + result.stderr
    assert "logs" in result.stderr and "Traceback" not in result.stderr
    assert not cluster("squeue", "-h").strip()
    assert {name: stat for name, stat in world.snapshot().items() if not name.startswith("own")} == before


def test_a_full_disk_is_said_in_words_and_a_rerun_goes_on(cluster, world):
    if os.getuid() != 0:
        pytest.skip("needs root, to mount a small file system")
    world.scratch.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(world.scratch)]).returncode:
        pytest.skip("mounting a small file system is not allowed here")
    try:
        jobs = submit(world, "--stop-stage", "1")
        cluster.wait(jobs["1_prepare_data"], "COMPLETED")
        filler = world.scratch / "filler"
        with pytest.raises(OSError, match="No space"), filler.open("wb") as handle:
            handle.write(b"x" * 2_000_000)
        result = world.all("--local", "--stop-stage", "2")
        assert result.returncode == 1 and "space" in (result.stderr + result.stdout)
        assert "Traceback" not in result.stderr + result.stdout
        assert "stage_2_train_baseline_seed42" not in world.flags()
        filler.unlink()
        assert world.all("--local", "--stop-stage", "2").returncode == 0
    finally:
        subprocess.run(["umount", "-l", str(world.scratch)], check=True)
