"""One process at a time does a stage: two seeds that need the same data, or a job that was queued twice, take turns."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from utils.core.errors import Interrupted

POLL = 1.0  # seconds
_UNSUPPORTED = {errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS}


@contextlib.contextmanager
def taking_turns(path: Path, log: logging.Logger, stop_requested: Callable[[], bool]) -> Iterator[None]:
    """Hold the lock file `path`; wait for whoever holds it. Interrupted if asked to stop while waiting.

    The lock ends with its process, however that ends. On a file system without locks it says so and goes on.
    """
    with path.open("a") as handle:
        told = False
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if not told:
                    log.info("another process is at this stage: waiting for it")
                    told = True
            except OSError as error:
                if error.errno not in _UNSUPPORTED:
                    raise
                log.warning("%s: this file system has no locks (%s); start a stage only once", path, error.strerror)
                break
            if stop_requested():
                raise Interrupted
            time.sleep(POLL)
        yield
