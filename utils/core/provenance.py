"""Where a number comes from: code revision, versions, device, host, job. Torch is only looked at where it is loaded."""

from __future__ import annotations

import functools
import os
import platform
import shlex
import socket
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

from utils.core.environment import for_git
from utils.core.paths import CHECKOUT
from utils.core.text import one_line

PACKAGES = (
    "torch",
    "transformers",
    "accelerate",
    "datasets",
    "tokenizers",
    "sentencepiece",
    "safetensors",
    "rouge-score",
    "nltk",  # its stemmer decides ROUGE
    "numpy",
    "scipy",
    "pandas",
    "pyarrow",
    "matplotlib",
)


@functools.cache
def code_revision() -> dict[str, Any]:
    """`commit` (40 hex digits, or "unknown") and `dirty` (whether tracked files differ; None if unknown).

    Only a repository whose top level is this checkout counts: a copy without git that lies inside somebody's repository
    must not be called by that one's commit.
    """
    return _revision()[0]


def why_no_revision() -> str:
    """Why the commit is unknown, and what helps; "" where it is known."""
    return _revision()[1]


@functools.cache
def _revision() -> tuple[dict[str, Any], str]:
    unknown = {"commit": "unknown", "dirty": None}
    try:
        top = _git("rev-parse", "--show-toplevel")
        if not Path(top).samefile(CHECKOUT):
            return unknown, f"no git checkout: a copy inside the repository {top}. Use git clone"
        dirty = bool(_git("status", "--porcelain", "--untracked-files=no"))
        return {"commit": _git("rev-parse", "HEAD"), "dirty": dirty}, ""
    except FileNotFoundError:
        return unknown, "git is not installed here"
    except subprocess.CalledProcessError as error:
        if "dubious ownership" in error.stderr:
            fix = f"git config --global --add safe.directory {shlex.quote(str(CHECKOUT))}"
            return unknown, f"git refuses a checkout that another user owns (dubious ownership). If you trust it: {fix}"
        if "not a git repository" in error.stderr:
            return unknown, "no git checkout: results will not name their revision. Use git clone"
        return unknown, f"git fails: {one_line(error.stderr)}"
    except (OSError, subprocess.SubprocessError) as error:
        return unknown, f"git fails: {one_line(error)}"


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(CHECKOUT), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30, env=for_git())
    return done.stdout.strip()


def versions() -> dict[str, str]:
    """Python and the packages that results depend on."""
    installed = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            installed[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            installed[name] = "not installed"
    return installed


def device_name() -> str:
    """Name of the GPU, or of the processor where there is none (or torch is not loaded)."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        return torch.cuda.get_device_name(0)
    return f"CPU {processor_name()}"


def processor_name() -> str:
    """Such as "Intel(R) Xeon(R) Gold 6248R, 24 cores"; the architecture where Linux does not tell more."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return f"{next(names, platform.machine())}, {os.cpu_count()} cores"


def cudnn_attention() -> bool | None:
    """Whether torch may use cuDNN's attention, which is switched off here; None where torch is not loaded."""
    torch = sys.modules.get("torch")
    return None if torch is None else torch.backends.cuda.cudnn_sdp_enabled()


def new_run_id(seed: int, moment: float) -> str:
    """Such as 20260129_101530_seed42, in local time."""
    return time.strftime("%Y%m%d_%H%M%S", time.localtime(moment)) + f"_seed{seed}"


def timestamp(moment: float) -> str:
    """Such as 2026-01-29 10:15:30, in local time."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(moment))


def surroundings() -> dict[str, Any]:
    """Code, versions, device, host and SLURM job of this process, JSON-ready."""
    return {
        "code": code_revision(),
        "versions": versions(),
        "device": device_name(),
        "cudnn_attention": cudnn_attention(),
        "host": socket.gethostname(),
        "slurm_job_id": os.environ.get("SLURM_JOB_ID"),
        "slurm_restarts": int(os.environ.get("SLURM_RESTART_COUNT", "0") or 0),
    }
