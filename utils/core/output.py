"""Standard output whose reader may go away, as in `command | head`. Standard library only."""

from __future__ import annotations

import os
import sys
from typing import Any


class _Forgiving:
    """Standard output that goes nowhere once its reader is gone, so that the work behind it is done to the end."""

    def __init__(self, stream: Any, errors: type[OSError]) -> None:
        self._stream, self._errors = stream, errors

    def write(self, text: str) -> int:
        try:
            return int(self._stream.write(text))
        except self._errors:
            quiet_end()
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except self._errors:
            quiet_end()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def open_closed_streams() -> None:
    """Give a process that was started with `>&-` or `<&-` /dev/null there instead.

    Otherwise the next file that it opens would become its standard output, and that of libraries.
    """
    for descriptor in (0, 1, 2):  # the lowest free number is what open() returns
        try:
            os.fstat(descriptor)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    for name, descriptor, mode in (("stdin", 0, "r"), ("stdout", 1, "w"), ("stderr", 2, "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(descriptor, mode, encoding="utf-8", closefd=False))


def keep_working_without_reader(errors: type[OSError] = BrokenPipeError) -> None:
    """From here on a closed pipe behind standard output is no error; with OSError, a log on a full disk neither."""
    if sys.stdout is not None and not isinstance(sys.stdout, _Forgiving):
        sys.stdout = _Forgiving(sys.stdout, errors)


def quiet_end() -> int:
    """Point standard output at /dev/null, where what is buffered may still go; the exit code is 0."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.close(nowhere)
    return 0


def drop_what_cannot_be_written() -> None:
    """At the end of a process: a log on a full disk must not turn its exit code into Python's 120."""
    for stream, descriptor in ((sys.stdout, 1), (sys.stderr, 2)):
        try:
            if stream is not None:
                stream.flush()
        except OSError:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, descriptor)
            os.close(nowhere)
