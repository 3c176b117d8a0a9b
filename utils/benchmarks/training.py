"""Training: one optimizer step after the other on the same batches, ours against two ways that users have."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import datasets
import torch
from transformers import (
    DataCollatorForSeq2Seq,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    T5ForConditionalGeneration,
    TrainerCallback,
)

from utils.benchmarks.measure import Clock, Comparison, Span, Way, alternate, check, count_flops, relative_difference
from utils.benchmarks.synthetic import Size, new_model, precision, product_dtype, token_rows, tokenizer
from utils.modeling.monotonic import constrain
from utils.training.batches import LengthBuckets, TokenRows
from utils.training.record import TrainingRecord
from utils.training.train import TrainingSettings, _arguments
from utils.training.trainer import ArmTrainer

BATCH = 4
LEARNING_RATE = 5e-5
TARGETS = {
    "documents": {"padded recipe": 2.5, "Seq2SeqTrainer": 1.3, "ours, monotonic": 1 / 1.05},
    "dialogues": {"padded recipe": 4.5, "Seq2SeqTrainer": 1.3, "ours, monotonic": 1 / 1.05},
}


class StepTimes(TrainerCallback):
    """Moments at which optimizer steps ended; the first step warms up and does not count."""

    def __init__(self, clock: Clock) -> None:
        self.clock, self.marks = clock, list[Any]()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.marks.append(self.clock.mark())

    def span(self) -> Span:
        return self.clock.span(self.marks[0], self.marks[-1])


class LossRecord(TrainingRecord):
    """The pipeline's record, which also keeps every batch's loss."""

    def after_batch(self, loss: torch.Tensor, tokens: int, examples: int) -> None:
        self.losses = [*getattr(self, "losses", []), loss]
        super().after_batch(loss, tokens, examples)


def chosen_batches(kind: str, size: Size) -> datasets.Dataset:
    """`training_steps` batches of those that LengthBuckets makes of 50 batches, spread over their lengths.

    Sorted again they are the same batches, so that a run of a few steps sees batches as alike as a full one does.
    """
    rows = token_rows(kind, 50 * BATCH, size)
    order = sorted(LengthBuckets(TokenRows(rows), BATCH, seed=0), key=lambda b: -len(rows[b[0]]["input_ids"]))
    picks = [order[round(i * 49 / (size.training_steps - 1))] for i in range(size.training_steps)]
    return rows.select([row for batch in picks for row in batch])


def our_steps(
    model: T5ForConditionalGeneration, rows: datasets.Dataset, device: str, *, arm: str, output: Path
) -> tuple[Span, list[float]]:
    """Train `model` on each batch once with the pipeline's trainer: seconds from step 2 on, and the losses."""
    settings = TrainingSettings(
        epochs=1,
        learning_rate=LEARNING_RATE,
        batch_size=BATCH,
        weight_decay=0.01,
        gradient_clip=1.0,
        warmup_ratio=0.0,
        seed=0,
        device=device,
        precision=precision(device),
    )
    record = LossRecord(
        arm,
        output,
        epochs=2,
        steps_per_epoch=len(rows),  # never reached: no validation and no checkpoint in the time measured
        validate=lambda: 0.0,
        stop_requested=lambda: False,
        checkpoint_minutes=0,
        on_gpu=device == "cuda",
    )
    times = StepTimes(Clock(device))
    trainer = ArmTrainer(
        model=constrain(model, arm=arm).train(),
        tokenizer=tokenizer(model.config.vocab_size),
        args=_arguments(output, settings),
        rows=TokenRows(rows, multiple_of=8 if device == "cuda" else 1),
        record=record,
        autocast=device == "cuda",
        identity={},
        gradient_norms=True,
        checkpoints_to_keep=1,
    )
    trainer.add_callback(times)
    trainer.train()
    return times.span(), [float(loss) for loss in record.losses]


