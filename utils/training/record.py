"""What a training remembers and shows: sums of the running epoch, history, progress, and when to write a checkpoint."""

from __future__ import annotations

import logging
import math
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from utils.core.errors import StageError
from utils.core.files import write_json
from utils.core.progress import SECONDS_BETWEEN_LOG_LINES, progress
from utils.core.text import duration
from utils.training import ranks

# Several processes ask each other whether to stop or save only now and then: asking waits for the GPU.
STEPS_BETWEEN_QUESTIONS = 16
# How often the losses are read back from the device (it has to be waited for), shown and written to progress.json.
SECONDS_BETWEEN_LOOKS = 5.0

log = logging.getLogger("mono_s2s.training")


class TrainingRecord(TrainerCallback):
    """Follows a Trainer: sums up epochs, asks for checkpoints, shows progress, stops on a loss that is not finite.

    `validate()` gives the validation loss of the model as it is. `state()` and `restore()` carry everything that must
    survive a restart; sums are Python floats, so that they survive it exactly.
    """

    def __init__(
        self,
        what: str,
        output_dir: Path,
        *,
        epochs: int,
        steps_per_epoch: int,
        validate: Callable[[], float],
        stop_requested: Callable[[], bool],
        checkpoint_minutes: float,
        on_gpu: bool,
    ) -> None:
        self.what, self.output_dir = what, output_dir
        self.total_epochs, self.steps_per_epoch = epochs, steps_per_epoch
        self.validate, self.stop_requested = validate, stop_requested
        self.checkpoint_seconds = 60 * checkpoint_minutes or math.inf
        self.on_gpu = on_gpu
        self.epochs: list[dict[str, Any]] = []
        self.interrupted = False
        self.last_loss = math.nan
        # Scalars that are still on the device: reading one would wait for the GPU, so they are read together.
        self.unread_losses: list[tuple[torch.Tensor, int]] = []
        self.unread_norms: list[torch.Tensor] = []
        self._clear_sums()
        self.seconds_before = self.epoch_seconds_before = 0.0
        self.started = self.epoch_started = self.last_look = self.last_line = self.last_save = time.perf_counter()
        self.first_step = self.learning_rate = self.session_examples = 0
        self.bar: Any = None

    # ---- every batch -------------------------------------------------------------------------------------------

    def after_batch(self, loss: torch.Tensor, tokens: int, examples: int) -> None:
        """Note a batch's mean loss (scalar on the device), its label tokens and its examples."""
        self.unread_losses.append((loss, tokens))
        self.tokens += tokens
        self.examples += examples
        self.session_examples += examples
        self.steps += 1

    def after_norm(self, norm: torch.Tensor) -> None:
        """Note the global gradient norm before clipping (scalar on the device)."""
        self.unread_norms.append(norm)

    # ---- what a checkpoint remembers ---------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """What `restore` needs; the sums are those over all processes, so each of them must call it."""
        now = time.perf_counter()
        return {
            "epochs": self.epochs,
            "sums": {name: getattr(self, name) for name in _SUMS} | self._over_all_processes(),
            "seconds": self.seconds_before + now - self.started,
            "epoch_seconds": self.epoch_seconds_before + now - self.epoch_started if self.steps else 0.0,
        }

    def restore(self, state: dict[str, Any]) -> None:
        self.epochs = state["epochs"]
        for name in _SUMS:
            alone = ranks.rank() > 0 and name in _SHARED  # what has been summed over all processes counts once
            setattr(self, name, 0 if alone else state["sums"][name])
        self.seconds_before, self.epoch_seconds_before = state["seconds"], state["epoch_seconds"]

    # ---- Trainer's events --------------------------------------------------------------------------------------

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.started = self.epoch_started = self.last_save = time.perf_counter()
        self.first_step = state.global_step
        self.bar = (
            progress(what=self.what, total=state.max_steps, unit="step")
            if sys.stderr.isatty() and not ranks.rank()
            else None
        )
        if self.bar is not None:
            self.bar.update(state.global_step)
            self.bar.initial = state.global_step  # steps of an earlier session say nothing about this one's rate

    def on_epoch_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.epoch_started = time.perf_counter()
        if self.on_gpu:
            torch.cuda.reset_peak_memory_stats()

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, lr_scheduler: Any = None, **_: Any
    ) -> None:
        self.learning_rate = lr_scheduler.get_last_lr()[0]

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        now = time.perf_counter()
        if self.bar is not None:
            self.bar.update(1)
        if now - self.last_look >= SECONDS_BETWEEN_LOOKS:
            self.look(state)
        if state.global_step % self.steps_per_epoch == 0:
            return  # the epoch's end follows, with its validation and its checkpoint
        if ranks.world_size() > 1 and state.global_step % STEPS_BETWEEN_QUESTIONS:
            return
        stop, due = ranks.any_of(self.stop_requested(), now - self.last_save > self.checkpoint_seconds)
        if stop:
            self.interrupted = control.should_save = control.should_training_stop = True
        elif due:
            control.should_save = True
        if control.should_save:
            self.look(state)
            self.last_save = now

    def on_epoch_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if state.global_step % self.steps_per_epoch:
            return  # stopped within the epoch
        self.look(state)
        seconds = self.epoch_seconds_before + time.perf_counter() - self.epoch_started
        for name, value in self._over_all_processes().items():
            setattr(self, name, value)
        validation_loss = self.validate()
        if not math.isfinite(validation_loss):
            raise StageError(f"the validation loss of epoch {len(self.epochs) + 1} is {validation_loss}. {_ADVICE}")
        row: dict[str, Any] = {
            "epoch": len(self.epochs) + 1,
            "steps": self.steps,
            "train_loss": self.loss_sum / self.tokens,
            "validation_loss": validation_loss,
            "learning_rate": self.learning_rate,
            "gradient_norm": {"mean": self.norm_sum / self.norms, "max": self.norm_max} if self.norms else None,
            "seconds": seconds,
            "examples_per_second": self.examples / seconds,
            "tokens_per_second": self.tokens / seconds,
            "peak_memory_mb": self._peak_memory_mb(),
            "cumulative_seconds": self.seconds_before + time.perf_counter() - self.started,
        }
        self.epochs.append(row)
        log.info(
            "%s, epoch %d of %d: train loss %.4f, validation loss %.4f, %.1f examples/s",
            *(self.what, row["epoch"], self.total_epochs),
            *(row["train_loss"], validation_loss, row["examples_per_second"]),
        )
        self._clear_sums()
        self.epoch_seconds_before = 0.0
        self.last_save = time.perf_counter()
        control.should_save = True
        if len(self.epochs) < self.total_epochs and ranks.any_of(self.stop_requested())[0]:
            self.interrupted = control.should_training_stop = True

    # ---- looking -------------------------------------------------------------------------------------------------

    def look(self, state: TrainerState) -> None:
        """Read losses and norms back from the device, show and write progress. StageError if a loss is not finite."""
        self.last_look = time.perf_counter()
        if self.unread_losses:
            values = torch.stack([loss for loss, _ in self.unread_losses]).tolist()
            for value, (_, tokens) in zip(values, self.unread_losses, strict=True):
                self.loss_sum += value * tokens
            self.last_loss = values[-1]
            self.unread_losses.clear()
        if self.unread_norms:
            for norm in torch.stack(self.unread_norms).tolist():
                self.norm_sum += norm
                self.norm_max = max(self.norm_max, norm)
                self.norms += 1
            self.unread_norms.clear()
        if not math.isfinite(self.loss_sum):
            raise StageError(f"the training loss is not finite any more by step {state.global_step}. {_ADVICE}")
        self._show(state)

    def _show(self, state: TrainerState) -> None:
        if ranks.rank() > 0:
            return
        done = state.global_step - self.first_step
        rate = done / max(self.last_look - self.started, 1e-9)
        left = (state.max_steps - state.global_step) / rate if done else None
        epoch = min(len(self.epochs) + 1, self.total_epochs)
        examples = self.session_examples / max(self.last_look - self.started, 1e-9)
        write_json(
            self.output_dir / "progress.json",
            {
                "epoch": epoch,
                "epochs": self.total_epochs,
                "step": state.global_step,
                "total_steps": state.max_steps,
                "loss": self.last_loss if math.isfinite(self.last_loss) else None,
                "examples_per_second": round(examples, 3),
                "seconds_left": None if left is None else round(left, 1),
                "updated": time.time(),
            },
        )
        if self.bar is not None:
            self.bar.set_postfix(epoch=f"{epoch}/{self.total_epochs}", loss=f"{self.last_loss:.3f}", refresh=False)
        elif self.last_look - self.last_line >= SECONDS_BETWEEN_LOG_LINES:
            self.last_line = self.last_look
            log.info(
                "%s, epoch %d of %d, step %d of %d: loss %.4f, %.1f examples/s, %s left",
                *(self.what, epoch, self.total_epochs, state.global_step, state.max_steps),
                *(self.last_loss, examples, "?" if left is None else duration(left)),
            )

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()

    def _clear_sums(self) -> None:
        self.loss_sum = self.norm_sum = self.norm_max = 0.0
        self.tokens = self.examples = self.steps = self.norms = 0

    def _over_all_processes(self) -> dict[str, float]:
        loss_sum, tokens, examples = ranks.total([self.loss_sum, self.tokens, self.examples])
        return {"loss_sum": loss_sum, "tokens": round(tokens), "examples": round(examples)}

    def _peak_memory_mb(self) -> float:
        if self.on_gpu:
            return torch.cuda.max_memory_allocated() / 2**20
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # Linux counts KiB


_SHARED = ("loss_sum", "tokens", "examples")  # each process has its own part of them
_SUMS = ("loss_sum", "norm_sum", "norm_max", "norms", "tokens", "examples", "steps")
_ADVICE = "Checkpoints before it are kept. Lower LEARNING_RATE, or set PRECISION to fp32."
