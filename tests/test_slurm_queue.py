"""Who may touch which job: cancelling, sharing, interrupting, submitting twice, nodes that are drained."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.shell_world import World
from tests.test_submission import fake

pytestmark = pytest.mark.slurm
LONG = {"units": 300, "seconds": 0.2}


@pytest.fixture
def world(cluster, tmp_path) -> World:
    world = World(tmp_path)
    world.environment |= cluster.environment
    return world


def submit(world, seed="42", **environment) -> dict[str, str]:
    result = world.all(seed, **environment)
    assert result.returncode == 0, result.stdout + result.stderr
    return {key: job["job_id"] for key, job in world.record(int(seed))["jobs"].items()}


def queued(cluster) -> set[str]:
    return {*cluster("squeue", "-h", "-t", "PD,R", "-o", "%A").split()}


def test_cancelling_a_seed_leaves_what_another_seed_waits_for(cluster, world):
    world.behave(s1_prepare_data=LONG)
    first, second = submit(world, "1"), submit(world, "2")
    assert second["1_prepare_data"] == first["1_prepare_data"]
    result = world.all("1", "--cancel")
    assert result.returncode == 0 and "left alone" in result.stdout and "seed 2" in result.stdout
    cluster.until(lambda: not queued(cluster) & {first["2_train_baseline"], first["7_aggregate"]}, 20, "seed 1 is gone")
    assert {second["1_prepare_data"], second["7_aggregate"]} <= queued(cluster)
    # The first seed can come back, and waits for the same job.
    assert submit(world, "1")["1_prepare_data"] == first["1_prepare_data"]
    assert world.all("1", "--cancel").returncode == 0
    # When nobody waits for it any more, it can go.
    assert world.all("2", "--cancel").returncode == world.all("1", "--cancel").returncode == 0
    cluster.until(lambda: not cluster("squeue", "-h"), 60, "an empty queue, nothing still ending")
    assert "no jobs" in world.all("1", "--cancel").stdout


def test_two_submissions_of_a_seed_at_once_queue_it_once(cluster, world):
    world.behave(s0_setup=LONG)
    words = [str(world.checkout / "run_all.sh")]
    both = [
        subprocess.Popen(words, env=world.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for _ in "12"
    ]
    said = [process.communicate(timeout=60)[0] for process in both]
    assert sorted(process.returncode for process in both) == [0, 2], said
    assert len(queued(cluster)) == 8


def test_a_submission_that_is_interrupted_cancels_what_it_queued(cluster, world):
    world.behave(s0_setup=LONG)
    site = world.root / "site"
    path = fake(site, sbatch=f'echo x >>"{site}/calls"\nn=$(wc -l <"{site}/calls")\n'
                f'((n < 4)) || sleep 60\nexec env PATH="${{PATH#*:}}" sbatch "$@"')  # fmt: skip
    process = subprocess.Popen(
        [str(world.checkout / "run_all.sh")],
        env=world.environment | {"PATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    cluster.until(lambda: len(queued(cluster)) == 3, 30, "three jobs in the queue")
    time.sleep(0.3)
    os.killpg(process.pid, signal.SIGINT)
    said = process.communicate(timeout=30)[0]
    assert process.returncode == 1 and "are cancelled" in said and "Traceback" not in said, said
    cluster.until(lambda: not queued(cluster), 20, "an empty queue")


def test_a_cancellation_that_fails_is_said_beside_the_refusal(cluster, world):
    world.behave(s0_setup=LONG)
    site = world.root / "site"
    path = fake(site, scancel="echo 'scancel: error: Slurm is down' >&2; exit 1",
                sbatch=f'echo x >>"{site}/calls"\nn=$(wc -l <"{site}/calls")\n'
                '((n < 3)) || { echo "sbatch: error: no more jobs" >&2; exit 1; }\n'
                'exec env PATH="${PATH#*:}" sbatch "$@"')  # fmt: skip
    result = world.all(PATH=path)
    assert result.returncode == 1
    for words in ("no more jobs", "still in the queue", "Slurm is down", *queued(cluster)):
        assert words in result.stderr


def test_an_sbatch_that_hangs_is_given_up_and_what_was_queued_is_cancelled(cluster, world):
    world.behave(s0_setup=LONG)
    patience = world.checkout / "utils" / "slurm" / "sbatch.py"
    patience.write_text(patience.read_text().replace("TIMEOUT = 120", "TIMEOUT = 2"))
    site = world.root / "site"
    path = fake(site, sbatch=f'echo x >>"{site}/calls"\nn=$(wc -l <"{site}/calls")\n((n < 3)) || exec sleep 60\n'
                'exec env PATH="${PATH#*:}" sbatch "$@"')  # fmt: skip
    result = world.all(PATH=path)
    assert result.returncode == 1 and "no answer within 2 s" in result.stderr and "are cancelled" in result.stderr
    cluster.until(lambda: not queued(cluster), 20, "an empty queue")


def test_jobs_wait_while_the_nodes_are_drained_and_run_when_they_are_back(cluster, world):
    nodes = "c1,c2"
    cluster("scontrol", "update", f"nodename={nodes}", "state=drain", "reason=test")
    try:
        jobs = submit(world)
        cluster.until(lambda: cluster.field(jobs["0_setup"], "Reason") not in {"", "None"}, 20, "a reason to wait")
        assert cluster.state(jobs["0_setup"]) == "PENDING"
        assert world.all().returncode == 2, "it was queued twice"
    finally:
        cluster("scontrol", "update", f"nodename={nodes}", "state=resume")
    cluster.wait(jobs["7_aggregate"], "COMPLETED")


def test_every_job_of_a_run_is_recorded_with_its_line_and_logs(cluster, world):
    jobs = submit(world)
    cluster.wait(jobs["7_aggregate"], "COMPLETED")
    for key, job in world.record()["jobs"].items():
        assert {"job_id", "cluster", "dependency", "line", "out", "err", "tasks", "submitted_at"} <= set(job)
        assert "exit status 0" in Path(job["out"]).read_text(), key
    settings = json.loads(next((world.work / "runs").glob("*/settings.json")).read_text())["settings"]
    assert settings["SCRATCH_DIR"] == str(world.scratch)


@pytest.mark.parametrize(
    "shell",
    [
        {"SQUEUE_PARTITION": "atesting", "SINFO_PARTITION": "atesting", "SACCT_FORMAT": "User"},
        {"SQUEUE_USERS": "nobody", "SQUEUE_NAMES": "x", "SQUEUE_QOS": "x", "SCANCEL_PARTITION": "atesting"},
        {"SLURM_ARRAY_JOB_ID": "9", "SLURM_ARRAY_TASK_ID": "3", "SLURM_ARRAY_TASK_COUNT": "2",
         "SLURM_ARRAY_TASK_MIN": "2", "SLURM_ARRAY_TASK_MAX": "3", "SLURM_JOB_ID": "12",
         "SLURM_RESTART_COUNT": "5", "SLURM_PROCID": "0"},
        {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29511", "GIT_DIR": "/nowhere"},
    ],
    ids=["filters by partition", "filters by user", "inside an array task", "under torchrun, in a git hook"],
)  # fmt: skip
def test_variables_of_the_shell_decide_nothing(cluster, world, shell):
    world.behave(s2_train_baseline=LONG)
    jobs = submit(world, **shell)
    cluster.wait(jobs["1_prepare_data"], "COMPLETED")
    assert world.all("42", **shell).returncode == 2, "nothing is queued twice"
    status = world.run("check_training_status.sh", "42", **shell).stdout
    assert "forgotten" not in status and jobs["4_evaluate"] in status
    assert world.all("42", "--cancel", **shell).returncode == 0
    cluster.until(lambda: not queued(cluster) & {*jobs.values()}, 20, "an empty queue")


def test_a_stage_that_was_typed_by_hand_is_seen_by_run_all_and_named_by_cancel(cluster, world):
    assert world.all("42", "--stop-stage", "1", "--local").returncode == 0
    world.behave(s2_train_baseline=LONG)
    wrapper = str(world.checkout / "jobs" / "job_2_baseline.sh")
    line = ["sbatch", "--parsable", "--partition=aa100", "--gres=gpu:1", "--mem=1G", wrapper, "--seed", "42"]
    line += ["--python", world.environment["MONO_S2S_PYTHON"]]
    typed = subprocess.run(line, env=world.environment, capture_output=True, text=True, check=True)
    job = typed.stdout.strip()
    for words in (["42"], ["42", "--local"]):
        refused = world.all(*words)
        assert refused.returncode == 2 and "seed 42 is in progress already" in refused.stderr, refused.stderr
    named = world.all("42", "--cancel")
    assert named.returncode == 0 and "left alone" in named.stdout and "seed 42" in named.stdout
    assert job in queued(cluster)
