"""Status, clean-up, diagnosis, --cancel and run_all agree on who is at work for a seed, however that was started."""

import contextlib
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest

from tests.shell_world import World
from tests.test_shell import start

pytestmark = [pytest.mark.slurm, pytest.mark.slow]


@pytest.fixture
def world(cluster, tmp_path) -> World:
    world = World(tmp_path)
    world.environment |= cluster.environment
    assert world.all("--local", "--stop-stage", "1").returncode == 0
    world.behave(s2_train_baseline={"units": 300, "seconds": 0.2})
    return world


@contextlib.contextmanager
def process(run: subprocess.Popen) -> Iterator[str]:
    try:
        yield "2_train_baseline"
    finally:
        run.terminate()
        run.wait(30)


@contextlib.contextmanager
def queued(cluster, world) -> Iterator[str]:
    assert world.all().returncode == 0
    job = world.record()["jobs"]["2_train_baseline"]["job_id"]
    yield job
    said = world.all("--cancel").stdout
    assert f"cancelled {job}" in said


@contextlib.contextmanager
def typed(cluster, world) -> Iterator[str]:
    words = ["sbatch", "--parsable", "--partition=aa100", "--gres=gpu:1", "--mem=1G", "--account=", "--qos="]
    words += [str(world.checkout / "jobs" / "job_2_baseline.sh"), "--seed", "42", "--python", sys.executable]
    job = subprocess.run(words, env=world.environment, capture_output=True, text=True, check=True).stdout.strip()
    yield job
    assert f"scancel {job}" in world.all("--cancel").stdout
    cluster("scancel", job)


WAYS: dict[str, Callable] = {
    "queued by run_all.sh": queued,
    "submitted by hand": typed,
    "started by hand": lambda cluster, world: process(
        subprocess.Popen(
            [sys.executable, world.checkout / "scripts" / "stage_2_train_baseline.py"],
            env=world.environment,
            stdout=subprocess.DEVNULL,
        )
    ),
    "run here": lambda cluster, world: process(start(world, "--local")),
}


def free(world) -> bool:
    status = world.run("check_training_status.sh", "42").stdout
    said = world.run("clean_all.sh", "--seed", "42").stderr  # without --force it asks, unless it refuses
    cancel = world.all("--cancel").stdout
    answers = {
        "running" not in status and "queued" not in status and "submitted by hand" not in status,
        "cannot be asked" in said,
        "no jobs in the queue" in cancel and "left alone" not in cancel,
    }
    assert len(answers) == 1, status + said + cancel
    return answers.pop()


@pytest.mark.parametrize("way", WAYS)
def test_all_commands_agree_on_who_is_at_work(cluster, world, way):
    assert free(world)
    with WAYS[way](cluster, world) as name:
        cluster.until(lambda: (world.work / "seed_42" / "train_baseline_units").is_dir(), 60, "stage 2 at work")
        before = {path for path in world.root.rglob("*") if path.suffix != ".lock"}
        status = world.run("check_training_status.sh", "42").stdout
        assert name in status and "running" in status, status
        commands = [["clean_all.sh", "--force"], ["clean_all.sh", "--seed", "42", "--force"], ["run_all.sh"],
                    ["run_all.sh", "--local"]]  # fmt: skip
        if way != "queued by run_all.sh":  # that one takes what is in the queue, and adds the other seed
            commands.append(["run_multi_seed.sh", "42", "7"])
        for words in commands:
            result = world.run(*words)
            assert result.returncode == 2 and name in result.stderr, (words, result.stdout, result.stderr)
        assert before <= set(world.root.rglob("*"))
        assert not cluster("squeue", "-h", "-o", "%j").count("seed7")
        assert world.run("clean_all.sh", "--seed", "7", "--force").returncode == 0, "another seed is free"
    cluster.until(lambda: not cluster("squeue", "-h"), 30, "an empty queue")
    assert free(world)
