"""The stage graph on a real SLURM: submitted at once, in parallel where it may, and nothing left behind a failure."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.shell_world import World

pytestmark = pytest.mark.slurm
KEYS = ["0_setup", "1_prepare_data", "2_train_baseline", "3_train_monotonic", "4_evaluate", "5_uat_attacks",
        "6_hotflip_attacks", "7_aggregate"]  # fmt: skip


@pytest.fixture
def world(cluster, tmp_path) -> World:
    world = World(tmp_path)
    world.environment |= cluster.environment
    return world


def ids(world, seed=42) -> dict[str, str]:
    return {key: job["job_id"] for key, job in world.record(seed)["jobs"].items()}


def times(cluster, job) -> tuple[str, str]:
    return cluster.field(job, "StartTime"), cluster.field(job, "EndTime")


def log_of(world, key, kind="out") -> str:
    """The job's log; the paths that the run recorded are the ones that exist."""
    return Path(world.record()["jobs"][key][kind]).read_text()


def submit(world, *options, **environment) -> subprocess.CompletedProcess[str]:
    result = world.all(*options, **environment)
    assert result.returncode == 0, result.stdout + result.stderr
    return result


def test_the_whole_graph_runs_side_by_side_and_ends_in_permanent_storage(cluster, world):
    world.behave(**{f"s{key}": {"units": 1, "seconds": 2.5} for key in KEYS[2:4] + KEYS[5:7]})
    (world.root / "an environment").symlink_to(sys.prefix)  # a space in its path, as in the checkout's
    python = world.root / "an environment" / Path(sys.executable).relative_to(sys.prefix)
    world.environment["MONO_S2S_PYTHON"] = str(python)
    result = submit(world, "7")
    jobs = ids(world, 7)
    assert cluster.state(jobs["7_aggregate"]) == "PENDING"  # the command returned; nobody waits for the jobs
    assert list(jobs) == KEYS
    for key, job in jobs.items():
        assert re.search(rf"{key}\s+{job}\b", result.stdout), result.stdout
    cluster.wait(jobs["7_aggregate"], "COMPLETED")
    assert {cluster.state(job) for job in jobs.values()} == {"COMPLETED"}
    for left, right in (("2_train_baseline", "3_train_monotonic"), ("5_uat_attacks", "6_hotflip_attacks")):
        (a, b), (c, d) = times(cluster, jobs[left]), times(cluster, jobs[right])
        assert max(a, c) < min(b, d), f"{left} and {right} did not run at the same time"
    final = world.project / "mono_s2s_final_results" / "seed_7" / "final_results.json"
    assert json.loads(final.read_text())["seed"] == 7
    # A second submission has nothing to do, and says so.
    assert "everything is done" in submit(world, "7").stdout and len(list((world.work / "runs").glob("*_seed7"))) == 1


def test_gpu_stages_get_their_gpu_and_logs_tell_the_job(cluster, world):
    submit(world, "--stop-stage", "2")
    jobs = ids(world)
    cluster.wait(jobs["2_train_baseline"], "COMPLETED")
    assert cluster.field(jobs["2_train_baseline"], "Partition") == "aa100"
    assert cluster.field(jobs["0_setup"], "Partition") == "acpu"
    unit = json.loads((world.work / "seed_42" / "train_baseline_units" / "units.jsonl").read_text().splitlines()[0])
    assert unit["device"] in {"0", "1", "2"}
    log = log_of(world, "2_train_baseline")
    for words in ("host ", "SLURM_JOB_ID=", "command: ", "code ", "exit status 0 after"):
        assert words in log
    assert world.record()["jobs"]["2_train_baseline"]["line"].startswith("sbatch --parsable")


@pytest.mark.parametrize("broken", KEYS)
def test_a_failing_stage_leaves_nothing_pending_and_the_next_run_completes(cluster, world, broken):
    world.behave(**{f"s{broken}": {"fail": "the disk is full of ants"}})
    submit(world)
    jobs = ids(world)
    cluster.wait(jobs["7_aggregate"])
    cluster.until(lambda: not cluster("squeue", "-h", "-o", "%A").split(), 20, "an empty queue")
    assert cluster.state(jobs[broken]) == "FAILED"
    log = log_of(world, broken)
    assert "the disk is full of ants" in log and "exit status 1" in log
    if broken != "7_aggregate":
        assert cluster.state(jobs["7_aggregate"]) == "CANCELLED"
    world.behave()
    before = {flag.name: flag.read_bytes() for flag in world.work.glob("*.flag")}
    submit(world)
    again = ids(world)
    assert broken in again
    cluster.wait(again["7_aggregate"], "COMPLETED")
    for name, content in before.items():
        assert (world.work / name).read_bytes() == content, f"{name} was done, and ran again"


