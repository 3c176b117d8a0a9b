"""What a training step computes on the device: loss, gradients and their clipped norm, of a batch or piece by piece.

Nothing in it waits for the device, and nothing in it depends on anything but its arguments, the model and the random
state: the same function runs directly, twice for a comparison, and into a CUDA graph.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import parametrize

from utils.modeling.monotonic import ffn_layers
from utils.modeling.precision import bf16_autocast
from utils.training.batches import IGNORED_LABEL, Batch


def gradients(
    model: nn.Module, batch: Batch, *, autocast: bool, clip: float, micro_batch: int, processes: int = 1
) -> tuple[torch.Tensor, torch.Tensor]:
    """Put the gradients of a batch's mean loss, clipped, into `model`; return (loss, norm before clipping) scalars.

    batch: what `TokenRows.share` makes, on the device. A process's loss is what its part adds to that of the batch. At
    most `micro_batch` rows go through the model at once: their gradients add up to those of the batch, because each
    piece's sum over tokens is divided by the tokens of all of it. clip: 0 for none. processes:
    DistributedDataParallel averages over them, where the sum is wanted.
    """
    tokens = batch["batch_tokens"]
    losses = []
    pieces = list(_pieces(batch, micro_batch))
    for number, piece in enumerate(pieces, start=1):
        # Cached: W = softplus(V) once a piece, though T5's FFN reads its matrices several times.
        with parametrize.cached(), _no_exchange(model, number < len(pieces)):
            loss = summed_nll(model, piece, autocast=autocast) / tokens
            (loss if processes == 1 else loss * processes).backward()
        losses.append(loss.detach())
    return losses[0] if len(losses) == 1 else torch.stack(losses).sum(), clipped(model, clip)


def summed_nll(model: nn.Module, batch: Batch, *, autocast: bool) -> torch.Tensor:
    """Negative log-likelihood in nats summed over the label tokens of the batch, a float32 scalar.

    T5's own loss is the mean: that of a batch in pieces, or shared by processes, is no mean of theirs.
    """
    labels = batch["labels"]
    t5: Any = model.module if isinstance(model, DistributedDataParallel) else model
    # The property of transformers that tells this has two names in the releases that are pinned.
    if any(
        getattr(module, "gradient_checkpointing", False) for module in t5.modules()
    ):  # W belongs to no layer's activations: cached before the first of them
        for _, linear in ffn_layers(t5):
            _ = linear.weight
    with bf16_autocast(labels.device, autocast, cache=False):
        logits = model(
            input_ids=batch["input_ids"],
            attention_mask=batch["attention_mask"],
            decoder_input_ids=t5.prepare_decoder_input_ids_from_labels(labels),
            use_cache=False,
        ).logits
        return F.cross_entropy(
            logits.view(-1, logits.shape[-1]), labels.view(-1), ignore_index=IGNORED_LABEL, reduction="sum"
        )


def clipped(model: nn.Module, clip: float) -> torch.Tensor:
    """The global norm of the gradients, which are then scaled down to `clip` (0: as they are)."""
    parameters = [parameter for parameter in model.parameters() if parameter.grad is not None]
    norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    if clip:
        nn.utils.clip_grads_with_norm_(parameters, clip, norm)
    return norm


def _pieces(batch: Batch, micro_batch: int) -> Iterator[Batch]:
    labels = batch["labels"]
    for start in range(0, len(labels), micro_batch):
        rows = slice(start, start + micro_batch)
        mask = batch["attention_mask"]
        yield {
            "input_ids": batch["input_ids"][rows],
            "labels": labels[rows],
            "attention_mask": None if mask is None else mask[rows],
        }


@contextlib.contextmanager
def _no_exchange(model: nn.Module, wanted: bool) -> Iterator[None]:
    """Several processes add up their gradients once a step, with the last piece."""
    with model.no_sync() if wanted and isinstance(model, DistributedDataParallel) else contextlib.nullcontext():
        yield
