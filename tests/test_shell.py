"""The shell layer without SLURM: help, wrong usage, local runs, signals, the environment's Python."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest

from tests.shell_world import ROOT, World, children_cpu_seconds
from utils.pipeline.stages import STAGES

pytestmark = pytest.mark.slow

WRAPPERS = [stage.wrapper for stage in STAGES]
COMMANDS = [*sorted(path.name for path in ROOT.glob("*.sh")), "scripts/environment.sh", "tests/run.sh"]
SLOW = {"units": 40, "seconds": 0.2}


@pytest.fixture(scope="module")
def still(tmp_path_factory) -> World:
    """A world for commands that touch nothing."""
    return World(tmp_path_factory.mktemp("shell"))


@pytest.fixture
def world(tmp_path) -> World:
    return World(tmp_path)


def units(world, stage="train_baseline") -> list[int]:
    path = world.work / "seed_42" / f"{stage}_units" / "units.jsonl"
    return [json.loads(line)["unit"] for line in path.read_text().splitlines()] if path.exists() else []


def start(world, *words) -> subprocess.Popen[str]:
    """run_all.sh in a session of its own, as from a terminal."""
    return subprocess.Popen(
        [str(world.checkout / "run_all.sh"), *words],
        env=world.environment,
        cwd="/",
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        # Under nohup the tests ignore SIGHUP, and what they start would inherit that: a terminal does not do so.
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),
    )


def until_begun(world, count=3) -> None:
    end = time.monotonic() + 60
    while len(units(world)) < count:
        assert time.monotonic() < end, "stage 2 did not begin"
        time.sleep(0.05)


# ---- help and usage -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", COMMANDS + WRAPPERS)
def test_help_is_quick_and_touches_nothing(still, command):
    path = still.checkout / command
    if not path.exists():  # tests/ is not part of the copy
        path = ROOT / command
    before = still.snapshot()
    seconds = []
    for _ in range(3):
        began = children_cpu_seconds()
        done = subprocess.run(["bash", path, "--help"], env=still.environment, capture_output=True, text=True, cwd="/")
        seconds.append(children_cpu_seconds() - began)
        assert done.returncode == 0 and done.stdout and not done.stderr
    assert min(seconds) < 0.5
    assert still.snapshot() == before


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--resume"], "--resume"),
        (["abc"], "abc"),
        (["-7"], "-7"),
        (["1.5"], "1.5"),
        (["4294967296"], "4294967296"),
        (["1", "2"], "run_multi_seed.sh"),
        (["--stage", "8"], "--stage 8"),
        (["--stage"], "--stage"),
        (["--stop-stage", "--force"], "--stop-stage"),
        (["--stage", "5", "--stop-stage", "2"], "--stop-stage 2"),
        (["--local", "--slurm"], "exclude"),
        ([""], "seed"),
    ],
)
def test_wrong_usage_is_one_line_exit_2_and_touches_nothing(still, options, words):
    refused(still, options, words, {})


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({"MONO_S2S_LERNING_RATE": "1"}, "LERNING_RATE"),
        ({"MONO_S2S_LEARNING_RATE": "fast"}, "LEARNING_RATE"),
        ({"MONO_S2S_NUM_EPOCHS": "3"}, "MONOTONIC_NUM_EPOCHS"),
        ({"MONO_S2S_PROFILE": "turbo"}, "turbo"),
        ({"SCRATCH": ""}, "SCRATCH"),
        ({"PROJECT": ""}, "PROJECT"),
        ({"SCRATCH": str(ROOT / "README.md" / "x")}, "SCRATCH_DIR"),
        ({"SCRATCH": "/tmp/a\nb"}, "SCRATCH_DIR"),
        ({"PROJECT": "/tmp/a\x1b]0;b"}, "PROJECT_DIR"),
        ({"MONO_S2S_HF_CACHE_DIR": "/tmp/a\tb"}, "HF_CACHE_DIR"),
        ({"MONO_S2S_HF_CACHE_DIR": str(ROOT / "README.md")}, "HF_CACHE_DIR"),
        ({"MONO_S2S_MODEL_NAME": "/tmp/a\x7fb"}, "MODEL_NAME"),
        ({"MONO_S2S_MODEL_NAME": "a/b/c"}, "MODEL_NAME=a/b/c"),
        ({"MONO_S2S_MODEL_REVISION": "a\rb"}, "MODEL_REVISION"),
        ({"MONO_S2S_SLURM_PARTITION": "aa100\nacpu"}, "SLURM_PARTITION"),
        ({"MONO_S2S_DATASETS_FILE": str(ROOT / "README.md")}, "README.md, line 1: not JSON"),
    ],
    ids=lambda value: "" if isinstance(value, str) else "-".join(value),
)
@pytest.mark.parametrize("executor", ["--local", "--dry-run"])
def test_wrong_settings_are_one_line_exit_2_and_touch_nothing(still, executor, environment, words):
    refused(still, [executor], words, {"USER": "nobody-of-that-name"} | environment)


DATA = {"dialogsum": {"files": {"train": "train.csv", "validation": "val.csv"}}}


@pytest.mark.parametrize("command", [["run_all.sh"], ["run_multi_seed.sh", "1", "2"]], ids=lambda words: words[0])
@pytest.mark.parametrize("option", ["--local", "--dry-run"])
def test_missing_inputs_are_one_line_exit_3_before_anything_starts(still, tmp_path, command, option):
    empty, data = tmp_path / "an empty model", tmp_path / "data.json"
    (tmp_path / "train.csv").write_text("dialogue,summary\n")
    empty.mkdir()
    data.write_text(json.dumps(DATA))
    before = still.snapshot()
    for name, value, words in (
        ("DATASETS_FILE", "/no/such.json", "/no/such.json: no such file"),
        ("DATASETS_FILE", str(data), "val.csv: no such file"),
        ("DATASETS_FILE", str(tmp_path), "Is a directory"),
        ("MODEL_NAME", "/no/such", "MODEL_NAME=/no/such: no such directory"),
        ("MODEL_NAME", str(empty), "it lacks config.json"),
    ):
        result = still.run(*command, option, **{f"MONO_S2S_{name}": value})
        assert result.returncode == 3 and words in result.stderr, result.stderr
        assert len(result.stderr.splitlines()) == 1 and not result.stdout
    assert still.snapshot() == before


@pytest.mark.parametrize("blocked", ["scratch/mono_s2s_work", "scratch/mono_s2s_results/seed_42",
                                     "project/mono_s2s_final_results"])  # fmt: skip
def test_a_directory_of_a_later_stage_that_cannot_be_made_is_found_before_the_first(world, blocked):
    path = world.root / blocked
    path.parent.mkdir(parents=True)
    path.write_text("no directory")
    result = world.all("--local")
    assert result.returncode == 2 and f"cannot write to {path}, which is no directory" in result.stderr
    assert not list(world.root.rglob("*.flag"))


def refused(world, options, words, environment):
    before = world.snapshot()
    result = world.all(*options, **environment)
    assert result.returncode == 2, result.stdout + result.stderr
    assert words in result.stderr and len(result.stderr.splitlines()) == 1, result.stderr
    assert world.snapshot() == before


def test_the_demo_is_no_other_profile(still):
    refused(still, ["--demo"], "MONO_S2S_PROFILE=full", {"MONO_S2S_PROFILE": "full"})


def test_no_slurm_names_both_ways_out(still, tmp_path):
    """A PATH with the common commands and none of SLURM's."""
    for name in ("bash", "env", "dirname", "basename", "date", "uname", "git", "sed", "readlink", "mkdir", "flock"):
        (tmp_path / name).symlink_to(shutil.which(name))
    before = still.snapshot()
    result = still.all(PATH=str(tmp_path))
    assert result.returncode == 2
    assert "sbatch" in result.stderr and "--local" in result.stderr and "--demo" in result.stderr
    assert still.snapshot() == before


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--speed"], "--speed"),
        (["--seed"], "--seed"),
        (["--seed", "x"], "seed x"),
        (["--settings", "/nowhere.json"], "/nowhere.json"),
    ],
)
def test_wrong_usage_of_a_wrapper_exits_2(still, options, words):
    before = still.snapshot()
    result = still.run("jobs/job_2_baseline.sh", *options)
    assert result.returncode == 2 and words in result.stderr and len(result.stderr.splitlines()) == 1
    assert still.snapshot() == before


