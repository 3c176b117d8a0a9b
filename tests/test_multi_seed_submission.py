"""run_multi_seed.sh: many seeds at once under a limit, the aggregate after all; again adds what is missing."""

import json
import shutil
import subprocess
import time

import pytest

from tests.shell_world import World

pytestmark = pytest.mark.slow

# Stands in for scripts/aggregate_multi_seed.py: says which seeds it was given, and fails where one is missing.
AGGREGATE = """
import json, sys
from pathlib import Path
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from utils.core.files import write_json
from utils.core.paths import Paths
from utils.core.settings import load_settings
paths = Paths.of(load_settings())
missing = [seed for seed in sys.argv[1:] if not (paths.final(int(seed)) / "final_results.json").exists()]
if missing:
    print("missing seeds:", *missing)
    sys.exit(3)
write_json(paths.multi_seed / "multi_seed_results.json", {"seeds": sys.argv[1:]})
"""


@pytest.fixture
def world(tmp_path) -> World:
    world = World(tmp_path)
    (world.checkout / "scripts" / "aggregate_multi_seed.py").write_text(AGGREGATE)
    return world


@pytest.fixture
def queue(world, cluster) -> World:
    world.environment |= cluster.environment
    return world


def aggregated(world) -> list[str]:
    path = world.project / "mono_s2s_multi_seed_results" / "multi_seed_results.json"
    return json.loads(path.read_text())["seeds"] if path.exists() else []


def jobs(world, seed) -> dict[str, str]:
    return {key: job["job_id"] for key, job in world.record(seed)["jobs"].items()}


def aggregate_job(world) -> str:
    found = [json.loads(path.read_text()) for path in (world.work / "runs").glob("*/multi_seed.json")]
    return max((facts["job_id"] for facts in found), key=int)


def multi(world, *words, **environment):
    return world.run("run_multi_seed.sh", *words, **environment)


def slow_squeue(world, tmp_path, condition: str) -> str:
    """A PATH whose squeue answers when a condition of bash is true, in which $real is SLURM's own."""
    slow = tmp_path / "bin" / "squeue"
    slow.parent.mkdir()
    real = shutil.which("squeue", path=world.environment["PATH"])
    slow.write_text(f'#!/bin/bash\nreal=\'{real}\'\nuntil {condition}; do sleep .1; done\nexec "$real" "$@"\n')
    slow.chmod(0o755)
    return f"{slow.parent}:{world.environment['PATH']}"


def test_here_the_seeds_run_one_after_the_other_and_a_failed_one_is_named(world):
    assert multi(world, "1", "2", "--local").returncode == 0
    assert aggregated(world) == ["1", "2"]
    (world.project / "mono_s2s_multi_seed_results" / "multi_seed_results.json").unlink()
    world.behave(s5_uat_attacks={"fail": "no luck"})
    result = multi(world, "1", "3", "--local")
    assert result.returncode != 0 and "missing seeds: 3" in result.stdout and "seed 3 failed" in result.stderr
    assert not aggregated(world)
    world.behave()
    again = multi(world, "1", "3", "--local")
    assert again.returncode == 0 and "everything is done" in again.stdout and aggregated(world) == ["1", "3"]


@pytest.mark.slurm
def test_on_slurm_all_is_queued_at_once_and_shared_work_is_done_once(cluster, queue):
    queue.behave(s1_prepare_data={"units": 1, "seconds": 8}, s2_train_baseline={"units": 1, "seconds": 1})
    result = multi(queue, "1", "2", "3", MONO_S2S_MAX_PARALLEL_SEEDS="2")
    assert result.returncode == 0, result.stdout + result.stderr
    first, third = jobs(queue, 1), jobs(queue, 3)
    assert jobs(queue, 2)["1_prepare_data"] == third["1_prepare_data"] == first["1_prepare_data"]
    assert cluster.wait(aggregate_job(queue), "COMPLETED") and aggregated(queue) == ["1", "2", "3"]
    # The third seed began to train when the first had ended.
    assert cluster.field(third["2_train_baseline"], "StartTime") >= cluster.field(first["7_aggregate"], "EndTime")
    assert cluster.field(jobs(queue, 2)["2_train_baseline"], "StartTime") < cluster.field(
        first["7_aggregate"], "EndTime"
    )


