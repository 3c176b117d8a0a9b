"""Small texts that many messages need: durations, sizes, one line of a longer text. Torch-free."""

from __future__ import annotations

import re
from pathlib import Path

TAIL_BYTES = 64 * 1024  # of a log: enough for the last traceback, small enough for a status of twenty seeds
_COLOURS = re.compile("\x1b\\[[0-9;]*m")
# Escape sequences; C0 and C1 controls but for tab and newline; halves of characters and noncharacters, which neither
# HTML nor UTF-8 can hold; and what turns the direction of writing, so that a name reads as another one.
_CONTROL = re.compile(
    "\x1b\\[[0-9;?]*[ -/]*[@-~]|[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]"
)


def duration(seconds: float) -> str:
    """Seconds for people: "12 s", "0:03:05", "102:03:05" (hours, minutes, seconds); parts of a second are dropped."""
    whole = max(0, int(seconds))
    if whole < 60:
        return f"{whole} s"
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"


def slurm_time(minutes: int) -> str:
    """Minutes as sbatch writes a time limit: 720 -> 12:00:00."""
    return f"{minutes // 60:02d}:{minutes % 60:02d}:00"


def byte_size(size: float) -> str:
    """Bytes for people, in powers of 1000 as disks are sold: "999 B", "1.5 GB", "242 MB"."""
    for unit in ("B", "KB", "MB", "GB"):
        digits = 0 if unit == "B" or size >= 99.95 else 1
        if round(size, digits) < 1000:
            return f"{size:.{digits}f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


def one_line(value: object, limit: int = 300) -> str:
    """The text of an error (or of anything) on one line, at most `limit` characters; an empty one says its type."""
    text = " ".join(str(value).split()) or type(value).__name__
    return text if len(text) <= limit else text[: limit - 3] + "..."


def printable(text: object) -> str:
    """The text as a terminal or a page may show it, whatever the data hold: a control character becomes "?"."""
    plain = _COLOURS.sub("", str(text)).replace("\r\n", "\n")
    return _CONTROL.sub("?", plain)


def lines_of(text: str) -> list[str]:
    """The lines with something in them, stripped; a progress bar that returns to its start makes a line each time."""
    return [line.strip() for line in text.replace("\r", "\n").splitlines() if line.strip()]


def first_line(error: object) -> str:
    """The first line with something in it of an error's text; its type where there is none."""
    return (lines_of(str(error)) or [type(error).__name__])[0]


def last_line(text: str, default: str = "") -> str:
    """The last line with something in it, stripped; `default` where there is none."""
    return (lines_of(text) or [default])[-1]


def tail_of(path: Path, size: int = TAIL_BYTES) -> str:
    """The last `size` bytes of a log as text (bytes that are no UTF-8 are replaced); OSError if it cannot be read."""
    with path.open("rb") as handle:
        handle.seek(max(0, path.stat().st_size - size))
        return handle.read().decode("utf-8", errors="replace")
