"""One line of validate_setup.sh's table. Torch-free."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass

from utils.core.settings import as_typed
from utils.core.text import printable

OK, WARNING, PROBLEM = "ok", "warning", "PROBLEM"
COLOURS = {OK: "\033[32m", WARNING: "\033[33m", PROBLEM: "\033[31m"}


@dataclass(frozen=True)
class Check:
    """name: what was looked at. state: OK, WARNING or PROBLEM. text: what was found. fix: what to do, "" if nothing."""

    state: str
    name: str
    text: str
    fix: str = ""

    def show(self) -> None:
        """Print it; in colour on a terminal."""
        colour = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
        word = f"{COLOURS[self.state]}{self.state:<8}\033[0m" if colour else f"{self.state:<8}"
        print(f"{word} {self.name:<18} {as_typed(printable(self.text))}", flush=True)
        if self.fix:
            print(f"{'':<8} {'':<18} -> {as_typed(printable(self.fix))}", flush=True)
