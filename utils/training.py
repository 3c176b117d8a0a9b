"""Fine-tuning of one arm: the same implementation, data order and settings for all of them, but for the warm-up."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import resource
import shutil
import socket
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import datasets
import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.utils import logging as transformers_logging

from utils.batches import TokenRows
from utils.checkpoints import Checkpoint, Interrupted, newest, remove_leftovers, whole_checkpoints
from utils.errors import StageError
from utils.files import append_jsonl, new_directory, read_jsonl, write_json
from utils.models import count_parameters, load_model, load_tokenizer, weights_sha256
from utils.monotonic import audit, constrain, ffn_layers, min_ffn_weight
from utils.progress import progress
from utils.trainer import STATE, ArmTrainer, validation_loss

SECONDS_BETWEEN_LOOKS = 5.0  # how often the running loss is read back from the device, shown and written

log = logging.getLogger("mono_s2s.training")


@dataclass(frozen=True)
class TrainingSettings:
    """How an arm is trained. Everything but `warmup_ratio` must be equal for arms that are compared."""

    epochs: int
    learning_rate: float
    batch_size: int  # examples per optimizer step
    weight_decay: float
    gradient_clip: float  # global norm; 0: no clipping
    warmup_ratio: float  # share of all steps
    seed: int
    epsilon: float = 1e-6  # softplus(V) = |W| + epsilon at the start
    precision: str = "auto"  # bf16: bfloat16 autocast; fp32; auto: bf16 where the GPU has it
    device: str = "cpu"
    compute_gradient_norms: bool = True
    checkpoints_to_keep: int = 2  # newest checkpoints that keep their optimizer state
    checkpoint_minutes: float = 30.0  # minutes between checkpoints within an epoch; 0: none


def uses_bfloat16(precision: str, device: str) -> bool:
    """Whether training autocasts to bfloat16. StageError: bf16 asked for on a GPU without it."""
    if precision == "fp32" or (precision == "auto" and device == "cpu"):
        return False
    capable = device == "cpu" or torch.cuda.is_bf16_supported(including_emulation=False)
    if precision == "bf16" and not capable:
        raise StageError("PRECISION is bf16, but this GPU has no bfloat16. Set MONO_S2S_PRECISION=fp32.")
    return capable


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
    `best/` (lowest validation loss), all plain model directories. Goes on from the newest whole checkpoint of the same
    experiment found there. Raises Interrupted after a checkpoint when `stop_requested()` turns true; StageError for a loss
    that is not finite or a checkpoint that cannot be written; InputError for a damaged model.
    """
    if not len(train_set) or not len(validation_set):
        raise StageError("the training or validation set is empty")
    output_dir.mkdir(parents=True, exist_ok=True)
    remove_leftovers(output_dir)
    autocast = uses_bfloat16(settings.precision, settings.device)
    if settings.device == "cuda" and settings.precision != "fp32":
        torch.set_float32_matmul_precision("high")  # TF32 for what autocast leaves in float32
    tokenizer = load_tokenizer(pretrained_dir)
    model = load_model(pretrained_dir)
    constrain(model, eps=settings.epsilon, arm=arm)
    multiple = 8 if settings.device == "cuda" else 1
    rows = TokenRows(train_set, pad_id=tokenizer.pad_token_id, multiple_of=multiple)
    validation_rows = TokenRows(validation_set, pad_id=tokenizer.pad_token_id, multiple_of=multiple)
    identity = _identity(arm, pretrained_dir, rows, validation_rows, settings)
    start = _starting_point(output_dir, identity)
    sessions = output_dir / "sessions.jsonl"
    recorder = Recorder(
        model, validation_rows, output_dir, settings, autocast, stop_requested, steps_per_epoch=_steps(rows, settings)
    )
    trainer = ArmTrainer(
        model=model,
        tokenizer=tokenizer,
        args=_arguments(output_dir, settings),
        rows=rows,
        autocast=autocast,
        identity=identity,
        checkpoints_to_keep=settings.checkpoints_to_keep,
        state_to_save=recorder.state,
        after_batch=recorder.after_batch,
        after_norm=recorder.after_norm,
    )
    trainer.add_callback(recorder)
    if start is not None:
        recorder.restore(json.loads((start.directory / STATE).read_text(encoding="utf-8")))
    if len(recorder.epochs) < settings.epochs:
        append_jsonl(sessions, [_session(start)])
        log.info("%s: starts from %s", arm, start.directory if start else pretrained_dir)
        trainer.train(resume_from_checkpoint=str(start.directory) if start else None)
        if recorder.interrupted:
            raise Interrupted(f"{arm}: stopped at step {trainer.state.global_step}, checkpoint saved")
    history = recorder.history()
    best_dir = _export_best(output_dir, history["best_epoch"])
    best = load_model(best_dir)
    resumed = [s for s in read_jsonl(sessions) if s["resumed_from"]] if sessions.exists() else []
    history |= {
        "arm": arm,
        "settings": asdict(settings),
        "bfloat16": autocast,
        "resumes": len(resumed),
        "resumed_from_steps": [session["resumed_from"] for session in resumed],
        "parameters": count_parameters(best),
        "ffn_parameters": sum(layer.weight.numel() for _, layer in ffn_layers(best)),
        "min_ffn_weight": min_ffn_weight(best),
        "train_examples": len(rows),
        "validation_examples": len(validation_rows),
        "initial_weights_sha256": weights_sha256(pretrained_dir),
        "weights_sha256": weights_sha256(best_dir),
        "data_sha256": identity["data"],
    }
    if arm != "baseline":
        history["audit"] = audit(best)
    return history


