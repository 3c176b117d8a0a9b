"""What stages 2 and 3 do: one training of one arm, with the settings that both arms share."""

from __future__ import annotations

from typing import Any

from utils.data.store import load_prepared, missing_datasets
from utils.modeling.models import choose_device, weights_sha256
from utils.pipeline.runner import StageContext
from utils.training.launcher import processes_for, train_on_all
from utils.training.train import TrainingSettings, train


def training_settings(context: StageContext, arm: str) -> TrainingSettings:
    """The training settings of an arm: all arms share everything but the warm-up (baseline 0.10, the others 0.15)."""
    settings = context.settings
    return TrainingSettings(
        epochs=settings.NUM_EPOCHS,  # equal to MONOTONIC_NUM_EPOCHS: configs/overrides.py refuses anything else
        learning_rate=settings.LEARNING_RATE,
        batch_size=settings.BATCH_SIZE,
        weight_decay=settings.WEIGHT_DECAY,
        gradient_clip=settings.GRADIENT_CLIP,
        warmup_ratio=settings.WARMUP_RATIO if arm == "baseline" else settings.MONOTONIC_WARMUP_RATIO,
        epsilon=settings.MONOTONIC_EPSILON,
        precision=settings.PRECISION,
        device=choose_device(settings.DEVICE),
        seed=context.seed,
        compute_gradient_norms=settings.COMPUTE_GRADIENT_NORMS,
        checkpoints_to_keep=settings.CHECKPOINTS_TO_KEEP,
    )


def train_arm(context: StageContext, arm: str) -> None:
    """Train `arm` on the prepared data, export the best epoch, write `<arm>_training_history.json`."""
    paths, seed = context.paths, context.seed
    settings = training_settings(context, arm)
    shared: dict[str, Any] = {
        "arm": arm,
        "pretrained_dir": paths.pretrained,
        "output_dir": paths.training(seed, arm),
        "settings": settings,
        "stop_requested": context.stop_requested,
    }
    processes = processes_for(settings.device, settings.batch_size)
    if processes > 1:
        context.log.info("%s: %d GPUs share every batch of %d", arm, processes, settings.batch_size)
        history = train_on_all(processes, prepared_dir=paths.prepared, **shared)
    else:
        parts = {f"{name}_set": load_prepared(paths.prepared, name) for name in ("train", "validation")}
        history = train(**parts, **shared)
    context.provenance["missing_datasets"] = missing_datasets(paths.prepared)
    context.provenance["checkpoints"] = {arm: weights_sha256(paths.model(seed, arm))}
    context.write_result(f"{arm}_training_history.json", history)
