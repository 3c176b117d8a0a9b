"""Checkpoints on disk: `epoch_3/`, `step_4711/`, each whole or not there, the newest whole one found again.

A checkpoint is a directory that got its name last, with a `COMPLETE.json` that lists every file with size and hash.
`epoch_N/` is a plain `from_pretrained` model directory as well, and is kept; what training alone needs (optimizer,
schedule, random state) stays in the newest few.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from utils.errors import Interrupted, StageError
from utils.files import TEMPORARY_SUFFIX, new_directory, sha256_of, write_json

__all__ = ["COMPLETE", "Checkpoint", "Interrupted", "keep_newest", "newest", "saving", "whole_checkpoints"]

COMPLETE = "COMPLETE.json"
# Needed to go on training, not to use the model: removed from all but the newest checkpoints.
TRAINING_FILES = ("optimizer.pt", "scheduler.pt", "rng_state.pth", "free_parameters.safetensors")

log = logging.getLogger("mono_s2s.training")


@dataclass(frozen=True)
class Checkpoint:
    """A whole checkpoint: its directory, how many optimizer steps it is worth, whose it is, and if training can go on."""

    directory: Path
    step: int
    identity: dict[str, Any]
    resumable: bool

    @property
    def is_epoch(self) -> bool:
        return self.directory.name.startswith("epoch_")


@contextmanager
def saving(directory: Path, *, step: int, identity: dict[str, Any]) -> Iterator[Path]:
    """A directory to write a checkpoint into; it becomes `directory`, sealed with COMPLETE.json, when the block ends well.

    StageError where it cannot be written (disk full, quota); older checkpoints are untouched then, and nothing torn stays.
    """
    try:
        if directory.exists():
            shutil.rmtree(directory)  # torn, or it would have been resumed from
        with new_directory(directory) as new:
            yield new
            files = {p.name: {"bytes": p.stat().st_size, "sha256": sha256_of(p)} for p in sorted(new.iterdir())}
            write_json(new / COMPLETE, {"step": step, "identity": identity, "files": files})
    except (OSError, RuntimeError, SafetensorError) as error:
        free = shutil.disk_usage(directory.parent).free / 1e9
        raise StageError(
            f"cannot write the checkpoint {directory} ({' '.join(str(error).split())[:200]}); {free:.1f} GB are free there. "
            "Earlier checkpoints are whole: make room and run again."
        ) from error


def whole_checkpoints(output_dir: Path) -> list[Checkpoint]:
    """Every whole checkpoint under `output_dir`, oldest first. Torn ones are left out, with a warning that says why."""
    found = []
    for directory in output_dir.glob("*_*"):
        kind, _, number = directory.name.partition("_")
        if kind not in ("epoch", "step") or not number.isdigit() or not directory.is_dir():
            continue
        try:
            found.append(_read(directory))
        except (OSError, ValueError, KeyError) as error:
            log.warning("checkpoint %s is torn (%s): left out", directory, error)
    return sorted(found, key=lambda checkpoint: (checkpoint.step, checkpoint.is_epoch))


def newest(checkpoints: list[Checkpoint]) -> Checkpoint | None:
    """The newest checkpoint that training can go on from, of those that `whole_checkpoints` returned."""
    return next((checkpoint for checkpoint in reversed(checkpoints) if checkpoint.resumable), None)


def _read(directory: Path) -> Checkpoint:
    seal = json.loads((directory / COMPLETE).read_text(encoding="utf-8"))
    for name, expected in seal["files"].items():
        path = directory / name
        if path.stat().st_size != expected["bytes"]:
            raise ValueError(f"{name} has {path.stat().st_size} bytes instead of {expected['bytes']}")
        if sha256_of(path) != expected["sha256"]:
            raise ValueError(f"the content of {name} has changed")
    return Checkpoint(directory, seal["step"], seal["identity"], "optimizer.pt" in seal["files"])


def keep_newest(output_dir: Path, keep: int) -> None:
    """Free disk space after a new checkpoint is complete: old `step_N/` go, old `epoch_N/` keep the model alone.

    Trusts COMPLETE.json instead of reading gigabytes again: nothing is removed but what a newer checkpoint replaces.
    """
    sealed = []
    for path in output_dir.glob(f"*_*/{COMPLETE}"):
        sealed.append((json.loads(path.read_text(encoding="utf-8")), path.parent))
    sealed.sort(key=lambda item: item[0]["step"])
    latest = sealed[-1][0]["step"] if sealed else 0
    for position, (seal, directory) in enumerate(sealed):
        if directory.name.startswith("step_") and seal["step"] < latest:
            shutil.rmtree(directory)
        elif position < len(sealed) - keep and any(name in seal["files"] for name in TRAINING_FILES):
            kept = {name: entry for name, entry in seal["files"].items() if name not in TRAINING_FILES}
            write_json(directory / COMPLETE, {**seal, "files": kept})  # first the list, then the files: never torn
            for name in TRAINING_FILES:
                (directory / name).unlink(missing_ok=True)


def remove_leftovers(output_dir: Path) -> None:
    """Remove half-written directories that a killed process left under a temporary name."""
    for path in output_dir.glob(f".*{TEMPORARY_SUFFIX}"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
