"""Durations, sizes and lines as people read them; messages of the operating system with the remedy that fits."""

import datetime
import errno
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from utils.core.errors import explain
from utils.core.text import byte_size, duration, last_line, lines_of, one_line, slurm_time, tail_of


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (0.9, "0 s"), (59.9, "59 s"), (60, "0:01:00"), (185, "0:03:05"), (3600, "1:00:00"), (-3, "0 s")],
)
def test_durations(seconds, text):
    assert duration(seconds) == text


@given(st.integers(60, 10**6))
def test_a_duration_says_the_seconds_it_was_given(seconds):
    hours, minutes, rest = (int(part) for part in duration(seconds).split(":"))
    assert datetime.timedelta(hours=hours, minutes=minutes, seconds=rest).total_seconds() == seconds


def test_time_limits_are_as_slurm_writes_them():
    assert [slurm_time(minutes) for minutes in (15, 720, 6000)] == ["00:15:00", "12:00:00", "100:00:00"]


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 KB"), (99_940, "99.9 KB"), (99_960, "100 KB"),
     (999_499, "999 KB"), (999_501, "1.0 MB"), (242e6, "242 MB"),
     (1.5e9, "1.5 GB"), (2e15, "2000.0 TB")],
)  # fmt: skip
def test_sizes(size, text):
    assert byte_size(size) == text


def test_an_error_is_one_line():
    assert one_line(ValueError("a\n  b\tc")) == "a b c"
    assert one_line(KeyError()) == "KeyError"
    assert one_line("x" * 500) == "x" * 297 + "..."


def test_the_last_line_of_a_progress_bar_is_its_last_state():
    assert last_line("start\n 10%|#\r 90%|##\r\n\n  \n") == "90%|##"
    assert last_line(" \r\n", default="nothing") == "nothing"
    assert lines_of("a\r\nb\r c \n\n") == ["a", "b", "c"]


def test_the_tail_of_a_log_survives_bytes_that_are_no_text(tmp_path):
    log = tmp_path / "a.log"
    log.write_bytes(b"x" * 100 + b"\xe9nd\n")
    assert tail_of(log, 5) == "\ufffdnd\n".rjust(5, "x") and len(tail_of(log)) == 104
    with pytest.raises(FileNotFoundError):
        tail_of(tmp_path / "none.log")


@pytest.mark.parametrize("number", sorted(errno.errorcode))
def test_only_a_full_disk_is_told_to_make_room(number):
    text = explain(OSError(number, os.strerror(number), "/scratch/a"))
    assert ("Make room" in text) == (number in (errno.ENOSPC, errno.EDQUOT))
    assert text.startswith(f"/scratch/a: {os.strerror(number)}.") and "\n" not in text and "None" not in text


def test_an_error_without_a_file_says_what_was_done():
    assert explain(OSError(errno.ENOSPC, "No space left on device"), "the run's record").startswith(
        "the run's record: "
    )
    assert explain(OSError("odd")) == "odd."
