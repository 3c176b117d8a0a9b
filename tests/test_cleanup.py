"""clean_all.sh and clean_checkpoints.sh: they delete what this project made there, after asking, and nothing else."""

import fcntl
import json
import os
import pty
import shutil
import subprocess
import sys
import time

import pytest

from tests.shell_world import World
from utils.core.paths import Paths
from utils.core.settings import settings_with
from utils.operations.cleanup import _checkpoints, clean_all
from utils.training.checkpoints import (
    OPTIMIZER,
    STATE,
    complete_checkpoints,
    new_checkpoint,
    not_needed_to_resume,
    resume_point,
)

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> World:
    """A finished run of two seeds, with checkpoints and a stranger's file. The tests take it apart, in their order."""
    world = World(tmp_path_factory.mktemp("runs"))
    for seed in ("1", "2"):
        result = world.all("--local", seed)
        assert result.returncode == 0, result.stderr
        for arm in ("baseline", "monotonic"):
            for epoch in range(1, 12):
                checkpoint(world.work / f"seed_{seed}" / f"{arm}_model", epoch)
            early = world.work / f"seed_{seed}" / f"{arm}_model" / "snapshots" / "step_1"
            early.mkdir(parents=True)
            (early / "model.safetensors").write_bytes(b"w" * 1000)
    (world.work / "notes of mine.txt").write_text("keep")
    (world.scratch / "mono_s2s_results" / "table for the paper.tex").write_text("keep")
    return world


def checkpoint(training, epoch: int, best: int = 9) -> None:
    """A complete checkpoint after `epoch`; the validation loss is lowest at epoch `best`."""
    rows = [{"epoch": number, "validation_loss": abs(number - best)} for number in range(1, epoch + 1)]
    with new_checkpoint(training / f"epoch_{epoch}", step=10 * epoch, identity={"seed": 1}) as new:
        (new / "model.safetensors").write_bytes(b"w" * 1000)
        (new / STATE).write_text(json.dumps({"epochs": rows}))
        if epoch > 9:
            (new / OPTIMIZER).write_bytes(b"o" * 1000)


def files(root) -> set[str]:
    return {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}


def test_without_a_yes_nothing_goes(world):
    before = world.snapshot()
    refused = world.run("clean_all.sh")  # no terminal, no --force
    assert refused.returncode == 2 and "--force" in refused.stderr and "seed_1" in refused.stdout
    main, terminal = pty.openpty()
    with (
        subprocess.Popen(
            [str(world.checkout / "clean_all.sh")],
            stdin=terminal,
            stdout=subprocess.PIPE,
            env=world.environment,
            text=True,
        ) as process,
        os.fdopen(main, "w") as typed,
    ):
        typed.write("n\n")
        typed.flush()
        assert "nothing was deleted" in process.stdout.read()
    assert world.snapshot() == before


def test_it_refuses_during_a_local_run(world):
    lock = world.work / "runs" / "seed_1.lock"
    with lock.open("a") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        before = world.snapshot()
        for command in (["clean_all.sh"], ["clean_all.sh", "--seed", "1"], ["clean_checkpoints.sh"]):
            result = world.run(*command, "--force")
            assert result.returncode == 2 and "is running here" in result.stderr
        assert world.snapshot() == before


def test_checkpoints_keep_what_resuming_and_the_later_stages_need(world):
    result = world.run("clean_checkpoints.sh", "1", "--force")
    assert result.returncode == 0, result.stderr
    for arm in ("baseline", "monotonic"):
        left = {path.name for path in (world.work / "seed_1" / f"{arm}_model").iterdir()}
        assert left == {"best", "epoch_9", "epoch_11"}  # stage 6 has read the snapshots
        assert (world.work / "seed_2" / f"{arm}_model" / "snapshots" / "step_1").is_dir()
        assert len(list((world.work / "seed_2" / f"{arm}_model").glob("epoch_*"))) == 11
    assert "everything is done" in world.all("--local", "1").stdout
    assert world.run("clean_checkpoints.sh", "1", "--force").stdout.startswith("nothing to delete")


def test_a_corrupt_newest_checkpoint_does_not_cost_the_one_before_it(world):
    training = world.work / "seed_2" / "baseline_model"
    (training / "epoch_11" / "model.safetensors").write_bytes(b"w" * 500)
    assert {path.name for path in not_needed_to_resume(training)} == {f"epoch_{n}" for n in (*range(1, 9), 11)}
    assert resume_point(complete_checkpoints(training))[0].directory.name == "epoch_10"


