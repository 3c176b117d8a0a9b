"""Alternatives timed side by side, and what the device can do at best."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch


def now() -> float:
    """Seconds of a clock, when all work that was given to the GPU is done."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter()


@dataclass
class Way:
    """One way to do a piece of work. `run` does it once, and returns its seconds if it timed itself, else None.

    `items`: how many things (examples, summaries, passes) one run does; where the ways of a comparison differ in it,
    their rates are compared. `flops`: floating-point operations of one run; 0: not counted.
    """

    name: str
    run: Callable[[], float | None]
    items: float
    flops: float = 0.0
    seconds: list[float] = field(default_factory=list)  # one a round
    gpu_memory_mb: float = 0.0  # peak, MiB

    @property
    def median(self) -> float:
        """Seconds of the median round."""
        return statistics.median(self.seconds)


@dataclass
class Comparison:
    """What one case measured: `ways[0]` is ours, the others what it is held against. `checks`: what was equal."""

    title: str
    unit: str
    ways: list[Way]
    checks: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    matmul_peak: float = 0.0  # FLOP/s; 0: not measured

    def ratio(self, way: Way) -> float:
        """How many times as fast as `way` ours is: the median of the rounds' ratios.

        Each round's ratio is taken first, so that a minute in which the machine is slow hits both sides.
        """
        ours = self.ways[0]
        pairs = zip(ours.seconds, way.seconds, strict=True)
        return statistics.median(theirs / own for own, theirs in pairs) * ours.items / way.items

    def share_of_peak(self, way: Way) -> float | None:
        """FLOP/s of `way` as a share of the matmul peak; None if not counted."""
        return way.flops / way.median / self.matmul_peak if way.flops and self.matmul_peak else None


def alternate(comparison: Comparison, *, rounds: int, peak_dtype: torch.dtype | None = None) -> Comparison:
    """Run every way once a round, `rounds` times; fills in seconds and peak memory.

    peak_dtype: of the matrix products, for the device's peak, which is measured again in every round; None: it is not.
    """
    peaks = []
    for _ in range(rounds):
        if peak_dtype is not None:
            peaks.append(matmul_peak(peak_dtype))
        for way in comparison.ways:
            if torch.cuda.is_initialized():
                torch.cuda.reset_peak_memory_stats()
            start = now()
            seconds = way.run()
            way.seconds.append(now() - start if seconds is None else seconds)
            if torch.cuda.is_initialized():
                way.gpu_memory_mb = max(way.gpu_memory_mb, torch.cuda.max_memory_allocated() / 2**20)
    comparison.matmul_peak = statistics.median(peaks) if peaks else 0.0
    return comparison


def matmul_peak(dtype: torch.dtype, *, repetitions: int = 5) -> float:
    """FLOP/s of a large square matrix product on the device in use, the median of some."""
    device, size = ("cuda", 8192) if torch.cuda.is_initialized() else ("cpu", 2048)
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    seconds = []
    for _ in range(repetitions):
        start = now()
        torch.mm(a, b)
        seconds.append(now() - start)
    return 2 * size**3 / statistics.median(seconds)


def check(condition: bool, claim: str) -> str:
    """`claim`, if it holds; AssertionError if not: a timing of something else is worth nothing."""
    if not condition:
        raise AssertionError(f"the ways compared do not agree: {claim}")
    return claim