def test_the_environment_of_the_submitter_cannot_reach_into_the_run(cluster, world):
    submit(
        world,
        SBATCH_EXPORT="NONE",
        SBATCH_PARTITION="atesting",
        SBATCH_TIMELIMIT="00:01:00",
        MONO_S2S_LEARNING_RATE="0.125",
    )
    jobs = ids(world)
    # Settings that are edited while the jobs wait do not mix into the run.
    settings = world.checkout / "configs" / "experiment_config.py"
    settings.write_text(settings.read_text().replace("LEARNING_RATE = 5e-5", "LEARNING_RATE = 9.0"))
    cluster.wait(jobs["7_aggregate"], "COMPLETED")
    assert cluster.field(jobs["2_train_baseline"], "Partition") == "aa100"
    assert cluster.field(jobs["2_train_baseline"], "TimeLimit") == "12:00:00"
    history = world.scratch / "mono_s2s_results" / "seed_42" / "baseline_training_history.json"
    assert json.loads(history.read_text())["lr"] == 0.125


def test_a_wrapper_works_alone_and_from_any_directory(cluster, world, tmp_path):
    jobs = world.checkout / "jobs"
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()

    def sbatch(*words) -> str:
        result = subprocess.run(
            ["sbatch", "--parsable", *words], env=world.environment, cwd=elsewhere, capture_output=True, text=True
        )
        assert result.returncode == 0, result.stderr
        return result.stdout.strip()

    submit(world, "--stop-stage", "3")
    cluster.wait(ids(world)["3_train_monotonic"], "COMPLETED")
    cluster.wait(ids(world)["2_train_baseline"], "COMPLETED")
    job = sbatch("--time=6:00:00", str(jobs / "job_4_evaluate.sh"))
    assert cluster.wait(job) == "COMPLETED"
    assert cluster.field(job, "TimeLimit") == "06:00:00"
    assert "exit status 0" in (world.checkout / "logs" / f"job_4_evaluate_{job}.out").read_text()
    assert not list(elsewhere.iterdir())
    # A stage whose inputs are missing refuses, whoever launched it.
    early = sbatch(str(jobs / "job_7_aggregate.sh"))
    assert cluster.wait(early) == "FAILED"
    assert cluster.field(early, "ExitCode") == "3:0"
    assert "5_uat_attacks" in (world.checkout / "logs" / f"job_7_aggregate_{early}.out").read_text()


def test_cancel_ends_the_jobs_of_this_seed_and_no_others(cluster, world):
    world.behave(s0_setup={"units": 100, "seconds": 1})
    submit(world)
    stranger = subprocess.run(
        ["sbatch", "--parsable", "-o", "/dev/null", "--wrap", "sleep 60"],
        env=world.environment, capture_output=True, text=True,
    ).stdout.strip()  # fmt: skip
    jobs = ids(world)
    cluster.wait(jobs["0_setup"], "RUNNING")
    refused = world.all()
    assert refused.returncode == 2 and "--cancel" in refused.stderr
    assert world.all("--cancel").returncode == 0
    cluster.until(lambda: not {*cluster("squeue", "-h", "-o", "%A").split()} & {*jobs.values()}, 20, "cancelled jobs")
    assert cluster.state(stranger) == "RUNNING"
    assert "stage_0_setup" not in world.flags()


def test_two_seeds_at_once_share_setup_and_data(cluster, world):
    world.behave(s1_prepare_data={"units": 1, "seconds": 4})
    submit(world, "1")
    told = world.all("2", "--dry-run")
    assert told.returncode == 0, told.stderr
    plan = told.stdout
    assert re.search(r"would wait for job \d+ \(1_prepare_data\)", plan) and "job_1_data.sh" not in plan
    submit(world, "2")
    first, second = ids(world, 1), ids(world, 2)
    cluster.wait(first["7_aggregate"], "COMPLETED")
    cluster.wait(second["7_aggregate"], "COMPLETED")
    assert second["1_prepare_data"] == first["1_prepare_data"]
    assert second.get("0_setup") in {None, first["0_setup"]}  # None: it was done before the second submission
    units = list(world.work.glob("*/prepare_data_units/units.jsonl"))
    assert len(units) == 1 and len(units[0].read_text().splitlines()) == 1, "the data were prepared twice"
    assert {"stage_7_aggregate_seed1", "stage_7_aggregate_seed2"} <= world.flags()


