"""Jobs that do not start: status and diagnosis say why, what that means, and which command helps."""

import json
import re

import pytest

from tests.shell_world import World
from utils.operations.pending_reasons import explain

pytestmark = pytest.mark.slow

# Reasons from squeue's manual page and from the error reports of several sites.
STUCK = [
    "DependencyNeverSatisfied", "JobHeldUser", "JobHeldAdmin", "launch failed requeued held", "JobHoldMaxRequeue",
    "PartitionTimeLimit", "PartitionNodeLimit", "PartitionDown", "PartitionInactive", "InvalidQOS", "InvalidAccount",
    "QOSMaxWallDurationPerJobLimit", "QOSMaxCpuPerJobLimit", "QOSMaxGRESPerJob", "AssocMaxWallDurationPerJobLimit",
    "QOSTimeLimit", "AssociationTimeLimit", "AssocGrpCPUMinutesLimit", "QOSGrpGRESMinutes", "BadConstraints",
    "ReservationDeleted", "QOSUsageThreshold", "AccountNotAllowed", "QOSNotAllowed",
]  # fmt: skip
SLOW = [
    "QOSMaxJobsPerUserLimit", "QOSGrpCpuLimit", "AssocMaxJobsLimit", "AssocGrpGRES", "AssociationResourceLimit",
    "QOSMaxGRESPerUser", "AssocGrpCPURunMinutesLimit", "NodeDown", "ReqNodeNotAvail, May be reserved for other job",
    "ReqNodeNotAvail, UnavailableNodes:g1", "Nodes required for job are DOWN, DRAINED or reserved for jobs in higher "
    "priority partitions", "SomethingThatSlurmInventsTomorrow",
]  # fmt: skip
ORDINARY = ["Priority", "Resources", "None", "Dependency", "BeginTime", "JobArrayTaskLimit", "(Priority)"]


@pytest.mark.parametrize("reason", STUCK + SLOW)
def test_each_reason_has_a_meaning_and_something_to_do(reason):
    known = explain(reason)
    assert known and known.stuck is (reason in STUCK)
    said = known.remedy_for("17", "./run_all.sh --cancel 42", "./run_all.sh 42")
    assert known.meaning and said and not re.search(r"[{}]", said)


@pytest.mark.parametrize("reason", ORDINARY)
def test_waiting_for_a_turn_is_nothing_to_explain(reason):
    assert explain(reason) is None


@pytest.fixture
def world(cluster, tmp_path) -> World:
    world = World(tmp_path)
    world.environment |= cluster.environment
    return world


def row(world, stage, *words) -> dict:
    (seed,) = json.loads(world.run("check_training_status.sh", "--json", "42", *words).stdout)
    return next(row for row in seed["stages"] if row["stage"] == stage)


def check_stuck(cluster, world, reason, command):
    cluster.until(lambda: row(world, "0_setup")["reason"] == reason, 20, reason)
    found = row(world, "0_setup")
    assert found["state"] == "stuck" and command in found["detail"], found
    result = world.run("diagnose_and_recover.sh")
    assert result.returncode == 1 and "nothing is broken" not in result.stdout
    assert reason in result.stdout and command in result.stdout
    fixed = world.run("diagnose_and_recover.sh", "--fix")
    assert fixed.returncode == 1 and "nothing is done" in fixed.stdout


@pytest.mark.slurm
def test_on_slurm_held_and_too_long_jobs_and_a_closed_partition(cluster, world):
    world.behave(s0_setup={"units": 100, "seconds": 0.5})
    cluster("scontrol", "update", "partitionname=acpu", "state=down")
    try:
        assert world.all("--stop-stage", "1").returncode == 0
        job = world.record()["jobs"]["0_setup"]["job_id"]
        check_stuck(cluster, world, "PartitionDown", "SLURM_CPU_PARTITION")
        cluster("scontrol", "uhold", job)
        check_stuck(cluster, world, "JobHeldUser", f"scontrol release {job}")
        cluster("scontrol", "release", job)
        cluster("scontrol", "hold", job)
        check_stuck(cluster, world, "JobHeldAdmin", f"scontrol release {job}")
        cluster("scontrol", "release", job)
    finally:
        cluster("scontrol", "update", "partitionname=acpu", "state=up")
    cluster.wait(job, "RUNNING")
    assert row(world, "0_setup")["state"] == "running"
    assert "nothing is broken" in world.run("diagnose_and_recover.sh").stdout


@pytest.mark.slurm
def test_on_slurm_one_failed_array_task_is_named_at_once(cluster, world):
    assert world.all("--local", "--stop-stage", "3").returncode == 0
    world.behave(s4_evaluate={"units": 60, "seconds": 0.5, "fail_shard": 1})
    assert world.all("--stop-stage", "5", MONO_S2S_EVAL_ARRAY_TASKS="3").returncode == 0
    jobs = {key: job["job_id"] for key, job in world.record()["jobs"].items()}
    cluster.until(lambda: row(world, "4_evaluate")["state"] == "failed", 60, "a failed task")
    found = row(world, "4_evaluate")
    assert "array task 1" in found["detail"] and "shard 1 is unlucky" in found["detail"], found
    assert found["log"].endswith(f"{jobs['4_evaluate']}_1.out")
    assert row(world, "5_uat_attacks")["state"] in ("never satisfiable", "cancelled")
    result = world.run("diagnose_and_recover.sh")
    assert result.returncode == 1 and "shard 1 is unlucky" in result.stdout and "5_uat_attacks" in result.stdout


@pytest.mark.slurm
def test_on_slurm_a_failed_aggregate_is_in_status_and_diagnosis(cluster, world):
    (world.checkout / "scripts" / "aggregate_multi_seed.py").write_text(
        "import sys; print('seeds that do not belong together'); sys.exit(2)"
    )
    world.behave(s0_setup={"units": 10, "seconds": 0.1, "fail": "no seed gets far"})
    assert world.run("run_multi_seed.sh", "1", "42").returncode == 0
    (facts,) = [json.loads(path.read_text()) for path in (world.work / "runs").glob("*/multi_seed.json")]
    said = world.run("check_training_status.sh", "1", "42").stdout
    assert said.count("aggregate of seeds 1, 42") == 1 and facts["job_id"] in said
    cluster.wait(facts["job_id"], "FAILED")
    said = world.run("check_training_status.sh", "1", "42").stdout
    assert re.search(rf"aggregate of seeds 1, 42 +failed +job {facts['job_id']}", said)
    result = world.run("diagnose_and_recover.sh", "42")
    assert result.returncode == 1 and "aggregate of seeds 1, 42: failed" in result.stdout
    assert "exit status 2" in result.stdout
