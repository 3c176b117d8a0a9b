"""Which Python runs the stages: scripts/environment.sh knows, and makes .venv where nobody chose one."""

from __future__ import annotations

import subprocess

from utils.core.errors import StageError, UsageError
from utils.core.paths import CHECKOUT

SCRIPT = CHECKOUT / "scripts" / "environment.sh"


def chosen_python() -> str:
    """The interpreter that the user chose (MONO_S2S_PYTHON, an active environment, .venv); "" if there is none."""
    return _ask("--chosen")


def packages_python() -> str:
    """The interpreter with the packages, checked; makes .venv where none is chosen, which takes minutes."""
    return _ask()


def interpreter_for(executor: str, demo: bool) -> str:
    """The interpreter for a run. Jobs of the real experiment get one that the user chose; a run here may make .venv."""
    if executor == "slurm" and not demo and not chosen_python():
        raise UsageError("no environment: activate one that has the packages, or make .venv by scripts/environment.sh")
    return packages_python()


def _ask(*options: str) -> str:
    # Its messages and pip's go to our stderr while it works; a terminal's Ctrl-C ends it with us.
    done = subprocess.run(["bash", str(SCRIPT), *options], stdout=subprocess.PIPE, text=True)
    if done.returncode:
        kind = UsageError if done.returncode == UsageError.exit_code else StageError
        raise kind("no environment to run the stages in, see above.")
    return done.stdout.strip()