def test_where_nothing_is_resumable_nothing_is_surplus(tmp_path):
    checkpoint(tmp_path, 3)  # without an optimizer
    assert not_needed_to_resume(tmp_path) == []


def test_one_seed_goes_and_the_other_stays_done(world):
    assert world.run("clean_all.sh", "--force", "--seed", "1").returncode == 0
    assert not [name for name in files(world.scratch) if "seed_1" in name or "seed1" in name]
    assert "everything is done" in world.all("--local", "2").stdout
    assert "2_train_baseline   will run: not done yet" in world.all("--local", "--dry-run", "1").stdout


def test_keep_cache_keeps_model_and_data_done(world):
    assert world.run("clean_all.sh", "--force", "--keep-cache").returncode == 0
    plan = world.all("--local", "--dry-run", "1").stdout
    assert plan.count("  done") == 2 and "0_setup" in plan
    assert {flag.split("_seed")[0] for flag in world.flags()} == {"stage_0_setup", "stage_1_prepare_data"}


def test_all_goes_but_permanent_results_and_what_is_not_ours(world):
    kept = files(world.project)
    result = world.run("clean_all.sh", "--force")
    assert result.returncode == 0, result.stderr
    assert files(world.work) == {"notes of mine.txt"} and "left alone" in result.stdout
    assert files(world.project) == kept and kept
    assert files(world.scratch / "mono_s2s_results") == {"table for the paper.tex"}


@pytest.mark.slurm
def test_it_refuses_while_jobs_wait(cluster, tmp_path):
    world = World(tmp_path)
    world.environment |= cluster.environment
    world.behave(s0_setup={"units": 100, "seconds": 1})
    assert world.all("5").returncode == 0
    job = world.record(5)["jobs"]["0_setup"]["job_id"]
    cluster.wait(job, "RUNNING")
    result = world.run("clean_all.sh", "--force", "--seed", "5")
    assert result.returncode == 2 and "--cancel 5" in result.stderr and job in result.stderr
    assert (world.work / "runs").exists()


@pytest.mark.parametrize(
    "words",
    [["clean_all.sh", "--frce"], ["clean_all.sh", "--seed", "x"], ["clean_checkpoints.sh", "--all"],
     ["clean_checkpoints.sh", "abc"]],
)  # fmt: skip
def test_wrong_usage_names_itself_and_touches_nothing(tmp_path, words):
    world = World(tmp_path)
    before = world.snapshot()
    result = world.run(*words)
    assert result.returncode == 2 and words[-1] in result.stderr
    assert world.snapshot() == before


def test_an_unset_scratch_is_said(tmp_path):
    world = World(tmp_path)
    result = world.run("clean_all.sh", SCRATCH="")
    assert result.returncode == 2 and "SCRATCH" in result.stderr


def refused(world, *named):
    world.environment["MONO_S2S_QUALITY_CURVE_EXAMPLES"] = "0"  # or clean_checkpoints.sh would find nothing to delete
    before = world.snapshot()
    for command in (["clean_all.sh"], ["clean_all.sh", "--seed", "42"], ["clean_checkpoints.sh"]):
        result = world.run(*command, "--force")
        assert result.returncode == 2, result.stdout + result.stderr
        assert all(name in result.stderr for name in named), result.stderr
    gone = set(before) - set(world.snapshot())
    assert not gone


def test_it_refuses_under_a_stage_that_was_started_by_hand(tmp_path):
    world = World(tmp_path)
    assert world.all("--local", "--stop-stage", "1").returncode == 0
    for epoch in range(1, 12):
        checkpoint(world.work / "seed_42" / "baseline_model", epoch)
    world.behave(s2_train_baseline={"units": 1000, "seconds": 0.1})
    words = [sys.executable, str(world.checkout / "scripts" / "stage_2_train_baseline.py"), "--seed", "42"]
    process = subprocess.Popen(words, env=world.environment, stdout=subprocess.DEVNULL)
    try:
        units = world.work / "seed_42" / "train_baseline_units" / "units.jsonl"
        end = time.monotonic() + 60
        while not units.exists():
            assert time.monotonic() < end and process.poll() is None
            time.sleep(0.1)
        refused(world, "stage 2_train_baseline of seed 42 is running")
        assert world.run("clean_all.sh", "--seed", "7", "--force").returncode == 0, "another seed's work is not its own"
        assert process.poll() is None
    finally:
        process.terminate()
        process.wait(30)
    assert world.run("clean_checkpoints.sh", "--force").returncode == 0


