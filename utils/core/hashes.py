"""Content hashes of files and directories that are computed once: a stamp tells whether anything may have changed.

A stamp is made of names, sizes and modification times, as git and make use them. What has the stamp that it had when it
was hashed is not read again: gigabytes in the prepared data and the checkpoints would be, many times in one command.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from utils.core.errors import InputError
from utils.core.files import sha256_of, write_json
from utils.core.fingerprint import fingerprint


@dataclass(frozen=True)
class Artifact:
    """A file or directory as it was: `sha256` (64 hex digits) of its content, `stamp` of its names, sizes and times."""

    sha256: str
    stamp: str


WEIGHT_PATTERNS = ("*.safetensors", "*.bin")
_hashed: dict[tuple[Path, str], str] = {}  # of this process, by path and stamp


def stamp_of(path: Path) -> str:
    """Stamp of a file, or of every file below a directory. FileNotFoundError where there is none."""
    files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
    stats = [(file.relative_to(path).as_posix(), file.stat()) for file in files]
    return fingerprint([(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats])


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


def is_unchanged(path: Path, artifact: Artifact, known: Path) -> bool:
    """Whether `path` has the content of `artifact`: by its stamp, else by its hash.

    known: a JSON file of stamps whose hash was compared before (after `touch` or `cp -r`), so that later commands need
    not read the content again. It is a cache: written where this user may write, made anew when it is damaged.
    """
    stamp = stamp_of(path)
    if stamp == artifact.stamp:
        return True
    if (path, stamp) not in _hashed:
        remembered = _read(known)
        entry = remembered.get(str(path), {})
        if isinstance(entry, dict) and entry.get("stamp") == stamp and isinstance(entry.get("sha256"), str):
            _hashed[path, stamp] = entry["sha256"]
        else:
            _hashed[path, stamp] = sha256_of(path)
            with contextlib.suppress(OSError):  # somebody else's directory: the next command hashes again
                write_json(known, remembered | {str(path): {"stamp": stamp, "sha256": _hashed[path, stamp]}})
    return _hashed[path, stamp] == artifact.sha256


def _read(known: Path) -> dict[str, object]:
    try:
        content = json.loads(known.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def weights_sha256(directory: Path) -> str:
    """Hex sha256 of the weight file(s) in a model directory. InputError where there are none."""
    for pattern in WEIGHT_PATTERNS:
        hashes = [sha256_of(file) for file in sorted(Path(directory).glob(pattern))]
        if len(hashes) == 1:
            return hashes[0]
        if hashes:
            return hashlib.sha256("".join(hashes).encode()).hexdigest()
    raise InputError(f"no model weights in {directory}")