@pytest.mark.slurm
def test_a_stage_that_ends_while_a_seed_is_submitted_is_not_queued_again(cluster, queue, tmp_path):
    """The plan was made while stage 1 ran; when the queue answers, it has ended: it is in neither, but it is done."""
    queue.behave(s1_prepare_data={"units": 1, "seconds": 6})
    assert queue.run("run_all.sh", "1", "--stop-stage", "1").returncode == 0
    path = slow_squeue(
        queue, tmp_path, f"[[ -e '{queue.work}/stage_1_prepare_data.flag' && -z $(\"$real\" -h -o %i) ]]"
    )
    result = queue.run("run_all.sh", "2", "--stop-stage", "2", PATH=path)
    assert result.returncode == 0, result.stderr
    assert "1_prepare_data" in result.stdout and list(jobs(queue, 2)) == ["2_train_baseline"]


@pytest.mark.slurm
def test_a_failed_seed_is_named_by_the_aggregate_and_the_same_command_adds_it(cluster, queue):
    queue.behave(s6_hotflip_attacks={"fail": "no luck"})
    assert multi(queue, "1", "2").returncode == 0
    job = aggregate_job(queue)
    assert cluster.wait(job) == "FAILED"
    log = next((queue.checkout / "logs").glob(f"job_multi_seed_aggregate_{job}.out")).read_text()
    assert "missing seeds: 1 2" in log
    queue.behave()
    assert multi(queue, "1", "2").returncode == 0
    assert list(jobs(queue, 2)) == ["6_hotflip_attacks", "7_aggregate"]
    assert cluster.wait(aggregate_job(queue), "COMPLETED") and aggregated(queue) == ["1", "2"]


@pytest.mark.slurm
def test_seeds_in_the_queue_are_not_queued_twice_and_cancel_ends_all(cluster, queue):
    queue.behave(s0_setup={"units": 100, "seconds": 1})
    assert multi(queue, "1", "2").returncode == 0
    before = {*cluster("squeue", "-h", "-o", "%A").split()}
    result = multi(queue, "1", "2", "3")
    assert result.returncode == 0 and result.stdout.count("in the queue already") == 2
    added = {*cluster("squeue", "-h", "-o", "%A").split()} - before
    assert len(added) == 7, "six stages of seed 3 and a new aggregate"
    assert multi(queue, "1", "2", "3", "--cancel").returncode == 0
    cluster.until(lambda: not cluster("squeue", "-h", "-o", "%A").split(), 20, "an empty queue")


@pytest.mark.slurm
def test_a_seed_whose_first_stages_alone_are_queued_is_not_left_out(cluster, queue):
    queue.behave(s0_setup={"units": 100, "seconds": 1})
    assert queue.all("1", "--stop-stage", "1").returncode == 0
    setup = jobs(queue, 1)["0_setup"]
    result = multi(queue, "2", "1")
    assert result.returncode == 0, result.stdout + result.stderr
    assert "in the queue already" not in result.stdout
    assert "7_aggregate" in jobs(queue, 1) and jobs(queue, 1)["0_setup"] == jobs(queue, 2)["0_setup"] == setup
    # A part of a seed that was cancelled cannot be added beside what still waits: it is said, and nothing is queued.
    cluster("scancel", jobs(queue, 2)["7_aggregate"])
    cluster.until(lambda: cluster.state(jobs(queue, 2)["7_aggregate"]) == "CANCELLED", 20, "a cancelled job")
    before = {*cluster("squeue", "-h", "-o", "%A").split()}
    refused = multi(queue, "3", "2")
    assert refused.returncode == 2 and "seed 2 has jobs in the queue already" in refused.stderr, refused.stderr
    assert {*cluster("squeue", "-h", "-o", "%A").split()} == before
    cancelled = multi(queue, "1", "2", "--cancel")  # the first run's setup, for which only these two waited, as well
    assert cancelled.returncode == 0 and "left alone" not in cancelled.stdout, cancelled.stdout
    cluster.until(lambda: not cluster("squeue", "-h", "-o", "%A").split(), 20, "an empty queue")


