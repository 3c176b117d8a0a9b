"""Whether `forward.summed_nll` computes for a model what transformers' module does: looked at before it trains."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize
from transformers import T5ForConditionalGeneration

from utils.core.text import first_line
from utils.modeling.batching import out_of_memory
from utils.training.batches import IGNORED_LABEL, Batch
from utils.training.forward import summed_nll
from utils.training.step import module_nll, pieces

# By whether products are in bfloat16: nats a label token, and the share of each parameter's gradient, that may differ.
# Measured (T5-small's shapes, demo models): 1e-6 and 3e-5 in float32, where what is built otherwise shows; 3e-3 and
# 0.12 in bfloat16, where each way is as far from float32, so that only what is plainly wrong shows.
SAME_LOSS = {False: 1e-5, True: 2e-2}
SAME_GRADIENT = {False: 1e-3, True: 0.5}
SMALL = 0.01  # of the norm of all gradients: those below are not asked for more than a gradient of this size


def difference(model: nn.Module, batch: Batch, *, autocast: bool) -> str:
    """Why `summed_nll` must not train `model`, in words; empty if it may.

    Loss and every gradient of the first row of `batch` (`TokenRows.share`'s) are computed both ways without dropout, in
    float32 and, with `autocast`, in bfloat16. Weights and random state are as before, gradients are gone.
    """
    if reason := unknown(model):
        return reason
    was_training, row = model.training, next(pieces(batch, 1))
    model.eval()
    try:
        with _exact_products():
            return _apart(model, row, autocast=False) or (_apart(model, row, autocast=True) if autocast else "")
    except (AttributeError, IndexError, RuntimeError, StopIteration, TypeError, ValueError) as error:
        # A layer that is built another way, whatever of it is missed first: transformers' module knows how.
        if isinstance(error, RuntimeError) and out_of_memory(error):
            return "no memory to compare the two"
        return f"it fails: {first_line(error)}"
    finally:
        model.train(was_training)
        model.zero_grad()


def unknown(model: nn.Module) -> str:
    """What of `model` `summed_nll` would not see and a row without dropout does not show; empty if nothing."""
    if type(model) is not T5ForConditionalGeneration:
        return f"it knows T5ForConditionalGeneration, this is {type(model).__name__}"
    rates = {module.p for module in model.modules() if isinstance(module, nn.Dropout)} - {model.config.dropout_rate}
    return f"dropout is {min(rates)} in a layer, {model.config.dropout_rate} in the configuration" if rates else ""


def _apart(model: nn.Module, row: Batch, *, autocast: bool) -> str:
    model.zero_grad()
    losses = []
    for nll, sign in ((module_nll, 1), (summed_nll, -1)):
        with parametrize.cached():
            loss = nll(model, row, autocast=autocast)
            (sign * loss).backward()  # the second time, what is left in .grad is the difference: no copy of gradients
        losses.append(float(loss.detach()))
        if sign == 1:
            sizes = _norms(model)
    (theirs, ours), left = losses, _norms(model)
    tokens = int((row["labels"] != IGNORED_LABEL).sum())
    if not abs(ours - theirs) <= SAME_LOSS[autocast] * max(tokens, 1):  # NaN is no agreement
        return f"{ours:.6g} nats instead of {theirs:.6g}"
    share = left / sizes.clamp_min(SMALL * sizes.norm() + torch.finfo(sizes.dtype).tiny)
    worst = int(share.nan_to_num(nan=torch.inf).argmax())
    if share[worst] <= SAME_GRADIENT[autocast]:
        return ""
    name = [name for name, _ in model.named_parameters()][worst]
    return f"the gradient of {name} differs by {float(share[worst]):.1%} of its size"


def _norms(model: nn.Module) -> torch.Tensor:
    """Of each parameter's gradient, float64; 0 where there is none."""
    zero = torch.zeros(())
    return torch.stack([(zero if p.grad is None else p.grad.norm()).cpu().double() for p in model.parameters()])


@contextmanager
def _exact_products() -> Iterator[Any]:
    """Float32 products without TF32, whose rounding would hide what is looked for."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