@pytest.mark.parametrize("options", [[], ["7"], ["--stage", "0", "--stop-stage", "3", "--force"]])
def test_a_local_dry_run_touches_nothing(still, options):
    before = still.snapshot()
    result = still.all("--local", "--dry-run", *options)
    assert result.returncode == 0 and "jobs/job_0_setup.sh" in result.stdout
    assert still.snapshot() == before


# ---- runs here ------------------------------------------------------------------------------------------------------


def test_a_local_run_does_all_stages_in_order_and_a_second_one_nothing(world):
    result = world.all("7", "--local")
    assert result.returncode == 0, result.stdout + result.stderr
    paths = [result.stdout.index(f"stage {stage.key}:") for stage in STAGES]
    assert paths == sorted(paths)
    assert (world.project / "mono_s2s_final_results" / "seed_7" / "final_results.json").exists()
    again = world.all("7", "--local")
    assert again.returncode == 0 and "everything is done" in again.stdout


@pytest.mark.parametrize(
    ("behaviour", "code"), [({"fail": "the disk is full of ants"}, 1), ({"crash": True}, 9)], ids=["fails", "crashes"]
)
def test_a_local_run_stops_at_a_failure_and_goes_on_from_there(world, behaviour, code):
    world.behave(s3_train_monotonic=behaviour)
    result = world.all("--local")
    assert result.returncode == code and "3_train_monotonic" in result.stderr
    assert "stage_2_train_baseline_seed42" in world.flags() and "stage_4_evaluate_seed42" not in world.flags()
    made = (world.work / "stage_2_train_baseline_seed42.flag").stat().st_mtime_ns
    world.behave()
    assert world.all("--local").returncode == 0
    assert (world.work / "stage_2_train_baseline_seed42.flag").stat().st_mtime_ns == made
    assert "stage_7_aggregate_seed42" in world.flags()


