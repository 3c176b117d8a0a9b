"""diagnose_and_recover.sh: the right cause from the right evidence; --fix does what is safe and forges nothing."""

import pytest

from tests.shell_world import World

pytestmark = pytest.mark.slow


@pytest.fixture
def world(tmp_path) -> World:
    return World(tmp_path)


def diagnose(world, *words, **environment):
    return world.run("diagnose_and_recover.sh", *words, **environment)


@pytest.mark.parametrize(
    ("said", "cause"),
    [
        ("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB", "out of GPU memory"),
        ("[Errno 28] No space left on device", "disk full"),
        ("the training loss is not finite any more by step 12", "loss is not a number"),
        ("DialogSum cannot be had. knkarthick/dialogsum@main: no success in 5 tries", "hub out of reach"),
        ("the monkeys ate it", "unknown"),
    ],
)
def test_the_cause_is_named_with_its_evidence_and_what_to_do(world, said, cause):
    world.behave(s2_train_baseline={"fail": said})
    assert world.all("--local").returncode == 1
    result = diagnose(world)
    assert result.returncode == 1, result.stderr
    assert f"stage 2_train_baseline: stopped. Cause: {cause}." in result.stdout
    evidence = next(line for line in result.stdout.splitlines() if "evidence:" in line)
    assert said in evidence
    assert "./run_all.sh 42 --local" in result.stdout


def test_a_changed_output_is_a_stale_stage(world):
    assert world.all("--local").returncode == 0
    assert diagnose(world).returncode == 0 and "all is done" in diagnose(world).stdout
    (world.scratch / "mono_s2s_results" / "seed_42" / "predictions.jsonl").write_text("edited")
    result = diagnose(world)
    assert (
        result.returncode == 1 and "inputs missing or stale" in result.stdout and "predictions.jsonl" in result.stdout
    )


def test_fix_removes_torn_files_runs_again_and_completes(world):
    world.behave(s4_evaluate={"fail": "no luck"})
    assert world.all("--local").returncode == 1
    torn = world.work / "seed_42" / ".half.jsonl.123.tmp"
    torn.write_text("{")
    before = world.snapshot()
    assert str(torn) in diagnose(world).stdout
    assert world.snapshot() == before, "looking changes nothing"
    world.behave()
    result = diagnose(world, "--fix")
    assert result.returncode == 0, result.stdout + result.stderr
    assert not torn.exists() and "stage_7_aggregate_seed42" in world.flags()


def test_fix_forges_nothing(world):
    world.behave(s4_evaluate={"fail": "still no luck"})
    assert world.all("--local").returncode == 1
    flags = world.flags()
    assert diagnose(world, "--fix").returncode == 1
    assert world.flags() == flags


def test_fix_repeats_no_done_stage_that_only_this_shell_calls_stale(world):
    world.behave(s4_evaluate={"fail": "no luck"})
    assert world.all("--local", MONO_S2S_LEARNING_RATE="0.5").returncode == 1
    world.behave()
    before = world.flags()
    refused = diagnose(world, "--fix")
    assert refused.returncode == 1 and "stage 2_train_baseline, which is done, would run again" in refused.stdout
    assert "LEARNING_RATE" in refused.stdout and world.flags() == before
    assert diagnose(world, "--fix", MONO_S2S_LEARNING_RATE="0.5").returncode == 0


@pytest.mark.slurm
def test_on_slurm_a_killed_job_and_no_fix_while_jobs_run(cluster, world):
    world.environment |= cluster.environment
    world.behave(s2_train_baseline={"crash": True}, s3_train_monotonic={"units": 100, "seconds": 0.3})
    assert world.all().returncode == 0
    jobs = {key: job["job_id"] for key, job in world.record()["jobs"].items()}
    cluster.wait(jobs["2_train_baseline"], "FAILED")
    cluster.wait(jobs["3_train_monotonic"], "RUNNING")
    result = diagnose(world)
    assert result.returncode == 1 and "stage 2_train_baseline: failed" in result.stdout
    assert "exit status 9" in result.stdout
    queue = {*cluster("squeue", "-h", "-o", "%A").split()}
    refused = diagnose(world, "--fix")
    assert refused.returncode == 1 and jobs["3_train_monotonic"] in refused.stdout
    assert {*cluster("squeue", "-h", "-o", "%A").split()} == queue
    cluster("scancel", jobs["3_train_monotonic"])
    cluster.wait(jobs["3_train_monotonic"], "CANCELLED")
    cluster.until(lambda: not cluster("squeue", "-h", "-o", "%A").split(), 20, "an empty queue")
    world.behave()
    assert diagnose(world, "--fix").returncode == 0
    assert world.record()["executor"] == "slurm"
    cluster.wait(world.record()["jobs"]["7_aggregate"]["job_id"], "COMPLETED")


@pytest.mark.parametrize("words", [["--fixx"], ["abc"], ["1", "2"]])
def test_wrong_usage_names_itself_and_touches_nothing(world, words):
    before = world.snapshot()
    result = diagnose(world, *words)
    assert result.returncode == 2 and words[-1] in result.stderr
    assert world.snapshot() == before
