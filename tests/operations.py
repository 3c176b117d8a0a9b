"""Operations that a training step of T5-small's layers dispatches, by name: `python -m tests.operations`.

Counted on the device that is there, under bfloat16 autocast with dropout, from loss to AdamW. A count is exact and does
not depend on widths, so the table takes narrow ones; on a GPU attention and norms are one operation each, so there are
fewer. Former: the loss by transformers' module, as it was until 26 November 2026.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from utils.benchmarks.synthetic import Size, new_model, token_rows
from utils.core.names import BASELINE, MONOTONIC
from utils.modeling.models import choose_device
from utils.modeling.monotonic import constrain, effective_weight_decay, parameter_groups
from utils.training.batches import Padding, TokenRows
from utils.training.step import gradients, module_nll, summed_nll
from utils.training.trainer import to_device

NARROW = Size("narrow", 64, 8, 128, 6, 8, 400, max_input=64, max_target=32)  # T5-small's layers and heads
ROWS = 4
NOTHING_RUNS = ("aten::_unsafe_view", "aten::empty", "aten::new_empty", "profiler::")  # as views: no kernel
SHOWN = 10  # operations that occur at least so often have a row


class _Count(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name
        if not func.is_view and not name.startswith(NOTHING_RUNS):
            self.counts[name.removeprefix("aten::")] += 1
        return func(*args, **(kwargs or {}))


def operations(arm: str, nll: Callable[..., torch.Tensor], device: str) -> Counter[str]:
    """How often a step of `arm` dispatches each operation; views and allocations are not counted."""
    model = constrain(new_model(NARROW, device), arm=arm).train()
    optimizer = torch.optim.AdamW(parameter_groups(model, 0.01), lr=1e-4, fused=True)
    effective_weight_decay(optimizer)
    rows = TokenRows(token_rows("documents", ROWS, NARROW), padding=Padding(64, 32, rows=ROWS))
    batch = to_device(rows.share(range(ROWS), 0, 1), torch.device(device))

    def step() -> None:
        gradients(model, batch, autocast=True, clip=1.0, micro_batch=ROWS, nll=nll)
        optimizer.step()
        optimizer.zero_grad()

    step()  # makes Adam's moments and the table of distances
    with _Count() as count:
        step()
    return count.counts


def table(device: str) -> Iterator[str]:
    """The lines of the Markdown table."""
    ways = [(arm, nll) for arm in (BASELINE, MONOTONIC) for nll in (module_nll, summed_nll)]
    counts = [operations(arm, nll, device) for arm, nll in ways]
    yield "| operation | `baseline`, former | now | `monotonic`, former | now |"
    yield "|---|---|---|---|---|"
    names = sorted(set().union(*counts), key=lambda name: -max(count[name] for count in counts))
    shown = [name for name in names if max(count[name] for count in counts) >= SHOWN]
    for name in shown:
        yield f"| `{name}` | " + " | ".join(f"{count[name]}" for count in counts) + " |"
    yield "| others | " + " | ".join(f"{sum(c[n] for n in names if n not in shown)}" for c in counts) + " |"
    yield "| **all** | " + " | ".join(f"**{count.total():,}**" for count in counts) + " |"


if __name__ == "__main__":
    for line in table(choose_device("auto")):
        print(line)
