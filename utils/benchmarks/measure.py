"""Timing of alternatives side by side, and what the device can do at best."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry


class Span(NamedTuple):
    """Seconds of one run; and of processors at work (this process and its children), which others do not disturb."""

    seconds: float
    cpu_seconds: float


class Clock:
    """Moments on a device: CUDA events on a GPU (no waiting in between), clocks of wall and processor on a CPU."""

    def __init__(self, device: str) -> None:
        self.cuda = device == "cuda"

    def mark(self) -> Any:
        """A moment of the device's work so far."""
        if not self.cuda:
            return time.perf_counter(), time.process_time() + sum(os.times()[2:4])
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def span(self, start: Any, end: Any) -> Span:
        """From one moment to another; waits for the second. A GPU's span has no processor seconds (0)."""
        if not self.cuda:
            return Span(end[0] - start[0], end[1] - start[1])
        end.synchronize()
        return Span(float(start.elapsed_time(end)) / 1000, 0.0)


@dataclass
class Way:
    """One way to do a piece of work. `run` does it once, and returns its span if it timed itself, else None.

    `items`: how many things (examples, summaries, pairs) one run does; where it differs between the ways of a
    comparison the rates are compared. `flops`: floating-point operations of one run, 0 where they do not matter.
    """

    name: str
    run: Callable[[], Span | None]
    items: float = 1.0
    flops: float = 0.0
    seconds: list[float] = field(default_factory=list)
    cpu_seconds: list[float] = field(default_factory=list)
    peak_memory_mb: float = 0.0


@dataclass
class Comparison:
    """What one case found: `ways[0]` is ours, the others what it is held against.

    `targets`: per reference name the ratio asked for (ours × target at least as fast). `checks`: what was found equal.
    """

    title: str
    unit: str
    ways: list[Way]
    checks: list[str] = field(default_factory=list)
    targets: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    matmul_peak: float = 0.0  # FLOP/s
    share_target: float = 0.0  # of the matmul peak that ours should reach

    def ratio(self, way: Way) -> float:
        """How many times as fast as `way` ours is: the median over rounds, so that a slow minute hits both."""
        return _ratio(self.ways[0], way, self.ways[0].seconds, way.seconds)

    def cpu_ratio(self, way: Way) -> float | None:
        """The same in seconds of processors: the ratio to look at where others use the machine. None on a GPU."""
        own, theirs = self.ways[0].cpu_seconds, way.cpu_seconds
        return _ratio(self.ways[0], way, own, theirs) if own and theirs and min(own) > 0 else None

    def share(self, way: Way) -> float | None:
        """FLOP/s of `way` as a share of the matmul peak; on a CPU both by processor seconds. None if not counted."""
        if not way.flops or not self.matmul_peak:
            return None
        return way.flops / statistics.median(_busy(way)) / self.matmul_peak

    def as_json(self) -> dict[str, Any]:
        rows = []
        for way in self.ways:
            median = statistics.median(way.seconds)
            row: dict[str, Any] = {
                "name": way.name,
                "items": way.items,
                "seconds": [round(s, 6) for s in way.seconds],
                "median_seconds": median,
                "spread": (max(way.seconds) - min(way.seconds)) / median,
                "per_second": way.items / median,
                "ratio": self.ratio(way),
                "cpu_seconds": [round(s, 3) for s in way.cpu_seconds],
                "cpu_ratio": self.cpu_ratio(way),
                "target": self.targets.get(way.name),
                "peak_memory_mb": round(way.peak_memory_mb, 1) or None,
            }
            if way.flops:
                row["flops_per_second"] = way.flops / median
                row["share_of_matmul_peak"] = self.share(way)
            rows.append(row)
        return {
            "title": self.title,
            "unit": self.unit,
            "matmul_peak_flops_per_second": self.matmul_peak or None,
            "share_target": self.share_target or None,
            "ways": rows,
            "checks": self.checks,
            "notes": self.notes,
        }


