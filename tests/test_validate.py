"""validate_setup.sh: says what is ready and what is not, with what to do, and touches nothing."""

import os

import pytest

from tests.shell_world import World


@pytest.fixture
def world(tmp_path) -> World:
    return World(tmp_path)


def validate(world, *words, **environment):
    return world.run("validate_setup.sh", *words, **environment)


def line(result, what) -> str:
    return next(text for text in result.stdout.splitlines() if f" {what} " in text)


def without_slurm(tmp_path) -> dict[str, str]:
    """A PATH with the few commands that are needed, and no SLURM."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("bash", "dirname", "date", "git", "python3", "env"):
        found = next(d for d in os.environ["PATH"].split(os.pathsep) if os.access(f"{d}/{name}", os.X_OK))
        (folder / name).symlink_to(f"{found}/{name}")
    return {"PATH": str(folder)}


def test_a_machine_that_can_run_the_demo_is_ready(world, tmp_path):
    before = world.snapshot()
    result = validate(world, "--demo", "--demo", **without_slurm(tmp_path))
    assert result.returncode == 0, result.stdout + result.stderr
    assert line(result, "SLURM").startswith("warning") and "--local" in result.stdout
    assert line(result, "two training steps").startswith("ok") and "no weight < 0" in result.stdout
    assert "\033" not in result.stdout and result.stdout.rstrip().endswith("ready.")
    assert {k: v for k, v in world.snapshot().items() if not k.startswith("bin")} == before


@pytest.mark.slurm
def test_the_cluster_is_asked_and_nothing_is_queued(cluster, world):
    world.environment |= cluster.environment
    good = validate(world, "--demo")
    assert good.returncode == 0, good.stdout
    assert line(good, "GPU jobs").startswith("ok") and "aa100" in line(good, "GPU jobs")
    assert "gpu:a100_80gb:1" in line(good, "GPU jobs")
    bad = validate(world, "--demo", MONO_S2S_SLURM_PARTITION="nosuch")
    assert bad.returncode == 1 and "nosuch" in line(bad, "SLURM") and bad.stdout.rstrip().endswith("PROBLEM.")
    long = validate(world, "--demo", MONO_S2S_SLURM_TIME_SCALE="100")
    assert long.returncode == 1 and line(long, "GPU jobs").startswith("PROBLEM")
    assert not cluster("squeue", "-h").strip()


def test_settings_places_and_a_silent_hub_are_named(world, tmp_path):
    quiet = without_slurm(tmp_path) | {"HF_ENDPOINT": "http://127.0.0.1:9", "MONO_S2S_DEVICE": "cpu"}
    result = validate(world, **quiet)
    assert result.returncode == 1 and line(result, "model and data").startswith("PROBLEM")
    assert "33.0 GPU hours" in result.stdout
    wrong = validate(world, MONO_S2S_NUM_EPOCHS="3", **quiet)
    assert wrong.returncode == 1 and "MONOTONIC_NUM_EPOCHS" in line(wrong, "settings")
    nowhere = validate(world, SCRATCH="", **quiet)
    assert nowhere.returncode == 1 and "SCRATCH" in line(nowhere, "settings")


def test_wrong_usage_names_itself(world):
    result = validate(world, "--fix")
    assert result.returncode == 2 and "--fix" in result.stderr
