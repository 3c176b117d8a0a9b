"""What a training step computes on the device: loss, gradients and their clipped norm, of a batch or piece by piece.

Nothing in it waits for the device, and nothing in it depends on anything but its arguments, the model and the random
state: the same function runs directly, twice for a comparison, and into a CUDA graph.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrize

from utils.modeling.monotonic import ffn_layers
from utils.modeling.precision import bf16_autocast
from utils.training import ranks
from utils.training.batches import IGNORED_LABEL, Batch
from utils.training.forward import summed_nll


def gradients(
    model: nn.Module,
    batch: Batch,
    *,
    autocast: bool,
    clip: float,
    micro_batch: int,
    nll: Callable[..., torch.Tensor] = summed_nll,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Put the gradients of a batch's mean loss, clipped, into `model`; return (loss, norm before clipping) scalars.

    batch: what `TokenRows.share` makes, on the device. A process's loss is what its part adds to that of the batch;
    gradients are those of all of it. At most `micro_batch` rows go through the model at once: their gradients add up to
    those of the batch, because each piece's sum over tokens is divided by the tokens of all of it.
    model: a T5ForConditionalGeneration. clip: 0 for none. nll: `summed_nll`, or what computes the same.
    """
    losses = []
    for piece in pieces(batch, micro_batch):
        with parametrize.cached():  # also while transformers' module computes activations again
            loss = nll(model, piece, autocast=autocast) / batch["batch_tokens"]
            loss.backward()
        losses.append(loss.detach())
    ranks.add_up([p.grad for p in model.parameters() if p.grad is not None])
    return losses[0] if len(losses) == 1 else torch.stack(losses).sum(), clipped(model, clip)


def module_nll(model: Any, batch: Batch, *, autocast: bool) -> torch.Tensor:
    """`summed_nll` by transformers' own module: the reference of tests and benchmarks, and its stand-in if they differ.

    T5's own loss is the mean: that of a batch in pieces, or shared by processes, is no mean of theirs.
    """
    labels = batch["labels"]
    # Cached: W = softplus(V) once, though T5's FFN reads its matrices several times.
    with parametrize.cached(), bf16_autocast(labels.device, autocast, cache=False):
        for _, linear in ffn_layers(model):  # belongs to no layer's activations, where those are computed again
            _ = linear.weight
        logits = model(
            input_ids=batch["input_ids"],
            attention_mask=batch["attention_mask"],
            decoder_input_ids=model.prepare_decoder_input_ids_from_labels(labels),
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


def pieces(batch: Batch, micro_batch: int) -> Iterator[Batch]:
    """What a model reads of `batch`, at most `micro_batch` rows at once."""
    labels = batch["labels"]
    for start in range(0, len(labels), micro_batch):
        rows = slice(start, start + micro_batch)
        mask = batch["attention_mask"]
        yield {
            "input_ids": batch["input_ids"][rows],
            "labels": labels[rows],
            "attention_mask": None if mask is None else mask[rows],
        }
