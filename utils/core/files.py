"""Files and directories that are either complete or not there: temporary name, fsync, rename. Torch-free."""

from __future__ import annotations

import contextlib
import errno
import glob
import hashlib
import json
import os
import shutil
import socket
import time
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

TEMPORARY_SUFFIX = ".tmp"
ABANDONED_SECONDS = 2 * 86400  # a temporary directory of another host that nobody touched for this long is dead
# Other device, no links here (FAT, some FUSE and network file systems), too many links, links to it forbidden.
_NO_LINKS = {errno.EXDEV, errno.EPERM, errno.EACCES, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}


def write_text(path: Path, text: str) -> None:
    """Replace `path` by `text` atomically; after a crash the old file or the new one is there, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}{TEMPORARY_SUFFIX}")
    try:
        with temporary.open("w", encoding="utf-8") as handle:
            handle.write(text)
            handle.flush()
            os.fsync(handle.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


def copy_file(source: Path, target: Path) -> None:
    """Replace `target` by a copy of `source` atomically."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{os.getpid()}{TEMPORARY_SUFFIX}")
    try:
        shutil.copyfile(source, temporary)
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """`write_text` of `value` as JSON. NaN and infinity are refused (ValueError): they are not JSON."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def write_jsonl(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Replace `path` atomically by one JSON object a line."""
    write_text(path, "".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows))


def append_jsonl(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Append `rows` in one write and fsync. A kill in the middle leaves at most one torn last line.

    The torn line of an earlier kill is cut off first, so that new rows never glue themselves to it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    data = "".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows).encode()
    with path.open("ab+") as handle:
        end = handle.seek(0, os.SEEK_END)
        if end:
            handle.seek(end - 1)
            if handle.read(1) != b"\n":
                handle.seek(0)
                whole = handle.read().rfind(b"\n") + 1
                handle.truncate(whole)
        handle.seek(0, os.SEEK_END)
        handle.write(data)
        handle.flush()
        os.fsync(handle.fileno())


def read_jsonl(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of `path`; a torn last line (no newline) is left out, any other bad line raises ValueError."""
    with path.open("rb") as handle:
        for number, line in enumerate(handle, 1):
            if not line.endswith(b"\n"):
                return
            try:
                yield json.loads(line)
            except ValueError as error:
                raise ValueError(f"{path}, line {number}: not JSON ({error})") from error


def sha256_of(path: Path, *, without: str = "") -> str:
    """Hex sha256 of a file, or of a directory (every file below it by relative name and content, but for `without`)."""
    if path.is_dir():
        digest = hashlib.sha256()
        for file in sorted(p for p in path.rglob("*") if p.is_file() and p.name != without):
            digest.update(file.relative_to(path).as_posix().encode() + b"\0" + sha256_of(file).encode())
        return digest.hexdigest()
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest() if hasattr(hashlib, "file_digest") else _hash(handle)


def _hash(handle: Any) -> str:
    digest = hashlib.sha256()  # Python 3.10 has no hashlib.file_digest
    while block := handle.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()


def sync_directory(directory: Path) -> None:
    """fsync a directory, so that a rename in it survives a power cut (some network file systems refuse: fine)."""
    with contextlib.suppress(OSError):
        handle = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


@contextlib.contextmanager
def new_directory(path: Path) -> Iterator[Path]:
    """A temporary directory beside `path` that takes its place when the block ends well, and vanishes otherwise.

    Two processes may do this at once: each works in a directory of its own, and the last one to finish stays. What
    killed processes left behind is removed first.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(path)
    temporary = path.with_name(f".{path.name}.{_host()}.{os.getpid()}.{uuid.uuid4().hex[:8]}{TEMPORARY_SUFFIX}")
    temporary.mkdir()
    try:
        yield temporary
        for file in temporary.rglob("*"):
            if file.is_file():
                with file.open("rb") as handle:
                    os.fsync(handle.fileno())
        _take_place(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _take_place(new: Path, path: Path) -> None:
    old = new.with_name(new.name.removesuffix(TEMPORARY_SUFFIX) + f".old{TEMPORARY_SUFFIX}")
    while True:
        with contextlib.suppress(FileNotFoundError):
            path.rename(old)
        try:
            new.rename(path)
            break
        except OSError:  # another process put its directory there between the two renames: ours replaces it in turn
            if not path.exists():
                raise
            shutil.rmtree(old, ignore_errors=True)
    shutil.rmtree(old, ignore_errors=True)
    sync_directory(path.parent)


def _remove_abandoned(path: Path) -> None:
    for left in path.parent.glob(f".{glob.escape(path.name)}.*{TEMPORARY_SUFFIX}"):
        host, _, pid = left.name.removeprefix(f".{path.name}.").partition(".")
        try:
            old = time.time() - left.stat().st_mtime > ABANDONED_SECONDS
        except FileNotFoundError:
            continue
        if old or (host == _host() and not Path(f"/proc/{pid.split('.')[0]}").exists()):
            shutil.rmtree(left, ignore_errors=True)


def _host() -> str:
    return socket.gethostname().replace(".", "-")


def link_or_copy(source: Path, target: Path) -> None:
    """`target` as a hard link to `source`; a copy where the file system, or a border between two, allows no link.

    For files that are only ever replaced, never written in place. OSError for anything else (disk full, no source).
    """
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        shutil.copyfile(source, target)
