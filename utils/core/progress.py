"""Progress bars: a live bar on a terminal, one plain line now and then in a log file."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterable
from typing import Any

from tqdm import tqdm

SECONDS_BETWEEN_LOG_LINES = 30.0


class _Lines:
    """Standard error for a bar in a log file: each of its states is a line, where a terminal writes over the last."""

    def write(self, text: str) -> None:
        state = text.replace("\r", "").strip()
        if state:
            with contextlib.suppress(OSError):  # a log on a full disk must not end hours of work
                sys.stderr.write(state + "\n")

    def flush(self) -> None:
        with contextlib.suppress(OSError):
            sys.stderr.flush()


def progress(iterable: Iterable[Any] | None = None, *, label: str, total: int | None = None, unit: str = "it") -> tqdm:
    """A tqdm bar named `label` that shows rate and time left; `set_postfix` adds running figures.

    An empty `label` shows nothing: work that is a part of another bar's.
    """
    terminal = sys.stderr.isatty()
    return tqdm(
        iterable,
        desc=label,
        total=total,
        unit=unit,
        dynamic_ncols=terminal,
        ascii=not terminal,
        mininterval=0.2 if terminal else SECONDS_BETWEEN_LOG_LINES,
        file=sys.stderr if terminal else _Lines(),
        # tqdm reads TQDM_DISABLE only where `disable` is not given; None would also be off where stderr is no terminal,
        # and a job would say nothing for hours.
        disable=not label or bool(os.environ.get("TQDM_DISABLE")),
    )
