"""Job wrappers as SLURM runs them: a copy elsewhere, output to a file, variables partly of another job."""

import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.shell_world import World
from utils.pipeline import runner

pytestmark = pytest.mark.slow

SCONTROL = """case "$*" in
*"show job"*) printf 'JobId=77 Restarts={restarts}\\n   Command={command}\\n' ;;
*requeue*) echo "$*" >>{calls}; {requeue} ;;
esac"""
ARRAY = {
    "SLURM_ARRAY_JOB_ID": "9",
    "SLURM_ARRAY_TASK_ID": "1",
    "SLURM_ARRAY_TASK_COUNT": "2",
    "SLURM_ARRAY_TASK_MIN": "0",
    "SLURM_ARRAY_TASK_MAX": "1",
}
SLOW = {"units": 60, "seconds": 0.1}


class Job:
    """A wrapper run as job 77 of a SLURM that only answers scontrol and squeue."""

    def __init__(self, root: Path, wrapper: str = "job_2_baseline.sh") -> None:
        self.world = World(root / "world")
        self.root, self.wrapper, self.calls = root, wrapper, root / "requeued"
        (root / "bin").mkdir()
        (root / "spool").mkdir()
        (root / "elsewhere").mkdir()
        self.script = root / "spool" / "slurm_script"
        shutil.copy(self.world.checkout / "jobs" / wrapper, self.script)
        self.answer()
        self.fake("squeue", "echo RUNNING")

    def fake(self, name: str, body: str) -> None:
        path = self.root / "bin" / name
        path.write_text(f"#!/bin/bash\n{body}\n")
        path.chmod(0o755)

    def answer(self, command: str = "", restarts: int = 0, requeue: str = "true") -> None:
        command = command or f"{self.world.checkout}/jobs/{self.wrapper} --seed 42"
        calls = f"'{self.calls}'"
        self.fake("scontrol", SCONTROL.format(restarts=restarts, command=command, calls=calls, requeue=requeue))

    def environment(self, **more: str) -> dict[str, str]:
        path = f"{self.root / 'bin'}{os.pathsep}{os.environ['PATH']}"
        return self.world.environment | {"PATH": path, "SLURM_JOB_ID": "77"} | more

    def start(self, *options: str, stdout: str | Path = os.devnull, environment=None, **more: str) -> subprocess.Popen:
        """The job's process; its output is appended to `stdout`, as SLURM's is."""
        with Path(stdout).open("a") as out:
            return subprocess.Popen(
                ["bash", str(self.script), *options],
                stdout=out,
                stderr=out,
                stdin=subprocess.DEVNULL,
                env=environment or self.environment(**more),
                cwd=self.root / "elsewhere",
            )

    def prepare(self) -> None:
        for stage in (0, 1):
            script = next((self.world.checkout / "jobs").glob(f"job_{stage}_*.sh"))
            assert self.world.run(str(script.relative_to(self.world.checkout))).returncode == 0

    def log(self) -> str:
        return "".join(path.read_text() for path in sorted((self.world.checkout / "logs").glob("*77*")))

    def units(self) -> list[str]:
        return [
            line
            for path in self.world.work.glob("seed_42/train_baseline_units/units*.jsonl")
            for line in path.read_text().splitlines()
            if line
        ]

    def until_begun(self) -> None:
        deadline = time.monotonic() + 60
        while not self.units():
            assert time.monotonic() < deadline
            time.sleep(0.05)


@pytest.fixture
def job(tmp_path):
    job = Job(tmp_path)
    job.prepare()
    return job


def test_a_job_whose_log_cannot_be_written_does_its_work(job):
    assert job.start(stdout="/dev/full").wait(60) == 0
    assert "stage_2_train_baseline_seed42" in job.world.flags()


def test_a_job_whose_log_cannot_be_written_saves_and_is_requeued(job):
    """The quota of $HOME is full when the time-limit warning comes: the hours before it must not be lost."""
    job.world.behave(s2_train_baseline=SLOW)
    process = job.start(stdout="/dev/full")
    job.until_begun()
    process.send_signal(signal.SIGUSR1)
    deadline = time.monotonic() + 30
    while not job.calls.exists():
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.1)
    process.kill()
    process.wait()
    assert job.calls.read_text() == "requeue 77\n" and 0 < len(job.units()) < 60


@pytest.mark.parametrize(("restarts", "requeued"), [(0, True), (5, False)])
def test_restarts_are_those_of_this_job(job, restarts, requeued):
    """SLURM_RESTART_COUNT may be that of the job from whose shell this one was submitted."""
    job.answer(restarts=restarts)
    job.world.behave(s2_train_baseline=SLOW)
    process = job.start(SLURM_RESTART_COUNT=str(5 - restarts))
    job.until_begun()
    process.send_signal(signal.SIGUSR1)
    deadline = time.monotonic() + 30
    while not job.calls.exists() and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    process.kill()
    process.wait()
    assert job.calls.exists() == requeued
    assert {json.loads(unit)["restarts"] for unit in job.units()} == {str(restarts)}
    assert ("requeue 1 of 5" if requeued else "it was 5 times already") in job.log()


def test_variables_of_somebody_elses_array_make_no_part_of_a_plain_job(job):
    job.world.behave(s2_train_baseline={"units": 4, "seconds": 0})
    assert job.start(**ARRAY).wait(60) == 0
    assert "stage_2_train_baseline_seed42" in job.world.flags() and len(job.units()) == 4
    assert "array variables without --shards" in job.log() and "job 77:" in job.log()


