"""Job arrays on a real SLURM: tasks share a stage, the last one merges the parts, a lost task costs only itself."""

import json
import shutil
from pathlib import Path

import pytest

from tests.pipeline_world import SEED
from tests.shell_world import ROOT, World

pytestmark = pytest.mark.slurm
ARRAYS = {"MONO_S2S_EVAL_ARRAY_TASKS": "4", "MONO_S2S_ATTACK_ARRAY_TASKS": "3"}
WORK = {"units": 24, "seconds": 0.3}


@pytest.fixture
def world(cluster, tmp_path) -> World:
    world = World(tmp_path)
    world.environment |= cluster.environment
    return world


def submit(world) -> dict[str, str]:
    result = world.all(**ARRAYS)
    assert result.returncode == 0, result.stdout + result.stderr
    return {key: job["job_id"] for key, job in world.record()["jobs"].items()}


def evaluation(world) -> bytes:
    return (world.scratch / "mono_s2s_results" / "seed_42" / "evaluation_results.json").read_bytes()


def units(world, task: int) -> list[dict]:
    path = world.work / "seed_42" / "evaluate_units" / f"units_{task}.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def test_tasks_share_the_stages_and_the_result_is_that_of_a_single_job(cluster, world, tmp_path):
    world.behave(s4_evaluate=WORK | {"seconds": 0.1}, s5_uat_attacks={"units": 5}, s6_hotflip_attacks={"units": 2})
    jobs = submit(world)
    cluster.wait(jobs["7_aggregate"], "COMPLETED")
    assert [len(units(world, task)) for task in range(4)] == [6] * 4
    merged = evaluation(world)
    assert json.loads(merged)["units"] == list(range(24))
    pattern = world.record()["jobs"]["4_evaluate"]["out"]
    logs = [Path(pattern.replace("%a", str(task))).read_text() for task in range(4)]
    assert sum("still to come" in log for log in logs) == 3 and all("exit status 0" in log for log in logs)
    assert world.all("--local", "--stage", "4", "--stop-stage", "4", "--force").returncode == 0
    assert evaluation(world) == merged


def test_a_killed_task_costs_only_itself(cluster, world):
    world.behave(s4_evaluate=WORK)
    jobs = submit(world)
    cluster.until(lambda: len(units(world, 2)) >= 2, 40, "units of task 2")
    cluster("scancel", f"{jobs['4_evaluate']}_2")
    cluster.until(lambda: not cluster("squeue", "-h", "-o", "%A").split(), 40, "an empty queue")
    assert "stage_4_evaluate_seed42" not in world.flags()
    assert cluster.state(jobs["7_aggregate"]) == "CANCELLED"
    before = {task: units(world, task) for task in (0, 1, 3)}
    assert all(len(found) == 6 for found in before.values())
    again = submit(world)
    cluster.wait(again["7_aggregate"], "COMPLETED")
    assert {task: units(world, task) for task in (0, 1, 3)} == before, "finished tasks did their work again"
    assert [unit["unit"] for unit in units(world, 2)] == [2, 6, 10, 14, 18, 22]
    assert json.loads(evaluation(world))["units"] == list(range(24))


def test_a_task_near_its_time_limit_requeues_itself_and_no_other(cluster, world):
    world.behave(s4_evaluate=WORK)
    job = submit(world)["4_evaluate"]
    cluster.until(lambda: len(units(world, 1)) >= 2, 40, "units of task 1")
    cluster("scancel", "--batch", "--signal=USR1", f"{job}_1")
    cluster.until(lambda: cluster.field(f"{job}_1", "Restarts") == "1", 20, "the requeue")
    cluster.release(f"{job}_1")
    cluster.until(lambda: "stage_7_aggregate_seed42" in world.flags(), 60, "the end of the run")
    assert {unit["restarts"] for unit in units(world, 1)} == {"0", "1"}
    assert {unit["restarts"] for task in (0, 2, 3) for unit in units(world, task)} == {"0"}
    assert json.loads(evaluation(world))["units"] == list(range(24))


@pytest.fixture
def unevaluated(done, tmp_path):
    """The experiment as it was before stage 4; put back afterwards."""
    names = ("evaluation_results.json", "predictions.jsonl")
    flag, units = done.work / f"stage_4_evaluate_seed{SEED}.flag", done.work / f"seed_{SEED}" / "evaluate_units"
    kept = {path: tmp_path / f"kept {path.name}" for path in (flag, units, *(done.results / name for name in names))}
    for path, place in kept.items():
        shutil.move(path, place)
    yield done
    for path, place in kept.items():
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        shutil.move(place, path)


def test_the_real_evaluation_in_an_array_equals_that_of_a_single_job(cluster, unevaluated, tmp_path):
    run = unevaluated
    single = json.loads((tmp_path / "kept evaluation_results.json").read_text())["results"]
    rows = (tmp_path / "kept predictions.jsonl").read_bytes()
    logs = [f"--output={tmp_path}/%a.out", f"--error={tmp_path}/%a.err"]
    words = [
        "sbatch",
        "--parsable",
        "--array=0-1",
        *logs,
        str(ROOT / "jobs" / "job_4_evaluate.sh"),
        "--shards",
        "2",
        "--seed",
        str(SEED),
    ]
    job = run(*words, **cluster.environment).stdout.strip()
    cluster.until(lambda: not cluster("squeue", "-h", "-j", job).strip(), 180, "the end of the array")
    said = [(tmp_path / f"{task}.out").read_text() for task in range(2)]
    assert sum("still to come" in text for text in said) == 1, said
    merged = run.result("evaluation_results.json")
    for results in (single, merged):
        for cells in results.values():
            for cell in cells.values():
                cell.pop("seconds", None), cell.pop("seconds_per_summary", None)
    assert merged == single and (run.results / "predictions.jsonl").read_bytes() == rows
