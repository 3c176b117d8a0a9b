"""The one file lock: a process waits for it or is refused, and anybody may ask whether it is held. Torch-free.

The lock is flock(2) on a file that stays: it ends with the process that holds it, however that ends. Some cluster file
systems have no flock (Lustre mounted without `-o flock`): work then continues unprotected, with one warning that says
what two processes could do to each other.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from utils.core.errors import Interrupted

# EINVAL: our call is valid, so it is the file system; 524 is ENOTSUPP, the kernel's own, which some drivers let out.
_UNSUPPORTED = {errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL, 524}
_FIRST_PAUSE, _LONGEST_PAUSE = 0.02, 1.0  # seconds between two tries; doubles from the first to the longest
_PATIENCE = 0.2  # seconds; a probe (is_locked) holds the lock for microseconds, which must not look like an owner

_warned: set[tuple[Path, str]] = set()


class LockHeld(Exception):
    """Another process holds the lock, and the caller did not want to wait."""

    def __init__(self, path: Path) -> None:
        super().__init__(f"another process holds {path}")
        self.path = path


@contextlib.contextmanager
def file_lock(
    path: Path,
    *,
    unprotected: str,
    wait: bool = True,
    on_wait: Callable[[], object] = lambda: None,
    stop_requested: Callable[[], bool] = lambda: False,
    log: logging.Logger | None = None,
) -> Iterator[bool]:
    """Hold the lock file `path` (made where it is missing); yields whether another process had it first.

    unprotected: what may happen where the file system has no locks, a clause such as "two runs at once would mix
    their records"; it is logged as a warning, once for each file, and the block runs without protection.
    wait: False raises LockHeld where another process has the lock. on_wait: called once before waiting.
    stop_requested: asked while waiting; Interrupted where it turns true. OSError: the file cannot be made or opened.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    waited = told = False
    started, pause = time.monotonic(), _FIRST_PAUSE
    while True:
        with path.open("a") as handle:
            taken = _try(handle, fcntl.LOCK_EX)
            if taken is None:
                _warn(path, unprotected, log)
            # A lock file that was deleted and made again meanwhile is another lock: this one protects nothing.
            if taken is None or (taken and _same_file(handle, path)):
                yield waited
                return
        if taken:
            continue
        waited = True
        if time.monotonic() - started > _PATIENCE:
            if not wait:
                raise LockHeld(path)
            if not told:
                told = True
                on_wait()
        if stop_requested():
            raise Interrupted
        time.sleep(pause)
        pause = min(2 * pause, _LONGEST_PAUSE if wait else _PATIENCE / 4)


def is_locked(path: Path) -> bool | None:
    """Whether a process holds the lock file `path`; None where nothing tells (no locks here, or not our file to read).

    Makes no file.
    """
    try:
        with path.open("r") as handle:
            free = _try(handle, fcntl.LOCK_SH)
    except FileNotFoundError:
        return False
    except PermissionError:
        return None
    return None if free is None else not free


def _try(handle: IO[str], kind: int) -> bool | None:
    """Whether the lock was free and is now held by `handle`; None where the file system has no locks."""
    try:
        fcntl.flock(handle, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno in _UNSUPPORTED:
            return None
        raise
    return True


def _same_file(handle: IO[str], path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _warn(path: Path, unprotected: str, log: logging.Logger | None) -> None:
    if (path, unprotected) not in _warned:
        _warned.add((path, unprotected))
        (log or logging.getLogger("mono_s2s.locks")).warning(
            "%s: this file system has no file locks, so %s.", path.parent, unprotected
        )
