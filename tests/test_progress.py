"""Progress is seen in a job's log file too, where stderr is no terminal."""

from __future__ import annotations

import pytest

from utils.core.progress import progress


@pytest.mark.parametrize(("what", "shown"), [("baseline: HotFlip", True), ("", False)])
def test_a_log_file_gets_the_bar_unless_it_has_no_name(what, shown, capfd):
    for _ in progress(range(3), what=what):
        pass
    lines = capfd.readouterr().err.split("\n")
    assert any(line.startswith(f"{what}: 100%|") for line in lines) == shown
    assert not any("\r" in line for line in lines)
