"""Weights kept early in training, for comparisons at equal quality: plain models at log-spaced steps of epoch one.

From the first epoch on the checkpoints' `epoch_N/` are such models themselves. Torch-free at import: clean-up and
estimates read the names.
"""

from __future__ import annotations

from pathlib import Path

FRACTIONS = (1 / 16, 1 / 8, 1 / 4, 1 / 2)  # of the first epoch
DIRECTORY = "snapshots"


def snapshot_steps(steps_per_epoch: int) -> list[int]:
    """The steps of the first epoch whose weights are kept: at most four, fewer where an epoch has hardly any."""
    steps = {max(1, round(steps_per_epoch * fraction)) for fraction in FRACTIONS}
    return sorted(step for step in steps if step < steps_per_epoch)


def snapshots(output_dir: Path, steps_per_epoch: int, epochs: int) -> list[tuple[int, Path]]:
    """(step, directory) of everything that a training keeps, whether it is still there or not, in order."""
    early = [(step, output_dir / DIRECTORY / f"step_{step}") for step in snapshot_steps(steps_per_epoch)]
    return early + [(epoch * steps_per_epoch, output_dir / f"epoch_{epoch}") for epoch in range(1, epochs + 1)]
