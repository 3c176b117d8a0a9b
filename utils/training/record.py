"""What a training remembers and shows: sums of the running epoch, history, progress, and when to write a checkpoint.

On a GPU the host runs ahead of the device; reading a number back makes it wait. So losses and norms stay on the device
as scalars and are read together, every few seconds and at the end of an epoch.
"""

from __future__ import annotations

import logging
import math
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from utils.analysis.final import EpochRow, NormSummary
from utils.core.codec import from_json, to_json
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


@dataclass
class EpochSums:
    """Sums over the running epoch so far; Python numbers, so that a checkpoint's JSON keeps them exactly."""

    loss_sum: float = 0.0  # nats: each batch's mean loss times its label tokens
    norm_sum: float = 0.0  # of gradient norms
    norm_max: float = 0.0
    norms: int = 0  # how many norms were read
    tokens: int = 0  # label tokens
    examples: int = 0
    steps: int = 0


class TrainingRecord(TrainerCallback):
    """Follows a Trainer: sums up epochs, asks for checkpoints, shows progress, stops on a loss that is not finite.

    arm: for messages. validate: gives the validation loss (nats per token) of the model as it is. stop_requested: asked
    after a step; true: a checkpoint is written, training ends, `interrupted` is set. checkpoint_minutes: between
    checkpoints within an epoch, 0 for none. `state()` and `restore()` carry everything that must survive a restart.
    """

    def __init__(
        self,
        arm: str,
        output_dir: Path,
        *,
        epochs: int,
        steps_per_epoch: int,
        validate: Callable[[], float],
        stop_requested: Callable[[], bool],
        checkpoint_minutes: float,
        on_gpu: bool,
    ) -> None:
        self.arm, self.output_dir = arm, output_dir
        self.total_epochs, self.steps_per_epoch = epochs, steps_per_epoch
        self.validate, self.stop_requested = validate, stop_requested
        self.checkpoint_seconds = 60 * checkpoint_minutes or math.inf
        self.on_gpu = on_gpu
        self.epochs: list[EpochRow] = []
        self.interrupted = False
        self.last_loss = math.nan
        # Scalars that are still on the device, a loss with the label tokens it is divided by.
        self.unread_losses: list[tuple[torch.Tensor, int]] = []
        self.unread_norms: list[torch.Tensor] = []
        self.sums = EpochSums()
        self.seconds_before = self.epoch_seconds_before = 0.0
        self.started = self.epoch_started = self.last_look = self.last_line = self.last_save = time.perf_counter()
        self.first_step = self.session_examples = 0
        self.learning_rate = 0.0
        self.bar: Any = None
        # Told figures by name as they come, for REPORT_TO; past Trainer's log, whose history goes into checkpoints.
        self.report: Callable[[dict[str, float]], object] = lambda _: None

    # ---- every batch -------------------------------------------------------------------------------------------

    def after_batch(self, loss: torch.Tensor, tokens: int, batch_tokens: int, examples: int) -> None:
        """Note a batch: this process's `examples` of it with their label `tokens`, and what they add to its mean loss.

        loss: scalar on the device, their loss summed and divided by the label tokens of the whole batch.
        """
        self.unread_losses.append((loss, batch_tokens))
        self.sums.tokens += tokens
        self.sums.examples += examples
        self.sums.steps += 1
        self.session_examples += examples

    def after_norm(self, norm: torch.Tensor) -> None:
        """Note the global gradient norm before clipping (scalar on the device)."""
        self.unread_norms.append(norm)

    # ---- what a checkpoint remembers ---------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """What `restore` needs; the sums are those over all processes, so each of them must call it."""
        now = time.perf_counter()
        return {
            "epochs": to_json(self.epochs),
            "sums": asdict(self.sums) | self._over_all_processes(),
            "seconds": self.seconds_before + now - self.started,
            "epoch_seconds": self.epoch_seconds_before + now - self.epoch_started if self.sums.steps else 0.0,
        }

    def restore(self, state: dict[str, Any]) -> None:
        self.epochs = [from_json(EpochRow, row) for row in state["epochs"]]
        # What was summed over all processes continues in process 0 alone, or the next sum would count it several times.
        elsewhere = _SUMMED_OVER_PROCESSES if ranks.rank() > 0 else ()
        names = [field.name for field in fields(EpochSums)]
        self.sums = EpochSums(**{name: state["sums"][name] for name in names if name not in elsewhere})
        self.seconds_before, self.epoch_seconds_before = state["seconds"], state["epoch_seconds"]

    # ---- Trainer's events --------------------------------------------------------------------------------------

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.started = self.epoch_started = self.last_save = time.perf_counter()
        self.first_step = state.global_step
        self.bar = (
            progress(label=self.arm, total=state.max_steps, unit="step")
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
        sums = EpochSums(**asdict(self.sums) | self._over_all_processes())
        validation_loss = self.validate()
        if not math.isfinite(validation_loss):
            raise StageError(f"the validation loss of epoch {len(self.epochs) + 1} is {validation_loss}. {_ADVICE}")
        row = EpochRow(
            epoch=len(self.epochs) + 1,
            steps=sums.steps,
            train_loss=sums.loss_sum / sums.tokens,
            validation_loss=validation_loss,
            learning_rate=self.learning_rate,
            gradient_norm=NormSummary(mean=sums.norm_sum / sums.norms, max=sums.norm_max) if sums.norms else None,
            peak_memory_mb=self._peak_memory_mb(),
            seconds=seconds,
            examples_per_second=sums.examples / seconds,
            tokens_per_second=sums.tokens / seconds,
            cumulative_seconds=self.seconds_before + time.perf_counter() - self.started,
        )
        self.epochs.append(row)
        self.report({"eval_loss": row.validation_loss, "epoch_loss": row.train_loss, "epoch": float(row.epoch)})
        log.info(
            "%s, epoch %d of %d: train loss %.4f, validation loss %.4f, %.1f examples/s",
            *(self.arm, row.epoch, self.total_epochs),
            *(row.train_loss, validation_loss, row.examples_per_second),
        )
        self.sums = EpochSums()
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
                self.sums.loss_sum += value * tokens
            self.last_loss = values[-1] * ranks.world_size()  # the others' parts are about as large
            self.unread_losses.clear()
        if self.unread_norms:
            for norm in torch.stack(self.unread_norms).tolist():
                self.sums.norm_sum += norm
                self.sums.norm_max = max(self.sums.norm_max, norm)
                self.sums.norms += 1
            self.unread_norms.clear()
        if not math.isfinite(self.sums.loss_sum):  # NaN and infinity stay in a sum, so one look finds any of them
            raise StageError(f"the training loss is not finite any more by step {state.global_step}. {_ADVICE}")
        if math.isfinite(self.last_loss):
            self.report({"loss": self.last_loss, "learning_rate": self.learning_rate})
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
                *(self.arm, epoch, self.total_epochs, state.global_step, state.max_steps),
                *(self.last_loss, examples, "?" if left is None else duration(left)),
            )

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()

    def _over_all_processes(self) -> dict[str, Any]:
        """The sums of which each process has a part, over all of them; gradients are equal in all, and so are norms."""
        loss_sum, tokens, examples = ranks.total([self.sums.loss_sum, self.sums.tokens, self.sums.examples])
        return {"loss_sum": loss_sum, "tokens": round(tokens), "examples": round(examples)}

    def _peak_memory_mb(self) -> float:
        if self.on_gpu:
            return torch.cuda.max_memory_allocated() / 2**20
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # Linux counts KiB


_SUMMED_OVER_PROCESSES = ("loss_sum", "tokens", "examples")
_ADVICE = "Earlier checkpoints are kept. Lower LEARNING_RATE, or set PRECISION to fp32."
