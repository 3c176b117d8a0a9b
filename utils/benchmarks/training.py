"""Training: stages 2 and 3 on batches of the experiment's mixture, beside transformers' Seq2SeqTrainer."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from transformers import (
    DataCollatorForSeq2Seq,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    T5ForConditionalGeneration,
    TrainerCallback,
)
from transformers.trainer_callback import PrinterCallback

from configs.experiment_config import NUM_EPOCHS
from utils.benchmarks.measure import Comparison, Way, alternate, check, now
from utils.benchmarks.synthetic import Size, new_model, token_rows, tokenizer
from utils.core.names import BASELINE, MONOTONIC
from utils.modeling.models import load_model
from utils.training.train import TrainingSettings, train

BATCH = 4
EPOCHS = 2  # the first one warms up
LEARNING_RATE, WEIGHT_DECAY = 5e-5, 0.01
TRAINING_ROWS = 242_774  # of the experiment
SHARES = {"documents": 0.84, "dialogues": 0.16}  # of them: arXiv; DialogSum and HighlightSum


class LastEpoch(TrainerCallback):
    """Seconds of the epoch that began last."""

    def on_epoch_begin(self, *_: Any, **__: Any) -> None:
        self.start = now()

    def on_epoch_end(self, *_: Any, **__: Any) -> None:
        self.seconds = now() - self.start


def our_training(
    pretrained: Path, rows: datasets.Dataset, device: str, arm: str
) -> tuple[float, float, dict[str, Any]]:
    """Train as the stages do: seconds of the last epoch, the mean loss of all of them, how gradients were computed."""
    output = pretrained.with_name(arm)
    shutil.rmtree(output, ignore_errors=True)  # it would go on from there
    history = train(
        arm=arm,
        pretrained_dir=pretrained,
        train_set=rows,
        validation_set=rows.select(range(BATCH)),
        output_dir=output,
        settings=TrainingSettings(
            epochs=EPOCHS,
            learning_rate=LEARNING_RATE,
            batch_size=BATCH,
            weight_decay=WEIGHT_DECAY,
            gradient_clip=1.0,
            warmup_ratio=0.0,
            seed=0,
            device=device,
            checkpoint_minutes=0,
        ),
    )
    epochs = history["epochs"]
    return epochs[-1]["seconds"], float(np.mean([row["train_loss"] for row in epochs])), history["step_path"]


def seq2seq_training(pretrained: Path, rows: datasets.Dataset, device: str) -> tuple[float, float]:
    """The same by transformers' trainer, with its random batches, padded to the longest of each."""
    model = load_model(pretrained).train()
    arguments = Seq2SeqTrainingArguments(
        output_dir=str(pretrained.with_name("seq2seq")),
        per_device_train_batch_size=BATCH,
        num_train_epochs=EPOCHS,
        learning_rate=LEARNING_RATE,
        weight_decay=WEIGHT_DECAY,
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=device == "cpu",
        bf16=device == "cuda",
    )
    timer = LastEpoch()
    collator = DataCollatorForSeq2Seq(tokenizer(model.config.vocab_size), model)
    trainer = Seq2SeqTrainer(model, arguments, collator, rows, callbacks=[timer])
    trainer.remove_callback(PrinterCallback)
    loss = trainer.train().training_loss
    return timer.seconds, loss


def case(size: Size, device: str) -> list[Comparison]:
    """Baseline and monotonic by our trainer, and Seq2SeqTrainer; time of forward, backward and optimizer steps."""
    kinds = [token_rows(kind, round(size.training_steps * BATCH * share), size) for kind, share in SHARES.items()]
    rows = datasets.concatenate_datasets(kinds)
    with tempfile.TemporaryDirectory() as folder:
        pretrained = _exported(new_model(size, "cpu"), Path(folder) / "pretrained")
        work: dict[str, Callable[[], float]] = {
            "ours, baseline": lambda: our_training(pretrained, rows, device, BASELINE)[0],
            "ours, monotonic": lambda: our_training(pretrained, rows, device, MONOTONIC)[0],
            "Seq2SeqTrainer": lambda: seq2seq_training(pretrained, rows, device)[0],
        }
        ways = [Way(name, run, len(rows)) for name, run in work.items()]
        comparison = Comparison(f"training, batch {BATCH}", "examples", ways)
        # Without dropout, which draws other numbers for other shapes, one batch must give both trainers the same loss.
        still = _exported(new_model(size, "cpu", dropout=0.0), Path(folder) / "still")
        batch = rows.select(range(BATCH))
        _, found, path = our_training(still, batch, device, BASELINE)
        _, expected = seq2seq_training(still, batch, device)
        same = np.isclose(found, expected, rtol=1e-5 if device == "cpu" else 2e-2)
        text = f"mean loss of {EPOCHS} steps without dropout: ours {found:.5f}, Seq2SeqTrainer {expected:.5f}"
        comparison.checks.append(check(bool(same), text))
        alternate(comparison, rounds=size.rounds)
    steps = [1000 * way.median / (way.items / BATCH) for way in ways]
    rates = ", ".join(f"{way.name} {step:.1f}" for way, step in zip(ways, steps, strict=True))
    comparison.notes.append(f"ms a step of {BATCH} (gradients by {_by(path)}): {rates}")
    hours = [TRAINING_ROWS * NUM_EPOCHS * way.median / way.items / 3600 for way in ways[:2]]
    comparison.notes.append(
        f"{TRAINING_ROWS:,} examples × {NUM_EPOCHS} epochs at these rates: {hours[0]:.1f} h, monotonic {hours[1]:.1f} h"
    )
    return [comparison]


def _by(path: dict[str, Any]) -> str:
    """How gradients were computed, in words, with the milliseconds of both ways where both were timed."""
    both = f", {path['graph_ms']:.1f} ms instead of {path['eager_ms']:.1f}" if path.get("graph_ms") else ""
    return f"CUDA graphs{both}" if path["path"] == "graphs" else f"eager steps: {path['reason']}{both}"


def _exported(model: T5ForConditionalGeneration, directory: Path) -> Path:
    model.save_pretrained(directory)
    tokenizer(model.config.vocab_size).save_pretrained(directory)
    return directory
