"""Requirements files: what an interpreter lacks, by its own version; the lock names every pin."""

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
