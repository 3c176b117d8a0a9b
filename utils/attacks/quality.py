"""The quality curve of stage 6: a small attack on every snapshot of every trained arm."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from utils.analysis.quality_curve import QualityRow
from utils.attacks.context import AttackContext, Victim
from utils.attacks.encoding import Example
from utils.attacks.hotflip.attack import HotFlipSettings, attack_examples
from utils.core.hashes import weights_sha256
from utils.core.names import ARMS
from utils.core.paths import Paths
from utils.core.results import read_result
from utils.modeling.models import load_model
from utils.training.snapshots import snapshots

CANDIDATES = 8  # exact scores a step: cheap, and the same for every snapshot, which is what a comparison needs

log = logging.getLogger("mono_s2s.attacks")
Cell = tuple[str, int, float, Path]  # arm, step, epoch, directory


def kept_snapshots(paths: Paths, seed: int, models: Sequence[str]) -> tuple[list[Cell], list[str]]:
    """The snapshots of all trained `models`, and a line for each one that is gone."""
    cells: list[Cell] = []
    missing = []
    for arm in (model for model in models if model in ARMS):
        history = read_result(paths.results(seed) / f"{arm}_training_history.json")["results"]
        steps, epochs = history["total_steps"], len(history["epochs"])
        for step, directory in snapshots(paths.training(seed, arm), steps // epochs, epochs):
            if (directory / "config.json").is_file():
                cells.append((arm, step, step * epochs / steps, directory))
            else:
                missing.append(f"{arm} after step {step} ({directory})")
    for line in missing:
        log.warning("the quality curve lacks a snapshot: %s was deleted, or this training kept none", line)
    return cells, missing


def attack_snapshots(
    context: AttackContext,
    cells: Sequence[Cell],
    examples: Sequence[Example],
    settings: HotFlipSettings,
    *,
    device: str,
    cache_dir: Path,
) -> list[QualityRow]:
    """Attack the same `examples` on each snapshot; finished ones are taken from `cache_dir`."""
    small = replace(
        settings,
        candidates=CANDIDATES,
        random_candidates=1,
        noisy_gradients=0,
        beam=1,
        restarts=1,
        gradient_norms=False,
    )
    rows = []
    for arm, step, epoch, directory in cells:
        victim = Victim(arm, load_model(directory, device=device), weights_sha256(directory))
        home = cache_dir / f"{arm}_{step}"
        for record in attack_examples(context, victim, examples, small, cache_dir=home, every_budget=False):
            done = record.skipped is None
            rows.append(
                QualityRow(
                    arm=arm,
                    step=step,
                    epoch=epoch,
                    id=record.id,
                    clean_rougeL=record.clean_rougeL,
                    success=record.success if done else None,
                    relative_drop=record.relative_drop if done else None,
                    loss_increase=record.loss_increase if done else None,
                )
            )
    return rows