@pytest.mark.parametrize("how", ["TERM", "HUP", "Ctrl-C"])
def test_a_local_run_that_is_stopped_saves_its_units_and_goes_on(world, how):
    world.behave(s2_train_baseline=SLOW)
    process = start(world, "--local", "--stop-stage", "2")
    until_begun(world)
    if how == "Ctrl-C":
        os.killpg(process.pid, signal.SIGINT)
    else:
        process.send_signal(getattr(signal, f"SIG{how}"))
    said = process.communicate(timeout=30)[0]
    assert process.returncode != 0 and "Traceback" not in said, said
    assert "Progress saved; run the same command to resume" in said
    before = len(units(world))
    assert 3 <= before < 40 and "stage_2_train_baseline_seed42" not in world.flags()
    world.behave(s2_train_baseline=SLOW | {"seconds": 0})
    assert world.all("--local", "--stop-stage", "2").returncode == 0
    assert units(world) == list(range(40)), "units are missing, or were done twice"


def test_a_second_local_run_of_the_seed_is_refused_while_the_first_is_at_work(world):
    world.behave(s2_train_baseline=SLOW)
    process = start(world, "--local", "--stop-stage", "2")
    try:
        until_begun(world)
        second = world.all("--local", "--stop-stage", "2")
        assert second.returncode == 2 and "seed 42 is running" in second.stderr
    finally:
        process.terminate()
        process.communicate(timeout=30)


def test_a_wrapper_works_by_hand_from_any_directory_and_in_an_allocation(world):
    # Inside salloc or an interactive job SLURM_JOB_ID is set: that job must not be requeued, nor the output hidden.
    for number, environment in enumerate(({}, {"SLURM_JOB_ID": "12"})):
        result = world.run(WRAPPERS[number], "--seed", "5", **environment)
        assert result.returncode == 0, result.stdout + result.stderr
        assert "exit status 0" in result.stdout and "requeue" not in result.stdout
    assert world.flags() == {"stage_0_setup", "stage_1_prepare_data"}


def test_a_wrapper_without_its_inputs_exits_3(world):
    result = world.run(WRAPPERS[4])
    assert result.returncode == 3 and "2_train_baseline" in result.stdout


def test_the_setup_line_runs_in_the_job_and_its_failure_is_named(world):
    result = world.run(WRAPPERS[0], MONO_S2S_JOB_SETUP='echo "unset is fine: $NO_SUCH_VARIABLE"')
    assert result.returncode == 0 and "unset is fine: " in result.stdout
    result = world.run(WRAPPERS[1], MONO_S2S_JOB_SETUP="module_that_is_not_there load cuda")
    assert result.returncode == 1 and "JOB_SETUP failed: module_that_is_not_there load cuda" in result.stdout
    assert "stage_1_prepare_data" not in world.flags()


def test_an_environment_that_lacks_packages_is_named_with_the_cure(world):
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(world.root / "bare")], check=True)
    result = world.all("--local", MONO_S2S_PYTHON="", VIRTUAL_ENV=str(world.root / "bare"))
    assert result.returncode == 2
    assert "torch" in result.stderr and "pip install" in result.stderr and not world.work.exists()


@pytest.mark.parametrize("content", ["", "{", "[]", '{"results": {}, "_metadata": {}}'])
def test_a_damaged_result_of_setup_is_made_anew_not_refused(world, content):
    """Gone wrong on the disk, or read while stage 0 writes: the command that repairs it must not stop at it."""
    assert world.all("1", "--local").returncode == 0
    for path in world.scratch.glob("mono_s2s_results/setup_complete.json"):
        path.write_text(content)
    (world.work / "stage_0_setup.flag").unlink()
    planned = world.all("2", "--dry-run", "--local")
    assert planned.returncode == 0 and "0_setup" in planned.stdout, planned.stderr
    repaired = world.all("1", "--local")
    assert repaired.returncode == 0, repaired.stderr


def test_a_file_that_only_looks_like_a_flag_stops_nothing(world):
    assert world.all("1", "--local").returncode == 0
    flag = world.work / "stage_2_train_baseline_seed1.flag"
    shutil.copy(flag, world.work / "stage_2_train_baseline_seed1_old.flag")
    (world.work / "stage_0_setup.flag").unlink()
    planned = world.all("1", "--dry-run", "--local")
    assert planned.returncode == 0 and "0_setup" in planned.stdout, planned.stderr
