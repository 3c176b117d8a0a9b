"""What the calling shell brings along does not decide: CDPATH, locale, nohup, closed pipes, odd bytes, lost Pythons."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.shell_world import ROOT, World

pytestmark = pytest.mark.slow

COMMANDS = sorted(path.name for path in ROOT.glob("*.sh"))
LOOKING = [
    ["run_all.sh", "--local", "--dry-run"],
    ["run_multi_seed.sh", "1", "2", "--local", "--dry-run"],
    ["check_training_status.sh"],
    ["diagnose_and_recover.sh"],
    ["clean_all.sh", "--force"],
    ["clean_checkpoints.sh", "--force"],
]
WIDE = "9" * 5000


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> World:
    return World(tmp_path_factory.mktemp("surroundings"))


@pytest.mark.parametrize("command", COMMANDS)
def test_cdpath_does_not_lead_elsewhere(world, tmp_path, command):
    (tmp_path / world.checkout.name / "scripts").mkdir(parents=True)
    done = subprocess.run(
        ["bash", f"{world.checkout.name}/{command}", "--help"],
        cwd=world.root,
        env=world.environment | {"CDPATH": str(tmp_path), "PYTHONINSPECT": "1", "BASH_FUNC_cd%%": LISTING_CD},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 and done.stdout.startswith("usage") and not done.stderr


LISTING_CD = '() { builtin cd "$@" && ls; }'  # an exported function


@pytest.mark.parametrize("command", LOOKING, ids=lambda words: words[0])
@pytest.mark.parametrize("locale", ["C", "POSIX", "C.UTF-8", "en_US.ISO-8859-1"])
def test_any_locale(world, command, locale):
    result = world.run(*command, LC_ALL=locale, LANG=locale, PYTHONUTF8="0", PYTHONCOERCECLOCALE="0")
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("command", LOOKING, ids=lambda words: words[0])
def test_a_reader_that_goes_away_is_no_error(world, command):
    done = subprocess.run(
        ["bash", "-c", 'set -o pipefail; "$@" | true', "-", str(world.checkout / command[0]), *command[1:]],
        env=world.environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 and not done.stderr, done.stderr


def test_a_run_whose_reader_goes_away_is_done_to_its_end(tmp_path):
    world = World(tmp_path)
    words = [str(world.checkout / "run_all.sh"), "--local", "--stop-stage", "1"]
    with subprocess.Popen(words, env=world.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as run:
        run.stdout.close()
        said = run.stderr.read().decode()
        assert run.wait(60) == 0, said
    assert "Traceback" not in said
    assert world.flags() == {"stage_0_setup", "stage_1_prepare_data"}


@pytest.mark.parametrize("command", COMMANDS)
def test_bytes_that_are_no_utf8_are_refused_in_one_line(world, command):
    path = str(world.checkout / command).encode()
    done = subprocess.run([path, b"caf\xe9"], env=world.environment, capture_output=True)
    said = done.stderr.decode()
    assert done.returncode == 2 and "UTF-8" in said and len(said.splitlines()) == 1


@pytest.mark.parametrize("seed", ["-1", "1.5", "٤٢", "2147483648", "99999999999999999999", WIDE], ids=lambda s: s[:12])
def test_every_command_reads_seeds_by_one_rule(world, seed):
    before = world.snapshot()
    for words in (
        ["run_all.sh", "--local", seed],
        ["run_multi_seed.sh", "--local", "1", seed],
        ["check_training_status.sh", seed],
        ["diagnose_and_recover.sh", seed],
        ["clean_all.sh", f"--seed={seed}"],
        ["clean_checkpoints.sh", seed],
        ["jobs/job_0_setup.sh", "--seed", seed],
        ["jobs/job_multi_seed_aggregate.sh", "--seeds", f"1,{seed}"],
    ):
        result = world.run(*words)
        assert result.returncode == 2, (words, result.stdout, result.stderr)
        assert f"seed {seed}: expected a whole number from 0 to 2147483647" in result.stderr, (words, result.stderr)
    assert world.snapshot() == before


@pytest.mark.parametrize("script", ["stage_2_train_baseline", "summarize", "show_attack", "aggregate_multi_seed"])
def test_scripts_read_seeds_by_the_same_rule(world, script):
    words = ["1", "2147483648"] if script == "aggregate_multi_seed" else ["--seed=2147483648"]
    words += ["text"] if script == "summarize" else []
    path = world.checkout / "scripts" / f"{script}.py"
    done = subprocess.run([sys.executable, path, *words], env=world.environment, capture_output=True, text=True)
    assert done.returncode == 2
    assert "seed 2147483648: expected a whole number from 0 to 2147483647" in done.stderr


@pytest.mark.parametrize("variable", ["VIRTUAL_ENV", "CONDA_PREFIX", "MONO_S2S_PYTHON"])
def test_an_environment_that_was_deleted_is_named(world, variable):
    gone = "/nowhere/venv/bin/python" if variable == "MONO_S2S_PYTHON" else "/nowhere/venv"
    environment = {"MONO_S2S_PYTHON": "", "VIRTUAL_ENV": "", "CONDA_PREFIX": "", variable: gone}
    assert world.run("check_training_status.sh", **environment).returncode == 0
    result = world.all("--local", **environment)
    assert result.returncode == 2 and "/nowhere/venv/bin/python, does not exist" in result.stderr
    assert "lacks packages" not in result.stderr and not world.work.exists()


@pytest.mark.parametrize("words", [["run_all.sh"], ["run_multi_seed.sh", "42", "43"]], ids=lambda words: words[0])
def test_under_nohup_a_closed_terminal_stops_nothing(tmp_path, words):
    world = World(tmp_path)
    world.behave(s2_train_baseline={"units": 12, "seconds": 0.2})
    command = [str(world.checkout / words[0]), *words[1:], "--local"]
    run = subprocess.Popen(
        command,
        env=world.environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN),
    )
    units = world.work / "seed_42" / "train_baseline_units" / "units.jsonl"
    end = time.monotonic() + 60
    while not units.exists():
        assert time.monotonic() < end and run.poll() is None
        time.sleep(0.1)
    os.killpg(run.pid, signal.SIGHUP)
    time.sleep(1)
    assert run.poll() is None, "it ended with its terminal"
    os.killpg(run.pid, signal.SIGTERM)
    run.wait(60)


def test_a_directory_with_odd_bytes_is_refused_in_one_line(world):
    environment = {os.fsencode(name): os.fsencode(value) for name, value in world.environment.items()}
    environment[b"SCRATCH"] = os.fsencode(str(Path(world.root))) + b"/caf\xe9"
    done = subprocess.run([world.checkout / "run_all.sh", "--local", "--dry-run"], env=environment, capture_output=True)
    said = done.stderr.decode()
    assert done.returncode in (0, 2) and "Traceback" not in said, said