@pytest.mark.slurm
def test_an_aggregate_of_other_seeds_stays_and_one_of_fewer_is_replaced(cluster, queue):
    queue.behave(s0_setup={"units": 100, "seconds": 1})
    assert multi(queue, "1", "2").returncode == 0
    first = aggregate_job(queue)
    overlapping = multi(queue, "2", "3")
    assert overlapping.returncode == 0 and f"the aggregate of seeds 1, 2 (job {first}) stays" in overlapping.stdout
    second = aggregate_job(queue)
    waiting = cluster("squeue", "-h", "-o", "%A").split()
    assert {first, second} <= set(waiting) and f"afterany:{first}" in cluster("scontrol", "show", "job", second)
    more = multi(queue, "1", "2", "3")
    assert more.returncode == 0 and f"(job {first}) of an earlier submission" in more.stdout
    assert not {first, second} & set(cluster("squeue", "-h", "-o", "%A").split())
    said = queue.run("check_training_status.sh", "2").stdout
    assert said.count("aggregate of seeds") == said.count("aggregate of seeds 1, 2, 3") == 1


@pytest.mark.slurm
def test_two_submissions_at_once_take_turns(cluster, queue):
    queue.behave(s0_setup={"units": 100, "seconds": 1})
    both = [
        subprocess.Popen(
            [str(queue.checkout / "run_multi_seed.sh"), *seeds],
            env=queue.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for seeds in (["1", "2"], ["2", "1"])
    ]
    said = [process.communicate(timeout=120)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert sorted(text.count("in the queue already") for text in said) == [0, 2], said
    assert len(cluster("squeue", "-h", "-o", "%A").split()) == 2 + 6 + 6 + 1, "each stage once, and one aggregate"


@pytest.mark.slurm
def test_forced_seeds_share_one_forced_setup(cluster, queue):
    queue.behave(s0_setup={"units": 1, "seconds": 6})  # it is not done when the second seed comes
    result = multi(queue, "1", "2", "--force")
    assert result.returncode == 0, result.stdout + result.stderr
    assert jobs(queue, 1)["1_prepare_data"] == jobs(queue, 2)["1_prepare_data"]
    assert cluster.wait(aggregate_job(queue), "COMPLETED") and aggregated(queue) == ["1", "2"]


@pytest.mark.slurm
def test_a_forced_setup_that_ends_before_the_next_seed_comes_is_not_forced_again(cluster, queue, tmp_path):
    """Every question to the queue after the first seed's jobs waits until its setup and data are done."""
    first = f"compgen -G '{queue.work}/runs/*_seed1/run.json' >/dev/null"
    path = slow_squeue(queue, tmp_path, f"! {first} || [[ -e '{queue.work}/stage_1_prepare_data.flag' ]]")
    result = multi(queue, "1", "2", "--force", PATH=path)
    assert result.returncode == 0, result.stdout + result.stderr
    assert list(jobs(queue, 1))[:2] == ["0_setup", "1_prepare_data"]
    assert next(iter(jobs(queue, 2))) == "2_train_baseline" and len(jobs(queue, 2)) == 6
    assert cluster.wait(aggregate_job(queue), "COMPLETED") and aggregated(queue) == ["1", "2"]


def test_a_stopped_seed_stops_all_of_them_and_the_command_goes_on(world):
    world.behave(s2_train_baseline={"units": 50, "seconds": 0.2})
    command = [str(world.checkout / "run_multi_seed.sh"), "1", "2", "--local"]
    with subprocess.Popen(
        command, env=world.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        end = time.monotonic() + 60
        while not list(world.work.rglob("units.jsonl")):
            assert time.monotonic() < end and process.poll() is None
            time.sleep(0.1)
        process.terminate()
        said, _ = process.communicate(timeout=60)
    assert process.returncode != 0 and "interrupted by SIGTERM" in said and "seed 2" not in said, said
    world.behave()
    assert multi(world, "1", "2", "--local").returncode == 0 and aggregated(world) == ["1", "2"]


def test_a_dry_run_touches_nothing(world):
    before = world.snapshot()
    result = multi(world, "1", "2", "--dry-run", "--local")
    assert result.returncode == 0 and "aggregate of seeds 1, 2" in result.stdout
    assert world.snapshot() == before


@pytest.mark.parametrize(
    ("words", "named"),
    [(["1"], "at least two"), ([], "at least two"), (["1", "1"], "given twice"), (["1", "01"], "given twice"),
     (["1", "x"], "seed x"), (["1", "2", "--fast"], "--fast"), (["1", "99999999999"], "99999999999")],
)  # fmt: skip
def test_wrong_usage_names_itself(world, words, named):
    result = multi(world, *words)
    assert result.returncode == 2 and named in result.stderr and not world.scratch.exists()
