"""Checkpoints on disk: `epoch_3/`, `step_4711/`, each complete or not there, and the one to resume from.

A checkpoint is a directory that got its name last, with a `COMPLETE.json` that lists every file with size and hash.
`epoch_N/` is a plain `from_pretrained` model directory as well, and is kept; what training alone needs (optimizer,
schedule, random state) stays in the newest few. Imports the standard library alone: clean-up reads checkpoints where no
package is installed.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from utils.core.errors import StageError
from utils.core.files import TEMPORARY_SUFFIX, new_directory, sha256_of, write_json
from utils.core.text import one_line

COMPLETE = "COMPLETE.json"
STATE = "training_state.json"  # what the training remembers: history so far, sums of the running epoch, seconds
MICRO_BATCH = "micro_batch_size"  # in it: examples that went through the model at once
STEP_PATH = "step_path"  # in it: how gradients were computed, and why
FREE_PARAMETERS = "free_parameters.pt"  # V of the constrained matrices
OPTIMIZER, SCHEDULER, RANDOM_STATE, TRAINER_STATE = (
    "optimizer.pt",
    "scheduler.pt",
    "rng_state.pth",
    "trainer_state.json",
)
# Needed to resume training, not to use the model: removed from all but the newest checkpoints.
TRAINING_FILES = (OPTIMIZER, SCHEDULER, RANDOM_STATE, FREE_PARAMETERS)
NOT_THE_MODEL = (COMPLETE, STATE, TRAINER_STATE)

log = logging.getLogger("mono_s2s.training")


def for_training_only(name: str) -> bool:
    """Whether a checkpoint's file is needed to resume training and not to use the model."""
    return name in TRAINING_FILES or name.startswith("rng_state_")  # one per process where several GPUs train


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint."""

    directory: Path
    step: int  # optimizer steps done
    identity: dict[str, Any]  # arm, hashes of model and data, settings: equal in all checkpoints of one training
    resumable: bool  # whether it has the optimizer state

    def state(self) -> dict[str, Any]:
        """What the training remembered when it wrote this checkpoint (`TrainingRecord.state`)."""
        state: dict[str, Any] = json.loads((self.directory / STATE).read_text(encoding="utf-8"))
        return state


@contextmanager
def new_checkpoint(directory: Path, *, step: int, identity: dict[str, Any]) -> Iterator[Path]:
    """A directory to write a checkpoint into; it becomes `directory`, with COMPLETE.json, if the block ends well.

    StageError where it cannot be written (disk full, quota); older ones are untouched then, nothing of this one stays.
    """
    from safetensors import SafetensorError  # not at the top: clean-up reads checkpoints on a Python without packages

    try:
        with new_directory(directory) as new:
            yield new
            files = {p.name: {"bytes": p.stat().st_size, "sha256": sha256_of(p)} for p in sorted(new.iterdir())}
            write_json(new / COMPLETE, {"step": step, "identity": identity, "files": files})
    except (OSError, RuntimeError, SafetensorError) as error:
        if isinstance(error, RuntimeError) and "write" not in str(error):
            raise  # torch.save reports a full disk as a RuntimeError about writing; any other one is a bug
        free = shutil.disk_usage(directory.parent).free / 1e9
        raise StageError(
            f"cannot write the checkpoint {directory} ({one_line(error)}); {free:.1f} GB are free there. "
            "Earlier checkpoints are intact. Free space (./clean_checkpoints.sh), then run the same command again."
        ) from error


def complete_checkpoints(output_dir: Path) -> list[Checkpoint]:
    """Every complete checkpoint under `output_dir`, oldest first, all files hashed. A warning names any other one."""
    complete = []
    for directory in _directories(output_dir):
        try:
            complete.append(_read(directory))
        except (OSError, ValueError, KeyError, TypeError) as error:
            log.warning("Ignoring incomplete or corrupt checkpoint %s (%s)", directory, one_line(error))
    return sorted(complete, key=lambda checkpoint: checkpoint.step)


def resume_point(complete: Sequence[Checkpoint]) -> tuple[Checkpoint | None, set[Path]]:
    """Where one training resumes, given its complete checkpoints (oldest first), and the directories that this needs.

    These are the newest resumable checkpoint and the best epoch so far, without which resuming would end without a
    best model. A checkpoint whose best epoch is missing is passed over. (None, empty set) if nothing is resumable.
    """
    directories = {checkpoint.directory.name: checkpoint.directory for checkpoint in complete}
    for checkpoint in reversed(complete):
        best = _best_epoch(checkpoint)
        if checkpoint.resumable and (best is None or best in directories):
            return checkpoint, {checkpoint.directory, *([directories[best]] if best else [])}
    return None, set()


def not_needed_to_resume(output_dir: Path, *, keep_epochs: bool = False) -> list[Path]:
    """Checkpoint directories that no training could resume from: older than needed, incomplete or corrupt.

    keep_epochs: complete weights after an epoch are none of them. Nothing is named where no checkpoint is resumable:
    what cannot be judged is not surplus.
    """
    trainings: dict[str, list[Checkpoint]] = {}
    complete = complete_checkpoints(output_dir)
    for checkpoint in complete:
        trainings.setdefault(json.dumps(checkpoint.identity, sort_keys=True), []).append(checkpoint)
    needed = {directory for checkpoints in trainings.values() for directory in resume_point(checkpoints)[1]}
    epochs = {item.directory for item in complete if keep_epochs and item.directory.name.startswith("epoch_")}
    return sorted(path for path in _directories(output_dir) if path not in needed | epochs) if needed else []


def checkpoint_to_resume(output_dir: Path, identity: dict[str, Any]) -> Checkpoint | None:
    """The newest complete checkpoint of the training called `identity`; None: start at the beginning.

    Removes what a killed process left half-written, checkpoints of another training (other settings, data or model; a
    warning says so), and everything newer than the answer, which is incomplete and will be written again.
    """
    for path in output_dir.glob(f".*{TEMPORARY_SUFFIX}"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    complete = complete_checkpoints(output_dir)
    other_trainings = [checkpoint for checkpoint in complete if checkpoint.identity != identity]
    if other_trainings:
        changed = sorted(key for key in identity if identity[key] != other_trainings[-1].identity.get(key))
        log.warning("Removing the checkpoints of another training in %s (%s changed)", output_dir, ", ".join(changed))
    same_training = [checkpoint for checkpoint in complete if checkpoint.identity == identity]
    start, _ = resume_point(same_training)
    useful = {checkpoint.directory for checkpoint in same_training if start and checkpoint.step <= start.step}
    for directory in _directories(output_dir):
        if directory not in useful:
            shutil.rmtree(directory)
    if start is None:
        for made in ("best", "snapshots"):
            shutil.rmtree(output_dir / made, ignore_errors=True)
    return start


def keep_newest(output_dir: Path, keep: int) -> None:
    """After a new checkpoint is complete: old `step_N/` go, all but the `keep` newest lose their TRAINING_FILES.

    Trusts COMPLETE.json instead of reading gigabytes again: `checkpoint_to_resume` removed what was damaged.
    """
    manifests = [
        (json.loads(file.read_text(encoding="utf-8")), file.parent) for file in output_dir.glob(f"*_*/{COMPLETE}")
    ]
    manifests.sort(key=lambda item: item[0]["step"])
    for _, directory in manifests[:-1]:
        if directory.name.startswith("step_"):
            shutil.rmtree(directory)
    manifests = [item for item in manifests if item[1].is_dir()]
    for manifest, directory in manifests[:-keep]:
        surplus = [path for path in directory.iterdir() if for_training_only(path.name)]
        if surplus:
            kept = {name: entry for name, entry in manifest["files"].items() if not for_training_only(name)}
            # First the list, then the files: killed in between, the checkpoint is complete with files to spare.
            write_json(directory / COMPLETE, {**manifest, "files": kept})
            for path in surplus:
                path.unlink()


def _directories(output_dir: Path) -> list[Path]:
    # A directory epoch_best or step_1.bak is somebody else's.
    named = [(path, *path.name.partition("_")) for path in output_dir.glob("*_*") if path.is_dir()]
    return [path for path, kind, _, number in named if kind in ("epoch", "step") and number.isdigit()]


def _read(directory: Path) -> Checkpoint:
    manifest = json.loads((directory / COMPLETE).read_text(encoding="utf-8"))
    for name, expected in manifest["files"].items():
        path = directory / name
        if path.stat().st_size != expected["bytes"]:
            raise ValueError(f"{name} has {path.stat().st_size} bytes instead of {expected['bytes']}")
        if sha256_of(path) != expected["sha256"]:
            raise ValueError(f"the content of {name} has changed")
    return Checkpoint(directory, int(manifest["step"]), dict(manifest["identity"]), OPTIMIZER in manifest["files"])


def _best_epoch(checkpoint: Checkpoint) -> str | None:
    """Name of the best epoch's directory so far: without it, resuming would end without a best model."""
    epochs = checkpoint.state()["epochs"]
    return f"epoch_{min(epochs, key=lambda row: row['validation_loss'])['epoch']}" if epochs else None
