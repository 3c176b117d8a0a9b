"""The ends of logs: what was written since the last start. Torch-free."""

from __future__ import annotations

from pathlib import Path

from utils.core.text import lines_of, tail_of

STARTS = (": starts: ", ": host ")  # what a stage and a wrapper write first, each time they start


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
