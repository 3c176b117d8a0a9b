"""The ends of logs: what was written since the last start, and what of it reaches a terminal. Torch-free."""

from __future__ import annotations

import re
from pathlib import Path

from utils.core.text import lines_of, tail_of

STARTS = (": starts: ", ": host ")  # what a stage and a wrapper write first, each time they start
# C0 and C1 control characters, and those that turn the direction of writing: they could redraw the screen.
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]|\x1b\\[[0-9;?]*[ -/]*[@-~]")


def printable(text: object) -> str:
    """`text` as a terminal may show it: control characters become "?", tabs and newlines stay."""
    without_colours = re.sub("\x1b\\[[0-9;]*m", "", str(text))
    return _CONTROL.sub("?", without_colours).encode("utf-8", "replace").decode()


def lines_since_start(path: Path) -> list[str]:
    """The lines of a log since its stage or wrapper started last; none where it cannot be read."""
    try:
        lines = lines_of(tail_of(path))
    except OSError:
        return []
    starts = [number for number, line in enumerate(lines) if any(mark in line for mark in STARTS)]
    return lines[starts[-1] :] if starts else lines


def last_words(path: Path) -> str:
    """The last ERROR since the last start, or the last line."""
    lines = lines_since_start(path)
    errors = [line for line in lines if " ERROR " in line]
    return (errors or lines or ["it is empty" if path.exists() else "no log"])[-1]
