"""The gradients of a step as CUDA graphs, one a shape of batch, and the check that decides whether they are used.

A step of T5-small is some 2,000 kernels of microseconds: launched one by one, the host takes longer than the GPU. A
graph launches them at once. Only gradients are in it: they change nothing but `.grad` and the random state, so that
warm-up, capture and check need no weights to be put back, and AdamW, which is a handful of kernels, stays outside.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from utils.analysis.final import StepPath
from utils.core.text import first_line
from utils.training.batches import Batch

Result = tuple[torch.Tensor, torch.Tensor]  # loss and norm, scalars on the device
Gradients = Callable[[Batch], Result]  # leaves gradients in the model
INPUTS = ("input_ids", "attention_mask", "labels", "batch_tokens")
# Of loss, norm and gradients, relative to their size. Kernels that add up in any order differ by rounding; another mask
# of dropout, or a batch that was not copied, by a thousandth or more of the loss and most of the gradient.
TOLERANCE = {"fp32": 1e-4, "bf16": 1e-2}
WARM_UP, TIMED_STEPS = 3, 10
CHECKED = 3  # batches that both ways are tried on

log = logging.getLogger("mono_s2s.training")


@dataclass
class _Captured:
    graph: torch.cuda.CUDAGraph
    inputs: dict[str, torch.Tensor]
    result: Result


class GraphedGradients:
    """`eager` as a function of a batch whose shape was seen before: copied into fixed buffers, replayed as a graph.

    model: its gradients are the graphs' own, in memory that all of them share, until the next step.
    """

    def __init__(self, model: nn.Module, eager: Gradients) -> None:
        self.eager = eager
        self.parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.gradients = [torch.zeros_like(parameter) for parameter in self.parameters]
        self.pool = torch.cuda.graph_pool_handle()
        self.graphs: dict[tuple[torch.Size, torch.Size], _Captured] = {}

    def __call__(self, batch: Batch) -> Result:
        shape = (batch["input_ids"].shape, batch["labels"].shape)
        if shape not in self.graphs:
            self.graphs[shape] = self._capture(batch)
        captured = self.graphs[shape]
        for name, buffer in captured.inputs.items():
            buffer.copy_(batch[name], non_blocking=True)
        captured.graph.replay()
        self._hand_over()
        loss, norm = captured.result
        return loss.clone(), norm.clone()  # the next replay writes over them

    def _capture(self, batch: Batch) -> _Captured:
        """Replays draw from the generator where it stands, as eager steps do; what warm-up drew is given back."""
        before = torch.cuda.get_rng_state()
        generator = torch.cuda.default_generators[torch.cuda.current_device()]
        unharmed = generator.clone_state()
        inputs = {name: batch[name].clone() for name in INPUTS}
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):  # libraries choose kernels and workspaces before the capture
            for _ in range(WARM_UP):
                self._clear()
                self.eager(inputs)
        torch.cuda.current_stream().wait_stream(side)
        self._clear()
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, pool=self.pool):
                result = self.eager(inputs)
                # Into buffers that outlive this graph's memory, which the graphs of other shapes use as well.
                torch._foreach_copy_(self.gradients, [p.grad for p in self.parameters if p.grad is not None])
        except RuntimeError:
            # PyTorch leaves the generator in the capture that failed: every dropout after it would fail as well, with
            # "Offset increment outside graph capture".
            generator.graphsafe_set_state(unharmed)
            raise
        finally:
            self._clear()
        torch.cuda.set_rng_state(before)
        return _Captured(graph, inputs, result)

    def _clear(self) -> None:
        for parameter in self.parameters:
            parameter.grad = None

    def _hand_over(self) -> None:
        for parameter, gradient in zip(self.parameters, self.gradients, strict=True):
            parameter.grad = gradient


def obstacle(setting: str, *, device: str, processes: int, whole_batch: bool, checkpointing: bool) -> str | None:
    """Why graphs are not even tried, None where they are. setting: that of TRAINING_GRAPHS."""
    reasons = {
        "TRAINING_GRAPHS is off": setting == "off",
        "no GPU": device != "cuda",
        "several processes share each batch": processes > 1,
        "a batch goes through the model in pieces": not whole_batch,
        "gradient checkpointing looks at the random state while it computes": checkpointing,
    }
    return next((reason for reason, holds in reasons.items() if holds), None)


def choose(
    model: nn.Module,
    eager: Gradients,
    make_fast: Callable[[], Gradients],
    batches: Sequence[Batch],
    *,
    precision: str,
    generators: Any,
    wait: Callable[[], None],
) -> tuple[Gradients, StepPath]:
    """The faster of two ways to the same gradients, which both are tried on `batches` first; and what was found.

    generators: torch.cuda or torch.random, of which dropout draws. wait: until the device has done its work. Weights
    and random state are as they were. The eager way is taken, with one line that says why, where the fast one fails,
    finds something else, draws other random numbers, or is not faster.
    """
    before = generators.get_rng_state()
    eager_ms = graph_ms = None
    try:
        fast = make_fast()
        reason = next(filter(None, (_difference(model, eager, fast, b, precision, generators) for b in batches)), None)
        if reason is None:
            eager_ms, graph_ms = (_milliseconds(model, way, batches[0], wait) for way in (eager, fast))
            if graph_ms >= eager_ms:
                reason = f"they are not faster: {graph_ms:.1f} ms a step instead of {eager_ms:.1f}"
    except RuntimeError as error:  # a capture that CUDA refuses, no memory for it
        reason = failure(error)
    generators.set_rng_state(before)
    model.zero_grad()
    if reason is None:
        log.info("CUDA graphs: the same gradients in %.1f ms a step instead of %.1f", graph_ms, eager_ms)
        return fast, StepPath(path="graphs", reason="", eager_ms=eager_ms, graph_ms=graph_ms)
    log.warning("Training without CUDA graphs: %s.", reason)
    return eager, StepPath(path="eager", reason=reason, eager_ms=eager_ms, graph_ms=graph_ms)


def failure(error: BaseException) -> str:
    """Why graphs failed, in a line: of a capture that broke off, what broke it, not that it did."""
    return f"they failed: {first_line(error.__context__ or error)}"


def _difference(
    model: nn.Module, eager: Gradients, fast: Gradients, batch: Batch, precision: str, generators: Any
) -> str | None:
    """What the two ways find of one batch from the same random state that is not the same; None where all is."""
    before, found = generators.get_rng_state(), []
    for way in (eager, fast):
        generators.set_rng_state(before)
        model.zero_grad()
        loss, norm = way(batch)
        gradients = [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]
        found.append((loss, norm, gradients, generators.get_rng_state()))
    (loss, norm, gradients, state), (other_loss, other_norm, other_gradients, other_state) = found
    if not torch.equal(state, other_state):
        return "they draw other random numbers"
    size = nn.utils.get_total_norm(gradients)
    apart = nn.utils.get_total_norm([a - b for a, b in zip(gradients, other_gradients, strict=True)])
    pairs = {"loss": (loss - other_loss, loss), "norm": (norm - other_norm, norm), "gradients": (apart, size)}
    for name, (difference, whole) in pairs.items():
        relative = float((difference / whole).abs())
        if not relative <= TOLERANCE[precision]:  # NaN is no agreement
            return f"their {name} differs by {relative:.1g}, allowed are {TOLERANCE[precision]:g}"
    return None


def _milliseconds(model: nn.Module, way: Gradients, batch: Batch, wait: Callable[[], None]) -> float:
    """Of one call, the mean of several."""
    for count in (2, TIMED_STEPS):  # the first ones warm up
        wait()
        start = time.perf_counter()
        for _ in range(count):
            model.zero_grad()
            way(batch)
        wait()
    return 1000 * (time.perf_counter() - start) / TIMED_STEPS