def padded_steps(
    model: T5ForConditionalGeneration, batches: Sequence[Sequence[dict[str, list[int]]]], size: Size, device: str
) -> tuple[Span, list[float]]:
    """The plain recipe on the same batches: padded to the limits, float32, the loss read at every step."""
    model = model.to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=len(batches))
    clock, marks, losses = Clock(device), [], []
    for rows in batches:
        ids = torch.full((len(rows), size.max_input), 0)
        labels = torch.full((len(rows), size.max_target), -100)
        for i, row in enumerate(rows):
            ids[i, : len(row["input_ids"])] = torch.tensor(row["input_ids"])
            labels[i, : len(row["labels"])] = torch.tensor(row["labels"])
        ids, labels = ids.to(device), labels.to(device)
        optimizer.zero_grad()
        loss = model(input_ids=ids, attention_mask=(ids != 0).long(), labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
        marks.append(clock.mark())
    return clock.span(marks[0], marks[-1]), losses


def seq2seq_steps(model: T5ForConditionalGeneration, rows: datasets.Dataset, device: str, output: Path) -> Span:
    """transformers' Seq2SeqTrainer with dynamic padding, at defaults; it takes `rows` in their order."""
    times = StepTimes(Clock(device))
    arguments = Seq2SeqTrainingArguments(
        output_dir=str(output),
        per_device_train_batch_size=BATCH,
        max_steps=len(rows) // BATCH,
        learning_rate=LEARNING_RATE,
        train_sampling_strategy="sequential",
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=device == "cpu",
        bf16=device == "cuda",
    )
    words = tokenizer(model.config.vocab_size)
    trainer = Seq2SeqTrainer(
        model=model,
        args=arguments,
        train_dataset=rows,
        data_collator=DataCollatorForSeq2Seq(words, model),
        callbacks=[times],
    )
    trainer.train()
    return times.span()


def case(size: Size, device: str) -> list[Comparison]:
    """Documents and dialogues: ours, monotonic and baseline, the padded recipe and Seq2SeqTrainer."""
    with tempfile.TemporaryDirectory() as folder:
        return [_compare(kind, size, device, Path(folder)) for kind in ("documents", "dialogues")]


def _compare(kind: str, size: Size, device: str, folder: Path) -> Comparison:
    rows = chosen_batches(kind, size)
    model = new_model(size)
    order = list(LengthBuckets(TokenRows(rows), BATCH, seed=0))
    batches = [[rows[i] for i in batch] for batch in order]
    # Seq2SeqTrainer draws at random; the first batch, which is not timed, is ours.
    rest = torch.randperm(len(rows) - BATCH, generator=torch.Generator().manual_seed(1)).tolist()
    others = [i for batch in order[1:] for i in batch]
    shuffled = rows.select([*order[0], *(others[i] for i in rest)])
    fresh: Callable[[], T5ForConditionalGeneration] = lambda: copy.deepcopy(model)  # noqa: E731
    timed = len(rows) - BATCH

    def ours(arm: str) -> Span:
        return our_steps(fresh(), rows, device, arm=arm, output=folder)[0]

    ways = [
        Way("ours", lambda: ours("baseline"), timed, _flops(model, batches[1:], device)),
        Way("ours, monotonic", lambda: ours("monotonic"), timed),
        Way("padded recipe", lambda: padded_steps(fresh(), batches, size, device)[0], timed),
        Way("Seq2SeqTrainer", lambda: seq2seq_steps(fresh(), shuffled, device, folder), timed),
    ]
    found = Comparison(f"training, {kind}, batch {BATCH}", "examples", ways)
    found.targets = {
        "padded recipe": TARGETS[kind]["padded recipe"],
        "Seq2SeqTrainer": 1.3,
        "ours, monotonic": 1 / 1.05,
    }
    still = new_model(size, dropout=0.0)
    # Dropout draws other numbers for other shapes: without it two steps must have the padded recipe's losses.
    two = rows.select([i for batch in order[:2] for i in batch])
    pair = [[two[i] for i in batch] for batch in LengthBuckets(TokenRows(two), BATCH, seed=0)]
    _, own = our_steps(copy.deepcopy(still), two, device, arm="baseline", output=folder)
    _, theirs = padded_steps(copy.deepcopy(still), pair, size, device)
    tolerance = 1e-5 if device == "cpu" else 2e-2
    found.checks.append(
        check(
            relative_difference(own, theirs) < tolerance,
            f"losses of ours and of the padded recipe without dropout: {_text(own)} and {_text(theirs)}",
        )
    )
    return alternate(found, rounds=size.rounds, device=device, dtype=product_dtype(device))


def _flops(model: T5ForConditionalGeneration, batches: Sequence[Sequence[dict[str, list[int]]]], device: str) -> float:
    """Operations of forward and backward over the batches as ours pads them (to their longest row)."""
    total = 0.0
    meta = copy.deepcopy(model).to("meta")
    for rows in batches:
        ids = torch.zeros(len(rows), max(len(row["input_ids"]) for row in rows), dtype=torch.long, device="meta")
        labels = torch.zeros(len(rows), max(len(row["labels"]) for row in rows), dtype=torch.long, device="meta")
        embeds = torch.empty(*ids.shape, model.config.d_model, device="meta")

        def forward(embeds: torch.Tensor = embeds, labels: torch.Tensor = labels) -> None:
            meta(inputs_embeds=embeds, decoder_input_ids=labels, use_cache=False)

        total += 3 * count_flops(forward)  # a backward pass has two products for each one of the forward pass
    return total


def _text(losses: Sequence[float]) -> str:
    return " ".join(f"{loss:.5f}" for loss in losses)
