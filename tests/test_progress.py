"""Progress is seen in a job's log file too, where stderr is no terminal."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from utils.core.progress import progress

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize(
    ("what", "off", "shown"), [("baseline: HotFlip", "", True), ("", "", False), ("baseline: HotFlip", "1", False)]
)
def test_a_log_file_gets_the_bar_unless_it_has_no_name_or_bars_are_off(what, off, shown, capfd, monkeypatch):
    monkeypatch.setenv("TQDM_DISABLE", off)
    for _ in progress(range(3), label=what):
        pass
    lines = capfd.readouterr().err.split("\n")
    assert any(line.startswith(f"{what}: 100%|") for line in lines) == shown
    assert not any("\r" in line for line in lines)


def test_a_log_on_a_full_disk_does_not_end_the_work():
    code = """
import utils.core.progress as p
from utils.core.output import drop_what_cannot_be_written, keep_working_without_reader
p.SECONDS_BETWEEN_LOG_LINES = 0.0
keep_working_without_reader(OSError)
print("a line")
for _ in p.progress(range(1000), label="work"):
    pass
print("done", file=open("result", "w"))
drop_what_cannot_be_written()
"""
    with tempfile.TemporaryDirectory() as folder, Path("/dev/full").open("w") as full:
        words = [sys.executable, "-c", code]
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        done = subprocess.run(words, cwd=folder, stdout=full, stderr=full, env=environment)
        assert (Path(folder) / "result").read_text() == "done\n" and done.returncode == 0
