"""Where a number comes from: code revision, versions, device, host, job. Torch is only looked at where it is loaded."""

from __future__ import annotations

import functools
import os
import platform
import socket
import subprocess
import sys
import time
from importlib import metadata
from typing import Any

from utils.core.paths import CHECKOUT

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
)


@functools.cache
def code_revision() -> dict[str, Any]:
    """`commit` (40 hex digits; "unknown" outside git) and `dirty` (tracked files differ; None if unknown)."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(CHECKOUT), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout.strip()

    try:
        return {
            "commit": git("rev-parse", "HEAD"),
            "dirty": bool(git("status", "--porcelain", "--untracked-files=no")),
        }
    except (OSError, subprocess.SubprocessError):
        return {"commit": "unknown", "dirty": None}


def versions() -> dict[str, str]:
    """Python and the packages that results depend on."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def device_name() -> str:
    """Name of the GPU, or of the processor where there is none (or torch is not loaded)."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        return torch.cuda.get_device_name(0)
    return f"CPU {platform.processor() or platform.machine()}, {os.cpu_count()} cores"


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
        "host": socket.gethostname(),
        "slurm_job_id": os.environ.get("SLURM_JOB_ID"),
        "slurm_restarts": int(os.environ.get("SLURM_RESTART_COUNT", "0") or 0),
    }
