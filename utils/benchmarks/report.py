"""Comparisons as a table to read and as JSON to keep."""

from __future__ import annotations

import os
import platform
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers

from utils.benchmarks.measure import Comparison


def as_text(found: Comparison) -> str:
    """The comparison as lines of text: one a way, then what was checked."""
    head = f"{found.title}"
    if found.matmul_peak:
        head += f"   (matmul peak {_flops(found.matmul_peak)})"
    columns = f"{found.unit + '/s':>16} {'median s':>10} {'spread':>7} {'ours is':>9} {'CPU':>9} {'target':>8}  memory"
    lines = [head, f"  {'way':38} {columns}"]
    for way, row in zip(found.ways, found.as_json()["ways"], strict=True):
        ratio = "" if way is found.ways[0] else f"{row['ratio']:.2f} x"
        cpu = row["cpu_ratio"] if way is not found.ways[0] else None
        by_cpu = "" if cpu is None else f"{cpu:.2f} x"
        target = "" if row["target"] is None else f"{row['target']:.2f} x"
        memory = f"{row['peak_memory_mb']:.0f} MiB" if row["peak_memory_mb"] else ""
        lines.append(
            f"  {way.name:38} {row['per_second']:16.3f} {row['median_seconds']:10.4f} {row['spread']:6.0%} "
            f"{ratio:>9} {by_cpu:>9} {target:>8}  {memory}"
        )
        if row.get("share_of_matmul_peak"):
            lines.append(f"    {_flops(row['flops_per_second'])}, {row['share_of_matmul_peak']:.0%} of the peak")
    if found.share_target:
        lines.append(f"  target: {found.share_target:.0%} of the matmul peak")
    lines += [f"  equal: {text}" for text in found.checks]
    lines += [f"  note: {text}" for text in found.notes]
    return "\n".join(lines)


def circumstances(device: str, size: str) -> dict[str, Any]:
    """Date, commit, device and versions: what a number is worth nothing without."""
    return {
        "date": time.strftime("%Y-%m-%d %H:%M", time.gmtime()) + " UTC",
        "commit": _commit(),
        "device": torch.cuda.get_device_name() if device == "cuda" else _processor(),
        "threads": torch.get_num_threads(),
        "load_average": os.getloadavg()[0],
        "size": size,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def as_json(facts: dict[str, Any], cases: dict[str, Sequence[Comparison]]) -> dict[str, Any]:
    """Everything, for keeping."""
    return {**facts, "cases": {name: [found.as_json() for found in comparisons] for name, comparisons in cases.items()}}


def missed(found: Comparison) -> list[str]:
    """The targets that were not reached, one line each."""
    lines = [
        f"{found.title}: {found.ratio(way):.2f} x {way.name}, target {found.targets[way.name]:.2f} x"
        for way in found.ways
        if way.name in found.targets and found.ratio(way) < found.targets[way.name]
    ]
    if found.share_target:
        share = found.share(found.ways[0])
        if share is not None and share < found.share_target:
            lines.append(f"{found.title}: {share:.0%} of the matmul peak, target {found.share_target:.0%}")
    return lines


def _flops(value: float) -> str:
    return f"{value / 1e12:.1f} TFLOP/s" if value >= 1e12 else f"{value / 1e9:.1f} GFLOP/s"


def _commit() -> str:
    root = Path(__file__).resolve().parents[2]
    try:
        described = ["git", "-C", str(root), "describe", "--always", "--dirty", "--exclude=*"]
        return subprocess.run(described, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    for line in cpuinfo.read_text().splitlines() if cpuinfo.exists() else []:
        if line.startswith("model name"):
            return f"{line.partition(':')[2].strip()}, {os.cpu_count()} cores"
    return f"{platform.machine()}, {os.cpu_count()} cores"
