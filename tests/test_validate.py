"""validate_setup.sh: says what is ready and what is not, with what to do, and touches nothing."""

import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from tests.shell_world import ROOT, World
from utils.core.files import write_json
from utils.core.hashes import describe_anew
from utils.core.paths import Paths
from utils.operations.cluster_checks import minutes_of
from utils.pipeline.flags import read_flag
from utils.pipeline.stages import STAGES

pytestmark = pytest.mark.slow


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
    # The interpreter itself: what PATH calls python3 may be a script (of pyenv) that needs other commands.
    (folder / "python3").symlink_to(Path(sys._base_executable))
    for name in ("bash", "dirname", "date", "git", "env"):
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


@pytest.mark.parametrize("variable", ["VIRTUAL_ENV", "CONDA_PREFIX", "MONO_S2S_PYTHON"])
def test_an_environment_that_was_deleted_is_one_line_and_the_rest_is_looked_at(world, tmp_path, variable):
    gone = {"MONO_S2S_PYTHON": "", "VIRTUAL_ENV": "", "CONDA_PREFIX": ""} | {variable: "/nowhere/bin/python"}
    result = validate(world, "--demo", **gone, **without_slurm(tmp_path))
    assert result.returncode == 1 and not result.stderr
    assert line(result, "environment").startswith("PROBLEM") and "does not start" in line(result, "environment")
    assert line(result, "model and data") and "two training steps" not in result.stdout


@pytest.mark.parametrize(
    ("content", "flagged"),
    [("{", True), ('{"results": null, "_metadata": {}}', True), ('{"results": {"missing": 1}, "_metadata": {}}', True),
     ("\0\0", False)],
)  # fmt: skip
def test_damaged_statistics_of_the_data_are_one_line(world, tmp_path, content, flagged):
    quiet = without_slurm(tmp_path) | {"MONO_S2S_PYTHON": sys.executable, "MONO_S2S_MODEL_NAME": "demo"}
    statistics = world.scratch / "mono_s2s_results" / "data_statistics.json"
    (world.checkout / "scripts" / "smoke_training.py").write_text("print('no training here')")
    assert world.all("--demo", "--stop-stage", "1", MONO_S2S_DEMO_DIR=str(tmp_path)).returncode == 0
    statistics.write_text(content)
    if flagged:  # by whatever way: its hash is that of the flag
        paths = Paths(world.scratch, world.project)
        flag = replace(read_flag(STAGES[1], 42, paths), outputs={})
        outputs = {str(path): describe_anew(path) for path in STAGES[1].outputs(paths, 42)}
        write_json(paths.flag("1_prepare_data", None), replace(flag, outputs=outputs).to_json())
    result = validate(world, "--demo", MONO_S2S_DEMO_DIR=str(tmp_path), **quiet)
    said = line(result, "model and data")
    assert "Traceback" not in result.stderr and "data_statistics.json" in said
    assert (result.returncode, said.split()[0]) == ((1, "PROBLEM") if flagged else (0, "warning")), result.stdout


def test_what_stage_1_itself_wrote_is_believed(done, tmp_path):
    """Not a record that a test wrote: once they differed in type, and every finished stage 1 was called damaged."""
    environment = done.environment | without_slurm(tmp_path) | {"MONO_S2S_PYTHON": sys.executable}
    command = [str(ROOT / "validate_setup.sh")]
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert line(result, "model and data").startswith("ok") and "prepared" in line(result, "model and data")


def test_wrong_usage_names_itself(world):
    result = validate(world, "--fix")
    assert result.returncode == 2 and "--fix" in result.stderr


# ---- the cluster's limits -------------------------------------------------------------------------------------------

ACCEPTS_ALL = """
echo "$*" >> {log}
exit 0
"""
SINFO = """case "$*" in
*%l*) printf 'acpu|1-00:00:00|512000|64|(null)|up\\nshort|1:00:00|128000|32|(null)|up\\n'
      printf 'aa100|1-00:00:00|256000|64|gpu:a100_80gb:3(S:0-1)|up\\nold|infinite|60000|8|gpu:v100:1|down\\n' ;;
*%R*) printf 'acpu\\nshort\\naa100\\nold\\n' ;;
*%G*) printf 'gpu:a100_80gb:3(S:0-1)\\n' ;;
esac
"""


@pytest.fixture
def site(world, tmp_path):
    """A site whose sbatch --test-only accepts everything (EnforcePartLimits=NO, the default) and notes each call."""
    folder = tmp_path / "site"
    folder.mkdir()
    programs = {
        "sbatch": ACCEPTS_ALL.format(log=folder / "calls"),
        "sinfo": SINFO,
        "squeue": "exit 0",
        "sacctmgr": "exit 1",
    }

    def install(**replaced):
        for name, body in (programs | replaced).items():
            (folder / name).write_text(f"#!/bin/bash\n{body}\n")
            (folder / name).chmod(0o755)
        world.environment["PATH"] = f"{folder}{os.pathsep}{world.environment['PATH']}"
        return folder / "calls"

    return install


CLUSTER_CHECKS = """
from utils.core.settings import load_settings
from utils.operations.cluster_checks import cluster_checks
for check in cluster_checks(load_settings()):
    check.show()
"""