def alternate(comparison: Comparison, *, rounds: int, device: str, dtype: torch.dtype | None = None) -> Comparison:
    """Run every way once a round, `rounds` times; fills in seconds and peak memory.

    `dtype`: of the matrix products, for the device's peak, which is measured again in every round; None: not asked.
    """
    clock = Clock(device)
    peaks = []
    for _ in range(rounds):
        if dtype is not None:
            peaks.append(matmul_peak(device, dtype))
        for way in comparison.ways:
            reset_peak_memory(device)
            start = clock.mark()
            own = way.run()
            span = clock.span(start, clock.mark()) if own is None else own
            way.seconds.append(span.seconds)
            way.cpu_seconds.append(span.cpu_seconds)
            way.peak_memory_mb = max(way.peak_memory_mb, peak_memory_mb(device))
    if peaks:
        comparison.matmul_peak = statistics.median(peaks)
    return comparison


def _busy(way: Way) -> list[float]:
    return way.cpu_seconds if way.cpu_seconds and min(way.cpu_seconds) > 0 else way.seconds


def _ratio(ours: Way, way: Way, own: Sequence[float], theirs: Sequence[float]) -> float:
    return statistics.median((b / way.items) / (a / ours.items) for a, b in zip(own, theirs, strict=False))


def matmul_peak(device: str, dtype: torch.dtype, *, repetitions: int = 5) -> float:
    """FLOP/s of a large square matrix product by torch.mm, the median of some.

    On a CPU by processor seconds, all threads together: what others do on the machine slows these less than the wall's.
    """
    size = 8192 if device == "cuda" else 2048
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    clock = Clock(device)
    spans = []
    for _ in range(repetitions):
        start = clock.mark()
        with torch.inference_mode():
            torch.mm(a, b)
        spans.append(clock.span(start, clock.mark()))
    return 2 * size**3 / statistics.median(span.cpu_seconds or span.seconds for span in spans)


def count_flops(work: Callable[[], Any]) -> float:
    """Floating-point operations of the matrix products and attention in `work()`, which is run once."""
    counter = _Counter()
    with counter:
        work()
    return counter.flops


# torch has formulas for the attention kernels of GPUs; the CPU's does the same products.
_ATEN = torch.ops.aten
_FORMULAS = {
    **flop_registry,
    _ATEN._scaled_dot_product_flash_attention_for_cpu: flop_registry[_ATEN._scaled_dot_product_flash_attention],
    _ATEN._scaled_dot_product_flash_attention_for_cpu_backward: flop_registry[
        _ATEN._scaled_dot_product_flash_attention_backward
    ],
}


class _Counter(TorchDispatchMode):
    """torch's formulas without its FlopCounterMode, whose hooks forbid torch.autograd.grad."""

    def __init__(self) -> None:
        super().__init__()
        self.flops = 0.0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        formula = _FORMULAS.get(func._overloadpacket)
        if formula is None and func._can_decompose():  # inference mode leaves linear and matmul whole
            with self:
                return func.decompose(*args, **kwargs)
        result = func(*args, **kwargs)
        if formula is not None:
            self.flops += formula(*args, **kwargs, out_val=result)
        return result


def reset_peak_memory(device: str) -> None:
    """Start measuring peak memory anew."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    elif (clear := Path("/proc/self/clear_refs")).exists():
        clear.write_text("5")  # Linux: resets the high-water mark of this process


def peak_memory_mb(device: str) -> float:
    """Peak memory in MiB since `reset_peak_memory`: of the GPU's tensors, or resident memory of this process."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    return 0.0


def check(condition: bool, what: str) -> str:
    """`what`, if it holds; AssertionError if not: a timing of something else is worth nothing."""
    if not condition:
        raise AssertionError(f"the ways compared do not agree: {what}")
    return what


def relative_difference(a: Sequence[float], b: Sequence[float]) -> float:
    """Largest |a − b| / |b|."""
    return max(abs(x - y) / max(abs(y), 1e-12) for x, y in zip(a, b, strict=True))
