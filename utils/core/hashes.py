"""Content hashes of files and directories that are computed once: a stamp tells whether anything may have changed.

A stamp is made of names, sizes and the times of modification and change, as git uses them: a copy that keeps size and
date (cp -p, rsync -t) has another time of change. What has the stamp that it had when it was hashed is not read again:
gigabytes in the prepared data and the checkpoints would be, many times in one command.
"""

from __future__ import annotations

import atexit
import contextlib
import hashlib
import json
import math
import time
from dataclasses import dataclass
from pathlib import Path

from utils.core.errors import InputError
from utils.core.files import sha256_of, write_json
from utils.core.fingerprint import fingerprint


@dataclass(frozen=True)
class Artifact:
    """A file or directory as it was: `sha256` (64 hex digits) of its content, `stamp` of its names, sizes and times.

    content: of a result file, names its results and the weights they are about: the same file written again at another
    time has the same. "" of others.
    """

    sha256: str
    stamp: str
    content: str = ""


WEIGHT_PATTERNS = ("*.safetensors", "*.bin")
SMALL = 10**6  # bytes; an allowance is not asked for such a file
SECONDS_BETWEEN_WRITES = 1.0  # a command that compares hundreds of small files writes its memory of them now and then

_hashed: dict[tuple[Path, str], str] = {}  # of this process, by path and stamp


def stamp_of(path: Path) -> str:
    """Stamp of a file, or of every file below a directory. FileNotFoundError where there is none."""
    files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
    stats = [(file.relative_to(path).as_posix(), file.stat()) for file in files]
    return fingerprint([(name, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns) for name, stat in stats])


def describe(path: Path) -> Artifact:
    """The file or directory as it is now."""
    stamp = stamp_of(path)
    if (path, stamp) not in _hashed:
        _hashed[path, stamp] = sha256_of(path)
    return Artifact(_hashed[path, stamp], stamp)


def describe_anew(path: Path) -> Artifact:
    """`describe`, but certainly read: for what was just written, perhaps twice within one tick of the clock."""
    stamp = stamp_of(path)
    _hashed[path, stamp] = sha256_of(path)
    return Artifact(_hashed[path, stamp], stamp)


@dataclass
class Allowance:
    """How many more bytes a command may read to compare contents: a status is wanted now, not after 12 GB."""

    bytes_left: int
    used: bool = False

    def permits(self, size: int) -> bool:
        """Whether so many bytes may be read; they are taken off. The first ones always may, or they never would be."""
        if self.used and size > self.bytes_left:
            return False
        self.bytes_left, self.used = self.bytes_left - size, True
        return True


def is_unchanged(path: Path, artifact: Artifact, known: Path, allowance: Allowance | None = None) -> bool | None:
    """Whether `path` has the content of `artifact`: by its stamp, else by its hash; None where that may not be read.

    known: a JSON file of stamps whose hash was compared before (after `touch` or `cp -r`), so that later commands need
    not read the content again. It is a cache: written where this user may write, made anew when it is damaged.
    allowance: None reads whatever is needed.
    """
    stamp = stamp_of(path)
    if stamp == artifact.stamp:
        return True
    if (path, stamp) not in _hashed:
        remembered = _read(known)
        entry = remembered.get(str(path), {})
        if isinstance(entry, dict) and entry.get("stamp") == stamp and isinstance(entry.get("sha256"), str):
            _hashed[path, stamp] = entry["sha256"]
        elif allowance and (size := _size_of(path)) >= SMALL and not allowance.permits(size):
            return None
        else:
            _hashed[path, stamp] = sha256_of(path)
            _remember(known, {str(path): {"stamp": stamp, "sha256": _hashed[path, stamp]}})
    return _hashed[path, stamp] == artifact.sha256


def _size_of(path: Path) -> int:
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())


_unwritten: dict[Path, dict[str, object]] = {}  # what this process knows beyond the file, by the file
_written: dict[Path, float] = {}  # when this process wrote the file last


def _remember(known: Path, entries: dict[str, object]) -> None:
    _unwritten.setdefault(known, {}).update(entries)
    if time.monotonic() - _written.get(known, -math.inf) >= SECONDS_BETWEEN_WRITES:
        _write(known)


def _write(known: Path) -> None:
    with contextlib.suppress(OSError):  # somebody else's directory: the next command hashes again
        if known.parent.is_dir():  # it may have been deleted meanwhile
            write_json(known, _read(known))
    _unwritten.pop(known, None)
    _written[known] = time.monotonic()


@atexit.register
def _write_all() -> None:
    for known in list(_unwritten):
        _write(known)


def _read(known: Path) -> dict[str, object]:
    try:
        content = json.loads(known.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        content = {}
    return (content if isinstance(content, dict) else {}) | _unwritten.get(known, {})


def weights_sha256(directory: Path) -> str:
    """Hex sha256 of the weight file(s) in a model directory. InputError where there are none."""
    for pattern in WEIGHT_PATTERNS:
        hashes = [sha256_of(file) for file in sorted(Path(directory).glob(pattern))]
        if len(hashes) == 1:
            return hashes[0]
        if hashes:
            return hashlib.sha256("".join(hashes).encode()).hexdigest()
    raise InputError(f"no model weights in {directory}")
