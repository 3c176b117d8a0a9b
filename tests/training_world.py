"""A training small enough to run, kill and run again many times in a test; what a child process does when it trains."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets

from tests.tiny import example
from utils.core.files import write_json
from utils.modeling.tokenizer import load_tokenizer
from utils.training.train import TrainingSettings, train

EXAMPLES, BATCH, EPOCHS = 18, 4, 3  # 5 steps an epoch, the last batch of two
STEPS = 5
SETTINGS = TrainingSettings(
    epochs=EPOCHS,
    learning_rate=3e-3,
    batch_size=BATCH,
    weight_decay=0.05,
    gradient_clip=1.0,
    warmup_ratio=0.15,
    seed=5,
    checkpoint_minutes=0,
)


def rows(pretrained: Path, count: int, seed: int) -> datasets.Dataset:
    """Tokenised dialogues of different lengths, as data preparation leaves them."""
    tokenizer, rng = load_tokenizer(pretrained), random.Random(seed)
    pairs = [example(rng) for _ in range(count)]
    inputs = [tokenizer("summarize: " + text[: rng.randint(20, len(text))]).input_ids for text, _ in pairs]
    return datasets.Dataset.from_dict(
        {
            "id": [f"made/train/{number}" for number in range(count)],
            "input_ids": inputs,
            "labels": [tokenizer(summary).input_ids for _, summary in pairs],
        },
        features=datasets.Features(
            {
                "id": datasets.Value("string"),
                "input_ids": datasets.List(datasets.Value("int32")),
                "labels": datasets.List(datasets.Value("int32")),
            }
        ),
    )


def run(
    pretrained: Path,
    output: Path,
    arm: str = "monotonic",
    settings: TrainingSettings = SETTINGS,
    stop_requested: Callable[[], bool] = lambda: False,
) -> dict[str, Any]:
    return train(
        arm=arm,
        pretrained_dir=pretrained,
        train_set=rows(pretrained, EXAMPLES, 0),
        validation_set=rows(pretrained, 6, 1),
        output_dir=output,
        settings=settings,
        stop_requested=stop_requested,
    )


def child(pretrained: Path, output: Path, arm: str, death: str) -> None:
    """Train in a process of its own and die as `death` says; write the history if it comes to the end.

    step N: SIGKILL at step N of this session. usr1 N: SIGUSR1, as SLURM sends it. KIND N: SIGKILL when KIND (a function
    of the checkpoint code, see below) is called for the Nth time. "": it lives.
    """
    import torch

    torch.set_num_threads(1)
    kind, _, number = death.partition(" ")
    calls, stopped = 0, []
    signal.signal(signal.SIGUSR1, lambda *_: stopped.append(True))

    def count(name: str) -> None:
        nonlocal calls
        calls += name == kind
        if kind == name and calls == int(number):
            os.kill(os.getpid(), signal.SIGUSR1 if name == "usr1" else signal.SIGKILL)

    def every_step() -> bool:
        count("step")
        count("usr1")
        return bool(stopped)

    _count_calls(count)
    history = run(pretrained, output, arm, stop_requested=every_step)
    write_json(output / "history.json", history)


def _count_calls(count: Callable[[str], None]) -> None:
    """Let `count(name)` know of every call, before it happens, of what writes and removes checkpoints."""
    import utils.training.checkpoints
    import utils.training.record
    import utils.training.train
    import utils.training.trainer

    def announced(name: str, function: Callable) -> Callable:
        def call(*args: Any, **kwargs: Any) -> Any:
            count(name)
            return function(*args, **kwargs)

        return call

    places = {
        "model": (utils.training.trainer, "save_plain"),  # before anything is in the new directory
        "state": (utils.training.trainer.ArmTrainer, "_save_rng_state"),  # model and optimizer are, the rest is not
        "seal": (
            utils.training.checkpoints,
            "write_json",
        ),  # all is but COMPLETE.json; later calls: while old ones are pruned
        "prune": (utils.training.trainer, "keep_newest"),  # the new one is whole
        "validate": (utils.training.train, "validation_loss"),
        "best": (utils.training.train, "_export_best"),
    }
    for name, (module, attribute) in places.items():
        setattr(module, attribute, announced(name, getattr(module, attribute)))
