"""Fine-tuning of one arm: the same implementation, data order and settings for all of them, but for the warm-up.

`train` is the whole of it in order: data, model, constraint, checkpoints, Trainer, history.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import socket
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import datasets
import torch
from transformers import TrainingArguments

from configs.arms import ARMS
from utils.core.codec import to_json
from utils.core.errors import InputError, Interrupted, StageError
from utils.core.files import append_jsonl, link_or_copy, new_directory, read_jsonl
from utils.core.hashes import weights_sha256
from utils.core.settings import Settings
from utils.modeling.batching import BatchLimit
from utils.modeling.models import choose_device, count_parameters, load_model
from utils.modeling.monotonic import constrain, ffn_layers, min_ffn_weight
from utils.modeling.precision import resolve_precision
from utils.modeling.tokenizer import load_tokenizer, quiet_transformers
from utils.training import ranks
from utils.training.audit import audit
from utils.training.batches import EXACT, GRAPH_WIDTHS, TENSOR_CORES, Padding, TokenRows
from utils.training.checkpoints import (
    MICRO_BATCH,
    NOT_THE_MODEL,
    STEP_PATH,
    Checkpoint,
    checkpoint_to_resume,
    for_training_only,
    keep_newest,
)
from utils.training.graphs import obstacle
from utils.training.record import TrainingRecord
from utils.training.trainer import ArmTrainer, validation_loss

# May differ between the sessions of one training: they change nothing that is computed (the device hardly).
FREE_TO_CHANGE = (
    "device",
    "compute_gradient_norms",
    "track_training_time",
    "checkpoints_to_keep",
    "checkpoint_minutes",
    "micro_batch_size",
    "gradient_checkpointing",
    "graphs",
    "report_to",
)
SESSIONS = "sessions.jsonl"  # one line for every time that the training started: when, where, from which step

log = logging.getLogger("mono_s2s.training")


@dataclass(frozen=True)
class TrainingSettings:
    """How an arm is trained. Everything but `warmup_ratio` must be equal for arms that are compared."""

    epochs: int
    learning_rate: float  # peak of the linear schedule
    batch_size: int  # examples per optimizer step
    weight_decay: float  # on every effective matrix
    gradient_clip: float  # global norm; 0: no clipping
    warmup_ratio: float  # share of all steps
    seed: int
    epsilon: float = 1e-6  # softplus(V) = |W| + epsilon at the start
    precision: str = "auto"  # bf16: bfloat16 autocast; fp32; auto: bf16 where the GPU has it
    device: str = "cpu"
    compute_gradient_norms: bool = True
    track_training_time: bool = True  # whether the history's epochs have their seconds
    checkpoints_to_keep: int = 2  # newest checkpoints that keep their optimizer state
    micro_batch_size: int = 0  # examples that go through the model at once; 0: the whole batch, less if it does not fit
    graphs: str = "auto"  # CUDA graphs where they prove themselves; off
    gradient_checkpointing: bool = (
        False  # activations are computed again for the gradients: less memory, a third slower
    )
    report_to: str = "none"  # whose live curves are fed by transformers' callback: tensorboard, wandb or mlflow
    checkpoint_minutes: float = 30.0  # between checkpoints within an epoch; 0: none but on request

    @classmethod
    def of(
        cls, settings: Settings, *, seed: int, epochs: int, warmup_ratio: float, epsilon: float = 1e-6
    ) -> TrainingSettings:
        """Those of an experiment's `settings`; given are those that have a name of their own in each training stage.

        Of them the warm-up alone differs: configs/overrides.py refuses unequal epochs, and epsilon belongs to softplus.
        InputError where the package behind REPORT_TO is missing.
        """
        if settings.REPORT_TO != "none" and importlib.util.find_spec(settings.REPORT_TO) is None:
            raise InputError(
                f"REPORT_TO={settings.REPORT_TO} needs a package that is missing: pip install {settings.REPORT_TO}, or "
                "set MONO_S2S_REPORT_TO=none."
            )
        return cls(
            epochs=epochs,
            learning_rate=settings.LEARNING_RATE,
            batch_size=settings.BATCH_SIZE,
            weight_decay=settings.WEIGHT_DECAY,
            gradient_clip=settings.GRADIENT_CLIP,
            warmup_ratio=warmup_ratio,
            seed=seed,
            epsilon=epsilon,
            precision=settings.PRECISION,
            device=choose_device(settings.DEVICE),
            compute_gradient_norms=settings.COMPUTE_GRADIENT_NORMS,
            track_training_time=settings.TRACK_TRAINING_TIME,
            checkpoints_to_keep=settings.CHECKPOINTS_TO_KEEP,
            micro_batch_size=settings.MICRO_BATCH_SIZE,
            gradient_checkpointing=settings.GRADIENT_CHECKPOINTING,
            graphs=settings.TRAINING_GRAPHS,
            report_to=settings.REPORT_TO,
        )


def train(
    *,
    arm: str,
    pretrained_dir: Path,
    train_set: datasets.Dataset,
    validation_set: datasets.Dataset,
    output_dir: Path,
    settings: TrainingSettings,
    stop_requested: Callable[[], bool] = lambda: False,
) -> dict[str, Any]:
    """Train `arm` (see `monotonic.constrain`) from `pretrained_dir`; return its history, ready for JSON.

    Data sets have columns input_ids and labels (lists of token ids ending in eos). `output_dir` gets `epoch_1/`... and
    `best/` (lowest validation loss), all plain model directories. Resumes from the newest complete checkpoint of the
    same training found there, with the same result as if never stopped. Raises Interrupted after a checkpoint when
    `stop_requested()` turns true; StageError for a loss that is not finite, a checkpoint that cannot be written, empty
    data; InputError for a damaged model or data that do not fit it.

    Under torchrun the processes share every batch of `batch_size` and every validation, so that the losses are those
    of one process but for rounding and dropout's draws; process 0 writes, the others return an empty history.
    """
    quiet_transformers()
    output_dir.mkdir(parents=True, exist_ok=True)
    arguments = _arguments(output_dir, settings)  # under torchrun this joins the processes into a group
    autocast = resolve_precision(settings.precision, settings.device) == "bf16"
    if settings.device == "cuda" and settings.precision != "fp32":
        torch.set_float32_matmul_precision("high")  # TF32 for what autocast leaves in float32
    tokenizer = load_tokenizer(pretrained_dir)
    model = load_model(pretrained_dir)
    constrain(model, eps=settings.epsilon, arm=arm)
    without_graphs = obstacle(
        settings.graphs,
        device=settings.device,
        processes=ranks.world_size(),
        whole_batch=settings.micro_batch_size in (0, settings.batch_size),
        checkpointing=settings.gradient_checkpointing,
    )
    validation_padding = TENSOR_CORES if settings.device == "cuda" else EXACT
    padding = validation_padding if without_graphs else Padding(*GRAPH_WIDTHS, rows=settings.batch_size)
    rows = TokenRows(train_set, pad_id=tokenizer.pad_token_id, padding=padding)
    validation_rows = TokenRows(validation_set, pad_id=tokenizer.pad_token_id, padding=validation_padding)
    for part, name in ((rows, "training"), (validation_rows, "validation")):
        if not len(part):
            raise StageError(f"the {name} set is empty. Look at what stage 1 removed (data_statistics.json).")
        if part.largest_id() >= model.config.vocab_size:
            raise InputError(
                f"the {name} set has token {part.largest_id()}, the model {model.config.vocab_size} tokens. "
                "They were made with different models: run stages 0 and 1 again."
            )
    identity = _identity(arm, pretrained_dir, rows, validation_rows, settings)
    with ranks.main_first():
        start = checkpoint_to_resume(output_dir, identity)
    record = TrainingRecord(
        arm,
        output_dir,
        epochs=settings.epochs,
        steps_per_epoch=-(-len(rows) // settings.batch_size),
        validate=lambda: validation_loss(model, validation_rows, autocast=autocast),
        stop_requested=stop_requested,
        checkpoint_minutes=settings.checkpoint_minutes,
        on_gpu=settings.device == "cuda",
    )
    limit = BatchLimit(
        settings.micro_batch_size or settings.batch_size,
        unit=f"examples at once, whose gradients add up to those of a batch of {settings.batch_size}",
    )
    path = None  # how gradients were computed: an earlier session's, if this one has nothing to do
    if start is not None:
        state = start.state()
        path = state.get(STEP_PATH)
        record.restore(state)
        limit.value = min(limit.value, state[MICRO_BATCH])  # what did not fit before is not tried again
        if ranks.rank() == 0:
            keep_newest(output_dir, settings.checkpoints_to_keep)  # a kill may have come before it was done
    if len(record.epochs) < settings.epochs:
        if ranks.rank() == 0:
            _open_session(output_dir / SESSIONS, start, settings)
        trainer = ArmTrainer(
            model=model,
            tokenizer=tokenizer,
            args=arguments,
            rows=rows,
            record=record,
            autocast=autocast,
            identity=identity,
            gradient_norms=settings.compute_gradient_norms,
            checkpoints_to_keep=settings.checkpoints_to_keep,
            limit=limit,
            gradient_clip=settings.gradient_clip,
            without_graphs=without_graphs,
        )
        record.report = lambda figures: trainer.callback_handler.on_log(
            trainer.args, trainer.state, trainer.control, figures
        )
        log.info("%s: starting from %s", arm, start.directory if start else pretrained_dir)
        try:
            trainer.train(resume_from_checkpoint=str(start.directory) if start else None)
        finally:
            record.close()
        path = to_json(trainer.path)
        if record.interrupted:
            raise Interrupted(f"{arm}: stopped at step {trainer.state.global_step}, the checkpoint is saved")
    if ranks.rank() > 0:
        return {}
    return _history(arm, pretrained_dir, output_dir, record, settings, identity, autocast, limit.value, path)


def _arguments(output_dir: Path, settings: TrainingSettings) -> TrainingArguments:
    arguments = TrainingArguments(
        output_dir=str(output_dir),
        num_train_epochs=settings.epochs,
        learning_rate=settings.learning_rate,
        per_device_train_batch_size=settings.batch_size,
        weight_decay=settings.weight_decay,
        max_grad_norm=0,  # the step clips
        gradient_checkpointing=settings.gradient_checkpointing,
        gradient_checkpointing_kwargs={"use_reentrant": False},
        lr_scheduler_type="linear",
        warmup_steps=settings.warmup_ratio,  # below 1: a share of all steps
        seed=settings.seed,
        use_cpu=settings.device == "cpu",
        ddp_backend="gloo" if torch.distributed.is_torchelastic_launched() and settings.device == "cpu" else None,
        bf16=False,  # autocast is ours, around the loss alone
        eval_strategy="no",
        save_strategy="no",  # the TrainingRecord asks for checkpoints
        logging_strategy="no",
        logging_nan_inf_filter=False,  # it would wait for the GPU at every step, and hide a NaN
        report_to=settings.report_to,  # the record says when, and what
        run_name=f"{output_dir.parent.name} {output_dir.name}",  # such as seed_42 monotonic_model
        disable_tqdm=True,
        log_level="error",
        remove_unused_columns=False,
    )
    if arguments.n_gpu > 1:
        arguments._n_gpu = 1  # several visible GPUs without torchrun: Trainer would split each batch of 4 over them
    return arguments


def _identity(
    arm: str, pretrained: Path, rows: TokenRows, validation_rows: TokenRows, settings: TrainingSettings
) -> dict[str, Any]:
    """What a checkpoint must agree with to be resumed from."""
    return {
        "arm": arm,
        "arm_definition": asdict(ARMS[arm]) | {"summary": ""},
        "pretrained": weights_sha256(pretrained),
        "train_data": rows.sha256(),
        "validation_data": validation_rows.sha256(),
        **{name: value for name, value in asdict(settings).items() if name not in FREE_TO_CHANGE},
    }


def _open_session(path: Path, start: Checkpoint | None, settings: TrainingSettings) -> None:
    if start is None:
        path.unlink(missing_ok=True)
    session = {
        "started": time.time(),
        "from_step": start.step if start else 0,
        "device": torch.cuda.get_device_name() if settings.device == "cuda" else "cpu",
        "processes": ranks.world_size(),
        "host": socket.gethostname(),
        "slurm_job_id": os.environ.get("SLURM_JOB_ID"),
    }
    append_jsonl(path, [session])


def _history(
    arm: str,
    pretrained_dir: Path,
    output_dir: Path,
    record: TrainingRecord,
    settings: TrainingSettings,
    identity: dict[str, Any],
    autocast: bool,
    micro_batch_size: int,
    step_path: Any,
) -> dict[str, Any]:
    """Export the best epoch to `best/` and put together what is known about the finished training."""
    best = min(record.epochs, key=lambda row: row.validation_loss)
    _export_best(output_dir / f"epoch_{best.epoch}", output_dir / "best")
    model = load_model(output_dir / "best")
    sessions = list(read_jsonl(output_dir / SESSIONS))
    # Times are in every checkpoint: the setting can be changed afterwards, and decides what is reported.
    rows = record.epochs if settings.track_training_time else [row.without_times() for row in record.epochs]
    history = {
        "arm": arm,
        "epochs": to_json(rows),
        "best_epoch": best.epoch,
        "best_validation_loss": best.validation_loss,
        "total_steps": record.steps_per_epoch * settings.epochs,
        "total_seconds": record.epochs[-1].cumulative_seconds,
        "resumes": sum(session["from_step"] > 0 for session in sessions),
        "sessions": sessions,
        "settings": {name: value for name, value in asdict(settings).items() if name != "report_to"},
        "bfloat16": autocast,
        "micro_batch_size": micro_batch_size,
        "step_path": step_path,
        "parameters": count_parameters(model),
        "ffn_parameters": sum(layer.weight.numel() for _, layer in ffn_layers(model)),
        "min_ffn_weight": min_ffn_weight(model),
        "initial_weights_sha256": identity["pretrained"],
        "weights_sha256": weights_sha256(output_dir / "best"),
        "data_sha256": {"train": identity["train_data"], "validation": identity["validation_data"]},
    }
    history["audit"] = to_json(audit(model, arm=arm, pretrained=load_model(pretrained_dir)))
    return history


def _export_best(epoch: Path, best: Path) -> None:
    """`best/` is the epoch's model without what training alone needs; linked, not copied, where possible."""
    with new_directory(best) as new:
        for file in epoch.iterdir():
            if file.name not in NOT_THE_MODEL and not for_training_only(file.name):
                link_or_copy(file, new / file.name)