def check_cluster(world, **settings):
    """What validate_setup.sh prints of the cluster, without the seconds of its two training steps."""
    environment = {f"MONO_S2S_{name}": value for name, value in settings.items()}
    result = subprocess.run(
        [sys.executable, "-c", CLUSTER_CHECKS],
        env=world.environment | environment,
        cwd=world.checkout,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert result.returncode == 0, result.stderr
    return [text for text in result.stdout.splitlines() if not text.startswith(" ")]


def test_every_distinct_request_is_tried(world, site):
    calls = site()
    assert [text[:2] for text in check_cluster(world)] == ["ok", "ok"]
    tried = {tuple(word for word in line.split() if word.startswith(("--partition", "--time", "--mem", "--gres")))
             for line in calls.read_text().splitlines()}  # fmt: skip
    # Stages 0, 1, 7 and the aggregate; 2 and 3 alike, 4, 5, 6.
    assert len(tried) == 8 and len(calls.read_text().splitlines()) == 8
    refusing = "[[ $* != *--mem=32768M*--time=02:00:00* ]] || { echo 'too long for the QoS' >&2; exit 1; }"
    site(sbatch=refusing)
    problems = [text for text in check_cluster(world) if text.startswith("PROBLEM")]
    assert len(problems) == 1 and "1_prepare_data" in problems[0] and "too long for the QoS" in problems[0]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"SLURM_TIME_SCALE": "2.5"}, ["2_train_baseline, 3_train_monotonic (30:00:00", "24:00:00 at most"]),
        ({"SLURM_CPU_PARTITION": "short"}, ["1_prepare_data (02:00:00", "01:00:00 at most"]),
        ({"SLURM_MEMORY_SCALE": "5"}, ["2_train_baseline", "no node of aa100 has more than 250 GB"]),
        ({"SLURM_CPUS_PER_TASK": "48", "SLURM_CPU_PARTITION": "short"}, ["more than 32 cores"]),
        ({"SLURM_GRES": "gpu:a100_80gb:4"}, ["no node of aa100 has gpu:a100_80gb:4 (at most 3)"]),
        ({"SLURM_PARTITION": "old", "SLURM_GRES": "gpu:1"}, ["partition old is down"]),
    ],
)
def test_what_no_partition_allows_is_a_problem_though_sbatch_accepts_it(world, site, settings, said):
    site()
    problems = [text for text in check_cluster(world, **settings) if text.startswith("PROBLEM")]
    assert any(all(words in text for words in said) for text in problems), problems


def test_a_longer_time_than_the_qos_allows_is_a_problem_though_sbatch_accepts_it(world, site):
    names = "case $* in *MaxWall*) printf 'gpu-short|01:00:00\\ngpu-long|7-00:00:00\\ncpu|\\n' ;; "
    site(sacctmgr=names + "*) printf 'gpu-short\\ngpu-long\\ncpu\\n' ;; esac")
    cpu, *problems = check_cluster(world, SLURM_QOS="gpu-short", SLURM_CPU_QOS="cpu")
    assert cpu.startswith("ok") and len(problems) == 4 and all(text.startswith("PROBLEM") for text in problems)
    assert all("QoS gpu-short allows 01:00:00 at most" in text for text in problems)
    assert [text[:2] for text in check_cluster(world, SLURM_QOS="gpu-long", SLURM_CPU_QOS="cpu")] == ["ok", "ok"]


def test_all_wrong_settings_are_named_at_once(world, site):
    site()
    (line,) = check_cluster(world, SLURM_PARTITION="nosuch", SLURM_CPU_PARTITION="neither", SLURM_GRES="gpu:h900:1")
    assert line.startswith("PROBLEM") and "nosuch" in line and "neither" in line and "gpu:h900" in line
    wrong = validate(world, MONO_S2S_NUM_EPOCHS="x", MONO_S2S_BATCHSIZE="1", MONO_S2S_BEAMS="2", MONO_S2S_DEVICE="tpu")
    said = next(text for text in wrong.stdout.splitlines() if " settings " in text)
    assert all(name in said for name in ("NUM_EPOCHS", "BATCHSIZE", "BEAMS", "DEVICE")) and wrong.returncode == 1


def test_a_controller_that_does_not_answer_is_called_that(world, site):
    site(sinfo="echo 'slurm_load_partitions: Unable to contact slurm controller (connect failure)' >&2; exit 1")
    (line,) = check_cluster(world)
    assert line.startswith("PROBLEM") and "the controller does not answer" in line and "edit" not in line
    site(sbatch="echo 'allocation failure: Unable to contact slurm controller (connect failure)' >&2; exit 1")
    lines = check_cluster(world)
    assert lines and all("the controller does not answer" in line for line in lines)


@pytest.mark.parametrize(
    ("limit", "minutes"),
    [
        ("30:00", 30),
        ("1:00:00", 60),
        ("1-00:00:00", 1440),
        ("7-12:30:00", 10830),
        ("infinite", math.inf),
        ("n/a", math.inf),
    ],
)
def test_time_limits_are_read_as_sinfo_writes_them(limit, minutes):
    assert minutes_of(limit) == minutes