def _steps(rows: TokenRows, settings: TrainingSettings) -> int:
    return -(-len(rows) // settings.batch_size)


def _arguments(output_dir: Path, settings: TrainingSettings) -> TrainingArguments:
    transformers_logging.set_verbosity_error()
    arguments = TrainingArguments(
        output_dir=str(output_dir),
        num_train_epochs=settings.epochs,
        learning_rate=settings.learning_rate,
        per_device_train_batch_size=settings.batch_size,
        weight_decay=settings.weight_decay,
        max_grad_norm=settings.gradient_clip,
        lr_scheduler_type="linear",
        warmup_steps=settings.warmup_ratio,  # below 1: a share of all steps
        seed=settings.seed,
        use_cpu=settings.device == "cpu",
        bf16=False,  # autocast is ours, around the loss alone
        eval_strategy="no",
        save_strategy="no",  # checkpoints are asked for by the Recorder
        logging_strategy="no",
        logging_nan_inf_filter=False,  # it would wait for the GPU at every step, and hide what went wrong
        report_to="none",
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
    """What a checkpoint must agree with to be gone on from. Device and bookkeeping may change between sessions."""
    free_to_change = ("device", "compute_gradient_norms", "checkpoints_to_keep", "checkpoint_minutes")
    return {
        "arm": arm,
        "pretrained": weights_sha256(pretrained),
        "data": [_data_sha256(rows), _data_sha256(validation_rows)],
        **{name: value for name, value in asdict(settings).items() if name not in free_to_change},
    }


def _data_sha256(rows: TokenRows) -> str:
    digest = hashlib.sha256()
    for lengths, column in ((rows.input_lengths, rows.inputs), (rows.label_lengths, rows.labels)):
        digest.update(lengths.tobytes())
        for offsets, values in column.chunks:
            digest.update(values[offsets[0] : offsets[-1]].tobytes())
    return digest.hexdigest()


def _starting_point(output_dir: Path, identity: dict[str, Any]) -> Checkpoint | None:
    """The checkpoint to go on from. Checkpoints of another experiment (other settings, data, model) are removed, and said."""
    checkpoints = whole_checkpoints(output_dir)
    strangers = [checkpoint for checkpoint in checkpoints if checkpoint.identity != identity]
    if strangers:
        other = strangers[-1].identity
        changed = sorted(key for key in identity if identity[key] != other.get(key))
        log.warning("%s holds checkpoints of another training (%s differ): removed", output_dir, ", ".join(changed))
        for checkpoint in strangers:
            shutil.rmtree(checkpoint.directory)
        shutil.rmtree(output_dir / "best", ignore_errors=True)
        (output_dir / "sessions.jsonl").unlink(missing_ok=True)
    return newest([checkpoint for checkpoint in checkpoints if checkpoint not in strangers])


def _session(start: Checkpoint | None) -> dict[str, Any]:
    return {
        "started": time.time(),
        "host": socket.gethostname(),
        "slurm_job_id": os.environ.get("SLURM_JOB_ID"),
        "resumed_from": start.step if start else 0,
    }


def _export_best(output_dir: Path, epoch: int) -> Path:
    """Make `best/` from `epoch_N/`, which is a plain model directory already; the weights are linked, not copied."""
    source, best = output_dir / f"epoch_{epoch}", output_dir / "best"
    own = {"COMPLETE.json", STATE, "trainer_state.json"}
    with new_directory(best) as new:
        for file in source.iterdir():
            if file.suffix in (".pt", ".pth") or file.name in own or file.name.startswith("free_parameters"):
                continue
            try:
                os.link(file, new / file.name)
            except OSError:  # a file system without hard links
                shutil.copyfile(file, new / file.name)
    return best


class Recorder(TrainerCallback):
    """Watches the training: sums up epochs, asks for checkpoints, shows progress, notices a loss that is not finite."""

    def __init__(
        self,
        model: torch.nn.Module,
        validation_rows: TokenRows,
        output_dir: Path,
        settings: TrainingSettings,
        autocast: bool,
        stop_requested: Callable[[], bool],
        *,
        steps_per_epoch: int,
    ) -> None:
        self.model, self.validation_rows, self.output_dir = model, validation_rows, output_dir
        self.settings, self.autocast, self.stop_requested = settings, autocast, stop_requested
        self.steps_per_epoch = steps_per_epoch
        self.epochs: list[dict[str, Any]] = []
        self.interrupted = False
        # On the device, so that no step waits for it: sum of loss * tokens, sum and maximum of gradient norms, last loss.
        self.sums = torch.zeros(4, dtype=torch.float64, device=settings.device)
        self.tokens = self.examples = self.steps = 0
        self.seconds_before = self.epoch_seconds_before = 0.0
        self.started = self.epoch_started = self.last_look = self.last_save = time.perf_counter()
        self.bar: Any = None

    # ---- called for every batch ------------------------------------------------------------------------------

    def after_batch(self, loss: torch.Tensor, tokens: int, examples: int) -> None:
        self.sums[0] += loss.double() * tokens
        self.sums[3] = loss
        self.tokens += tokens
        self.examples += examples
        self.steps += 1

    def after_norm(self, norm: torch.Tensor) -> None:
        if self.settings.compute_gradient_norms:
            self.sums[1] += norm
            self.sums[2] = torch.maximum(self.sums[2], norm.double())

    # ---- what a checkpoint remembers ---------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        return {
            "epochs": self.epochs,
            "sums": self.sums.tolist(),
            "tokens": self.tokens,
            "examples": self.examples,
            "steps": self.steps,
            "seconds": self.seconds_before + time.perf_counter() - self.started,
            "epoch_seconds": self.epoch_seconds_before + time.perf_counter() - self.epoch_started if self.steps else 0.0,
        }

    def restore(self, state: dict[str, Any]) -> None:
        self.epochs = state["epochs"]
        self.sums.copy_(torch.tensor(state["sums"], dtype=torch.float64))
        self.tokens, self.examples, self.steps = state["tokens"], state["examples"], state["steps"]
        self.seconds_before, self.epoch_seconds_before = state["seconds"], state["epoch_seconds"]

    def history(self) -> dict[str, Any]:
        best = min(self.epochs, key=lambda row: row["validation_loss"])
        return {
            "epochs": self.epochs,
            "best_epoch": best["epoch"],
            "best_validation_loss": best["validation_loss"],
            "total_steps": self.steps_per_epoch * len(self.epochs),
            "total_seconds": self.epochs[-1]["cumulative_seconds"],
        }

    # ---- Trainer's events --------------------------------------------------------------------------------------

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.started = self.epoch_started = self.last_save = time.perf_counter()
        self.bar = progress(what="training", total=state.max_steps, unit="step")
        self.bar.update(state.global_step)
        self.bar.start_t, self.bar.initial = time.time(), state.global_step

    def on_epoch_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.epoch_started = time.perf_counter()
        if self.settings.device == "cuda":
            torch.cuda.reset_peak_memory_stats()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        now = time.perf_counter()
        self.bar.update(1)
        if now - self.last_look >= SECONDS_BETWEEN_LOOKS:
            self.last_look = now
            self._look(state)
        if state.global_step % self.steps_per_epoch == 0:
            return  # the epoch's end follows, with its validation and its checkpoint
        if self.stop_requested():
            self._look(state)
            self.interrupted = control.should_save = control.should_training_stop = True
        elif self.settings.checkpoint_minutes and now - self.last_save > 60 * self.settings.checkpoint_minutes:
            self._look(state)
            self.last_save = now
            control.should_save = True

    def on_epoch_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if state.global_step % self.steps_per_epoch:
            return  # interrupted within the epoch
        self._look(state)
        loss_sum, norm_sum, norm_max, _last = self.sums.tolist()
        seconds = self.epoch_seconds_before + time.perf_counter() - self.epoch_started
        row: dict[str, Any] = {
            "epoch": len(self.epochs) + 1,
            "steps": self.steps,
            "train_loss": loss_sum / self.tokens,
            "validation_loss": validation_loss(self.model, self.validation_rows, autocast=self.autocast),
            "learning_rate": self.learning_rate,
            "seconds": seconds,
            "examples_per_second": self.examples / seconds,
            "tokens_per_second": self.tokens / seconds,
            "peak_memory_mb": self._peak_memory_mb(),
            "cumulative_seconds": self.seconds_before + time.perf_counter() - self.started,
        }
        if self.settings.compute_gradient_norms:
            row["gradient_norm"] = {"mean": norm_sum / self.steps, "max": norm_max}
        if not row["validation_loss"] < float("inf"):
            raise StageError(f"the validation loss of epoch {row['epoch']} is {row['validation_loss']}")
        self.epochs.append(row)
        log.info("epoch %(epoch)d: train loss %(train_loss).4f, validation loss %(validation_loss).4f", row)
        self.sums.zero_()
        self.tokens = self.examples = self.steps = 0
        self.epoch_seconds_before = 0.0
        self.last_save = time.perf_counter()
        control.should_save = True
        if self.stop_requested() and len(self.epochs) < self.settings.epochs:
            self.interrupted = control.should_training_stop = True

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, lr_scheduler: Any = None, **_: Any
    ) -> None:
        self.learning_rate = lr_scheduler.get_last_lr()[0]

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.bar.close()

    def _look(self, state: TrainerState) -> None:
        """Read the sums back from the device: the one place that waits for it. StageError if the loss is not finite."""
        loss_sum, _, _, last = self.sums.tolist()
        if loss_sum - loss_sum != 0.0:
            raise StageError(
                f"the training loss became {last} by step {state.global_step} of epoch {len(self.epochs) + 1}. "
                "Checkpoints before it are kept. Lower LEARNING_RATE, or set PRECISION to fp32."
            )
        self.bar.set_postfix(epoch=len(self.epochs) + 1, loss=f"{last:.4f}", refresh=False)
        rate = self.bar.format_dict["rate"] or 0.0
        left = state.max_steps - state.global_step
        write_json(
            self.output_dir / "progress.json",
            {
                "epoch": min(len(self.epochs) + 1, self.settings.epochs),
                "epochs": self.settings.epochs,
                "step": state.global_step,
                "total_steps": state.max_steps,
                "loss": last,
                "examples_per_second": round(rate * self.settings.batch_size, 3),
                "seconds_left": round(left / rate, 1) if rate else None,
                "updated": time.time(),
            },
        )

    def _peak_memory_mb(self) -> float:
        if self.settings.device == "cuda":
            return torch.cuda.max_memory_allocated() / 2**20
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
