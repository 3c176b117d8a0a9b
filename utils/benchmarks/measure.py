"""Timing of alternatives side by side, and what the device can do at best."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry


class Clock:
    """Moments on a device: CUDA events on a GPU (no waiting in between), perf_counter on a CPU."""

    def __init__(self, device: str) -> None:
        self.cuda = device == "cuda"

    def mark(self) -> Any:
        """A moment of the device's work so far."""
        if not self.cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def seconds(self, start: Any, end: Any) -> float:
        """Seconds between two moments; waits for the second."""
        if not self.cuda:
            return float(end - start)
        end.synchronize()
        return float(start.elapsed_time(end)) / 1000


@dataclass
class Way:
    """One way to do a piece of work. `run` does it once, and returns the seconds if it timed itself, else None.

    `items`: how many things (examples, summaries, pairs) one run does; where it differs between the ways of a
    comparison the rates are compared. `flops`: floating-point operations of one run, 0 where they do not matter.
    """

    name: str
    run: Callable[[], float | None]
    items: float = 1.0
    flops: float = 0.0
    seconds: list[float] = field(default_factory=list)
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
        ours = self.ways[0]
        pairs = zip(ours.seconds, way.seconds, strict=False)
        return statistics.median((theirs / way.items) / (own / ours.items) for own, theirs in pairs)

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
                "target": self.targets.get(way.name),
                "peak_memory_mb": round(way.peak_memory_mb, 1) or None,
            }
            if way.flops and self.matmul_peak:
                row["flops_per_second"] = way.flops / median
                row["share_of_matmul_peak"] = way.flops / median / self.matmul_peak
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
            way.seconds.append(clock.seconds(start, clock.mark()) if own is None else own)
            way.peak_memory_mb = max(way.peak_memory_mb, peak_memory_mb(device))
    comparison.matmul_peak = statistics.median(peaks) if peaks else 0.0
    return comparison


def matmul_peak(device: str, dtype: torch.dtype, *, repetitions: int = 5) -> float:
    """FLOP/s of a large square matrix product: the best of some, which is what the device can do."""
    size = 8192 if device == "cuda" else 2048
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    clock, best = Clock(device), float("inf")
    for _ in range(repetitions):
        start = clock.mark()
        torch.mm(a, b)
        best = min(best, clock.seconds(start, clock.mark()))
    return 2 * size**3 / best


def count_flops(work: Callable[[], Any]) -> float:
    """Floating-point operations of the matrix products and attention in `work()`, which is run once."""
    counter = _Counter()
    with counter:
        work()
    return counter.flops


class _Counter(TorchDispatchMode):
    """torch's formulas without its FlopCounterMode, whose hooks forbid torch.autograd.grad."""

    def __init__(self) -> None:
        super().__init__()
        self.flops = 0.0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        formula = flop_registry.get(func._overloadpacket)
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