def test_a_task_that_is_told_its_shards_does_its_own(job):
    job.world.behave(s2_train_baseline={"units": 4, "seconds": 0})
    assert job.start("--shards", "2", **ARRAY).wait(60) == 0
    assert len(job.units()) == 2 and not job.world.flags() & {"stage_2_train_baseline_seed42"}
    log = "".join(path.read_text() for path in (job.world.checkout / "logs").glob("job_2_baseline_9_1.out"))
    assert "--shard 1/2" in log and "still to come: 0" in log


@pytest.mark.parametrize("arguments", ["", " --seed 42 --force"])
def test_a_wrapper_that_was_submitted_through_a_link_finds_its_checkout(job, arguments):
    link = job.root / "elsewhere" / "my eval.sh"
    link.symlink_to(job.world.checkout / "jobs" / job.wrapper)
    job.answer(command=f"{link}{arguments}")
    assert job.start().wait(60) == 0
    assert "stage_2_train_baseline_seed42" in job.world.flags()


def test_a_link_that_is_run_by_hand_in_an_allocation_is_no_batch_job(job):
    link = job.root / "elsewhere" / "eval.sh"
    link.symlink_to(job.world.checkout / "jobs" / job.wrapper)
    done = subprocess.run(
        ["bash", str(link)], env=job.environment(), capture_output=True, text=True, cwd=job.root / "elsewhere"
    )
    assert done.returncode == 0 and "job here:" in done.stdout, done.stdout + done.stderr


def test_a_wrapper_that_finds_no_checkout_leaves_a_line_that_says_so(job):
    job.answer(command="/nowhere/job.sh")
    assert job.start(SLURM_SUBMIT_DIR=str(job.root / "elsewhere")).wait(60) == 2
    assert "checkout was not found" in (job.root / "elsewhere" / "mono_s2s_77.err").read_text()


def test_a_job_without_an_environment_refuses_instead_of_installing_one(job):
    """sbatch --export=NONE: nothing of the shell's environment arrives."""
    environment = {"PATH": f"{job.root / 'bin'}:/usr/bin:/bin", "SLURM_JOB_ID": "77", "HOME": str(job.root)}
    environment |= {name: job.world.environment[name] for name in ("SCRATCH", "PROJECT")}
    assert job.start(environment=environment).wait(60) == 2
    assert "--python" in job.log() and "--export=NONE" in job.log()
    assert not (job.world.checkout / ".venv").exists()


@pytest.mark.parametrize(
    "words", [["--sed", "4"], ["--seed"], ["--seed", "x"], ["--settings=/gone.json"], ["--force=x"]]
)
def test_a_wrong_option_of_a_job_that_was_submitted_alone_is_in_its_log(job, words):
    assert job.start(*words).wait(60) == 2
    assert f"{job.wrapper}: " in job.log() and words[0].split("=")[0].removeprefix("--") in job.log()


def test_options_of_a_wrapper_take_an_equals_sign(job):
    assert job.start("--seed=5", "--shards=1").wait(60) == 0
    assert "stage_2_train_baseline_seed5" in job.world.flags()


def test_filters_of_the_submitting_shell_do_not_reach_the_wrappers_questions(job):
    job.fake("squeue", '[[ -z "${SQUEUE_PARTITION:-}${SLURM_CLUSTERS:-}" ]] && echo RUNNING')
    job.world.behave(s2_train_baseline=SLOW)
    process = job.start(SQUEUE_PARTITION="atesting", SLURM_CLUSTERS="blanca")
    job.until_begun()
    process.send_signal(signal.SIGTERM)
    end = time.monotonic() + 30
    while not job.calls.exists():
        assert time.monotonic() < end and process.poll() is None, job.log()
        time.sleep(0.1)
    process.terminate()
    process.wait(60)


def test_a_job_whose_log_directory_was_removed_makes_it_again(job):
    shutil.rmtree(job.world.checkout / "logs", ignore_errors=True)
    assert job.start().wait(60) == 0
    assert "exit status 0" in job.log()


def test_cdpath_does_not_decide_where_things_are(job):
    (job.root / "elsewhere" / "jobs").mkdir()
    done = subprocess.run(
        ["bash", f"jobs/{job.wrapper}"],
        env=job.world.environment | {"CDPATH": str(job.root / "elsewhere")},
        capture_output=True,
        text=True,
        cwd=job.world.checkout,
    )
    assert done.returncode == 0, done.stderr


LAUNCH = {"WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29511",
          "TORCHELASTIC_RUN_ID": "x", "ACCELERATE_MIXED_PRECISION": "bf16"}  # fmt: skip


def test_a_stage_is_one_process_whatever_the_shell_says(monkeypatch, tmp_path):
    """With these variables torch waits for a second process for ever, deaf to SIGTERM."""
    for name in [name for name in os.environ if name.startswith("MONO_S2S_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    for name, value in LAUNCH.items():
        monkeypatch.setenv(name, value)
    settings = runner.load_settings().replaced(SCRATCH_DIR=str(tmp_path / "s"), PROJECT_DIR=str(tmp_path / "p"))
    monkeypatch.setattr(runner, "load_settings", lambda: settings)
    seen: list[set[str]] = []
    runner.run_stage(0, lambda context: seen.append(set(os.environ) & set(LAUNCH)), [])
    assert seen == [set()]
