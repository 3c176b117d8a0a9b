"""Stages that do not need each other run side by side here: which do, what is printed, failures, signals."""

import os
import signal
import sys
import time

import pytest

from tests.shell_world import World
from tests.test_shell import start, units, until_begun
from utils.core.settings import load_settings
from utils.pipeline.plan import Step
from utils.pipeline.stages import STAGES
from utils.slurm import local_run

ENOUGH = {"MONO_S2S_DEVICE": "cpu", "MONO_S2S_SLURM_MEMORY_SCALE": "0.001"}


def groups(monkeypatch, *, cores=2, free_gb=64.0, gpu=False, numbers=range(8), **settings):
    monkeypatch.setattr(local_run.os, "sched_getaffinity", lambda pid: set(range(cores)))
    monkeypatch.setattr(local_run, "_free_memory_gb", lambda: free_gb)
    monkeypatch.setattr(local_run, "_has_gpu", lambda: gpu)
    steps = [Step(STAGES[number], "not done yet") for number in numbers]
    chosen = load_settings().replaced(**({"DEVICE": "cpu"} | settings))
    return [[step.stage.number for step in group] for group in local_run.side_by_side(steps, chosen)]


def test_stages_run_side_by_side_where_none_needs_the_other_and_the_machine_has_room(monkeypatch):
    pairs, alone = [[0], [1], [2, 3], [4], [5, 6], [7]], [[number] for number in range(8)]
    assert groups(monkeypatch) == pairs  # 2 and 3 ask for 128 GB, which is twice what they take
    assert groups(monkeypatch, free_gb=63.0) == [[0], [1], [2], [3], [4], [5, 6], [7]]
    assert groups(monkeypatch, free_gb=8.0, SLURM_MEMORY_SCALE=0.0625) == pairs
    assert groups(monkeypatch, cores=1) == alone
    assert groups(monkeypatch, DEVICE="cuda") == alone
    assert groups(monkeypatch, DEVICE="auto") == pairs and groups(monkeypatch, DEVICE="auto", gpu=True) == alone
    assert groups(monkeypatch, numbers=(3, 4, 6)) == [[3], [4], [6]]


def test_a_container_s_limit_counts(monkeypatch, tmp_path):
    limit = tmp_path / "memory.max"
    real = local_run.Path
    monkeypatch.setattr(local_run, "Path", lambda path: limit if str(path).endswith("memory.max") else real(path))
    free = local_run._free_memory_gb()
    assert free > 0
    limit.write_text(f"{2**28}\n")
    assert local_run._free_memory_gb() == 0.25
    limit.write_text("max\n")
    assert local_run._free_memory_gb() == pytest.approx(free, rel=0.3)


def test_half_the_threads_each_and_whole_lines_with_a_name(monkeypatch, capsys):
    monkeypatch.setattr(local_run.os, "sched_getaffinity", lambda pid: set(range(8)))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    program = """if True:
        import os, sys
        for n in range(200):
            sys.stdout.write(f"{n} {os.environ.get('OMP_NUM_THREADS')} ")
            sys.stdout.flush()
            print("end")
        print("loud", file=sys.stderr)
        sys.exit(int(sys.argv[1]))
    """
    codes = local_run.run_wrappers(
        {key: [sys.executable, "-c", program, code] for key, code in (("a", "0"), ("b", "5"))}
    )
    out, err = capsys.readouterr()
    assert codes == {"b": 5}
    for key in "ab":
        assert [line for line in out.splitlines() if line[1] == key] == [f"[{key}] {n} 4 end" for n in range(200)]
        assert f"[{key}] loud" in err.splitlines()
    assert local_run.run_wrapper([sys.executable, "-c", program, "7"]) == 7


@pytest.fixture
def world(tmp_path):
    made = World(tmp_path)
    made.environment |= ENOUGH
    return made


@pytest.mark.slow
def test_where_one_fails_the_other_runs_to_its_end(world):
    world.behave(s2_train_baseline={"units": 40, "seconds": 0.1}, s3_train_monotonic={"fail": "no disk"})
    result = world.all("--local", "--stop-stage", "4")
    assert result.returncode == 1, result.stdout + result.stderr
    assert "[3_train_monotonic] " in result.stdout and "[2_train_baseline] " in result.stdout
    assert "stage 3_train_monotonic failed; 2_train_baseline runs to its end first" in result.stderr
    assert "stage 3_train_monotonic ended with exit code 1" in result.stderr
    assert "stage_2_train_baseline_seed42" in world.flags() and "stage_4_evaluate_seed42" not in world.flags()
    world.behave()
    again = world.all("--local", "--stop-stage", "3")
    assert again.returncode == 0 and "[1/1] stage 3_train_monotonic" in again.stdout


@pytest.mark.slow
@pytest.mark.parametrize("how", ["TERM", "Ctrl-C"])
def test_a_signal_reaches_both_and_both_save(world, how):
    slow = {"units": 60, "seconds": 0.2}
    world.behave(s2_train_baseline=slow, s3_train_monotonic=slow)
    process = start(world, "--local", "--stop-stage", "4")
    until_begun(world)
    end = time.monotonic() + 60
    while not units(world, "train_monotonic"):
        assert time.monotonic() < end, "stage 3 does not run beside stage 2"
        time.sleep(0.05)
    if how == "Ctrl-C":
        os.killpg(process.pid, signal.SIGINT)
    else:
        process.terminate()
    printed = process.communicate(timeout=60)[0]
    assert process.returncode == 1 and "Traceback" not in printed, printed
    assert printed.count("Progress saved; run the same command to resume") == 2, printed
    assert all(len(units(world, stage)) < 60 for stage in ("train_baseline", "train_monotonic"))
    assert world.flags() == {"stage_0_setup", "stage_1_prepare_data"}