@pytest.mark.slurm
def test_it_refuses_while_jobs_that_were_typed_by_hand_wait_or_run(cluster, tmp_path):
    world = World(tmp_path)
    world.environment |= cluster.environment
    assert world.all("--local", "--stop-stage", "1").returncode == 0
    for epoch in range(1, 12):
        checkpoint(world.work / "seed_42" / "baseline_model", epoch)
    (tmp_path / "elsewhere").mkdir()
    link = tmp_path / "elsewhere" / "train.sh"  # submitted through a link
    link.symlink_to(world.checkout / "jobs" / "job_2_baseline.sh")
    words = ["sbatch", "--parsable", "--hold", "--partition=aa100", "--qos=", "--account=", str(link), "--seed", "42"]
    job = subprocess.run(words, env=world.environment, capture_output=True, text=True).stdout.strip()
    assert job.isdigit()
    refused(world, job, "submitted by hand", f"scancel {job}")
    said = world.run("check_training_status.sh", "42").stdout
    assert f"job {job}" in said and "submitted by hand" in said

    run = tmp_path / "other scratch" / "mono_s2s_work" / "runs" / "some_run"
    run.mkdir(parents=True)
    (run / "settings.json").write_text("{}")
    unknown = subprocess.run([*words[:-1], "77"], env=world.environment, capture_output=True, text=True).stdout.strip()
    cluster("scancel", job)
    said = world.run("clean_all.sh", "--force")  # of a seed that nobody ever ran here
    assert said.returncode == 2 and f"job {unknown} (2_train_baseline, seed 77" in said.stderr
    assert "seed 77" in world.run("check_training_status.sh").stdout
    cluster("scancel", unknown)
    cluster.until(lambda: not cluster("squeue", "-h").strip(), 20, "an empty queue")
    words = [*words[:-3], str(world.checkout / "jobs" / "job_2_baseline.sh"), "--seed", "42"]
    subprocess.run([*words, "--settings", str(run / "settings.json")], env=world.environment, check=True)
    said = world.run("check_training_status.sh", "42").stdout
    assert "another SCRATCH" in said
    assert world.run("clean_checkpoints.sh", "--force").returncode == 0


def test_snapshots_stay_until_stage_6_has_read_them(tmp_path, capsys):
    paths = Paths(tmp_path, tmp_path)
    training = paths.training(4, "baseline")
    for epoch in range(1, 12):
        checkpoint(training, epoch)
    (training / "snapshots" / "step_1").mkdir(parents=True)
    (training / "epoch_3" / "model.safetensors").write_bytes(b"torn")
    (training / "step_120").mkdir()
    assert _checkpoints(paths, [4]) == [training / "epoch_3", training / "step_120"], "what nobody can read goes"
    assert "kept for stage 6 of seed 4" in capsys.readouterr().out
    # A flag of other settings or files is none: stage 6 would run again.
    paths.flag("6_hotflip_attacks", 4).write_text("{}")
    assert training / "snapshots" not in _checkpoints(paths, [4])
    capsys.readouterr()
    with settings_with({"MONO_S2S_QUALITY_CURVE_EXAMPLES": "0"}):
        gone = {path.name for path in _checkpoints(paths, [4])}
    assert gone == {"snapshots", "step_120", *(f"epoch_{n}" for n in (*range(1, 9), 10))}
    assert not capsys.readouterr().out


@pytest.mark.parametrize("profile", ["", "_quick"])
def test_downloads_that_named_experiments_use_stay(tmp_path, capsys, monkeypatch, profile):
    monkeypatch.setenv("MONO_S2S_SCRATCH_DIR", str(tmp_path))
    monkeypatch.setenv("MONO_S2S_PROJECT_DIR", str(tmp_path / "p"))
    monkeypatch.setattr("utils.operations.cleanup.refuse_while_running", lambda *_: "")
    work = tmp_path / f"mono_s2s_work{profile}"
    for made in ("mono_s2s_work", "mono_s2s_work_quick", "mono_s2s_work_t5-base", "mono_s2s_work_quick_small"):
        for name in ("hf_cache", "prepared_data"):
            (tmp_path / made / name).mkdir(parents=True)
    beside = {"": "t5-base", "_quick": "small"}[profile]
    variables = {"MONO_S2S_PROFILE": "quick"} if profile else {}
    with settings_with(variables):
        assert clean_all(None, force=True) == 0
    said = capsys.readouterr().out
    assert {path.name for path in work.iterdir()} == {"hf_cache"} and f"experiments {beside} use it too" in said
    shutil.rmtree(f"{work}_{beside}/prepared_data")
    shutil.rmtree(f"{work}_{beside}/hf_cache")  # an empty directory is no experiment
    with settings_with(variables):
        assert clean_all(None, force=True) == 0
    assert not list(work.iterdir())
