"""Requirements files: what an interpreter lacks, by its own version; the lock names every pin."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from utils.core import packages

ROOT = Path(__file__).resolve().parents[1]
FILES = [ROOT / "requirements.txt", ROOT / "requirements-dev.txt"]


def lines(path: Path) -> list[Requirement]:
    """Every requirement of a file, as the packaging library reads it."""
    text = (line.split(" #")[0].strip() for line in path.read_text().splitlines())
    return [Requirement(line) for line in text if line and not line.startswith(("#", "-r"))]


@pytest.mark.parametrize("minor", [10, 11, 12])
def test_each_python_wants_the_pins_that_are_marked_for_it(monkeypatch, minor):
    monkeypatch.setattr(packages.sys, "version_info", (3, minor, 0))
    environment = {"python_version": f"3.{minor}"}
    expected = {
        item.name: str(item.specifier).removeprefix("==")
        for path in FILES
        for item in lines(path)
        if item.marker is None or item.marker.evaluate(environment)
    }
    assert packages.wanted(FILES[1]) == expected
    assert len(expected) == len({item.name for path in FILES for item in lines(path)})  # every package, in one version


@pytest.mark.parametrize("minor", [10, 11, 12])
def test_the_lock_holds_the_pinned_version_of_every_package(minor):
    environment = {
        "python_version": f"3.{minor}",
        "python_full_version": f"3.{minor}.4",
        "platform_machine": "x86_64",
        "sys_platform": "linux",
    }
    locked = {item.name.lower(): str(item.specifier) for item in lines(ROOT / "requirements.lock")
              if item.marker is None or item.marker.evaluate(environment)}  # fmt: skip
    for path in FILES:
        for item in lines(path):
            if item.marker is None or item.marker.evaluate(environment):
                assert locked[item.name.lower().replace("_", "-")] == str(item.specifier)
    for brought_along in ("absl-py", "regex", "fsspec", "six"):
        assert brought_along in locked


def test_what_is_lacking_is_named(tmp_path):
    file = tmp_path / "requirements.txt"
    file.write_text("torch==2.13.0\nno-such-package==1.0  # why\nnot-for-us==2; python_version < '3.1'\n")
    command = [sys.executable, "-m", "utils.core.packages", str(file)]
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert (result.returncode, result.stdout) == (1, "no-such-package\n")


@pytest.mark.parametrize(
    "words",
    [
        ["../test_dataset_loading.py"],
        ["verify_results.py", "."],
        ["benchmark.py", "training"],
        ["aggregate_multi_seed.py", "1", "2"],
        ["peer_attack.py", "--demo"],
        ["smoke_training.py"],
        ["stage_0_setup.py", "--seed", "1"],
    ],
    ids=lambda words: words[0],
)
def test_a_python_without_the_packages_is_told_in_one_line(words, tmp_path):
    places = {"SCRATCH": str(tmp_path / "scratch"), "PROJECT": str(tmp_path / "project")}
    done = subprocess.run(  # -S: without site-packages
        [sys.executable, "-S", ROOT / "scripts" / words[0], *words[1:]],
        env=os.environ | places, capture_output=True, text=True, cwd=tmp_path,
    )  # fmt: skip
    told = done.stdout + done.stderr  # a stage's log is its output
    assert done.returncode == 1 and "Traceback" not in told
    assert "No module named" in told.splitlines()[-1] and "pip install -r requirements.txt" in told.splitlines()[-1]


def test_a_module_of_our_own_that_is_gone_is_a_bug_with_its_traceback():
    done = subprocess.run(
        [sys.executable, "-c", "import utils, utils.nothing"], cwd=ROOT, capture_output=True, text=True
    )
    assert "Traceback" in done.stderr and "pip install" not in done.stderr