def test_another_seed_with_other_data_settings_is_refused_while_the_data_are_made(cluster, world):
    world.behave(s1_prepare_data={"units": 100, "seconds": 1})
    submit(world, "1")
    result = world.all("2", MONO_S2S_DATA_SEED="5")
    assert result.returncode == 2 and "DATA_SEED" in result.stderr and "--cancel 1" in result.stderr


def test_a_stage_that_was_queued_twice_takes_turns(cluster, world):
    world.behave(s0_setup={"units": 1, "seconds": 2})
    words = ["sbatch", "--parsable", str(world.checkout / "jobs" / "job_0_setup.sh")]
    jobs = [subprocess.run(words, env=world.environment, capture_output=True, text=True).stdout.strip() for _ in "12"]
    for job in jobs:
        cluster.wait(job, "COMPLETED")
    logs = [(world.checkout / "logs" / f"job_0_setup_{job}.out").read_text() for job in jobs]
    assert sum("done in" in log for log in logs) == 1
    assert sum("waiting for it" in log and "already done" in log for log in logs) == 1


def test_afterok_on_a_purged_failed_job_is_refused_by_the_stage_itself(cluster, world):
    # SLURM treats a dependency on a job that it no longer knows as fulfilled.
    result = subprocess.run(
        ["sbatch", "--parsable", "--dependency=afterok:999999", str(world.checkout / "jobs" / "job_4_evaluate.sh")],
        env=world.environment, capture_output=True, text=True,
    )  # fmt: skip
    if result.returncode != 0:
        pytest.skip(f"this SLURM refuses such a dependency: {result.stderr.strip()}")
    job = result.stdout.strip()
    assert cluster.wait(job) == "FAILED"
    assert cluster.field(job, "ExitCode") == "3:0" and "stage_4_evaluate_seed42" not in world.flags()


@pytest.mark.parametrize("options", [[], ["7", "--stop-stage", "3"]], ids=["all", "some"])
def test_a_dry_run_touches_nothing(cluster, world, options):
    before = world.snapshot()
    result = world.all("--dry-run", *options)
    assert result.returncode == 0 and "sbatch" in result.stdout
    assert world.snapshot() == before
    assert not cluster("squeue", "-h").strip()


class FakeSbatch:
    """An sbatch in front of the real one that misbehaves as real sites' do; counts its calls."""

    def __init__(self, world: World, body: str) -> None:
        real = shutil.which("sbatch")
        directory = world.root / "site"
        directory.mkdir()
        script = directory / "sbatch"
        script.write_text(f'#!/bin/bash\nreal={real}\ncalls="{directory}/calls"\necho x >>"$calls"\n'
                          f'n=$(wc -l <"$calls")\n{body}\n')  # fmt: skip
        script.chmod(0o755)
        world.environment["PATH"] = f"{directory}{os.pathsep}{world.environment['PATH']}"


def test_warnings_and_cluster_names_of_sbatch_do_not_confuse(cluster, world):
    FakeSbatch(
        world, 'echo "sbatch: warning: 3 jobs 1234 may wait" >&2\nid="$("$real" "$@")" || exit\necho "$id;alpine"'
    )
    submit(world)
    jobs = ids(world)
    assert all(job.isdigit() for job in jobs.values())
    cluster.wait(jobs["7_aggregate"], "COMPLETED")


def test_a_refusal_half_way_cancels_what_was_queued_and_says_so(cluster, world):
    world.behave(s0_setup={"units": 100, "seconds": 1})
    FakeSbatch(
        world, 'if ((n > 4)); then echo "sbatch: error: QOSMaxSubmitJobPerUserLimit" >&2; exit 1; fi\nexec "$real" "$@"'
    )
    result = world.all()
    assert result.returncode == 1
    assert "QOSMaxSubmitJobPerUserLimit" in result.stderr and "cancelled" in result.stderr
    cluster.until(lambda: not cluster("squeue", "-h", "-o", "%A").split(), 20, "an empty queue")


@pytest.mark.parametrize("body", ["echo gibberish", "exit 0", 'echo "1 2"'], ids=["words", "silence", "two numbers"])
def test_an_answer_that_is_no_job_id_is_shown_and_refused(cluster, world, body):
    FakeSbatch(world, body)
    result = world.all()
    assert result.returncode == 1 and "0_setup" in result.stderr and "Traceback" not in result.stderr
