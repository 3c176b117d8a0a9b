"""Comparisons as a table to read and as JSON to keep."""

from __future__ import annotations

import os
import platform
import time
from typing import Any

import torch
import transformers

from utils.benchmarks.measure import Comparison, Way
from utils.core.provenance import code_revision, processor_name


def circumstances(device: str, size: str) -> dict[str, Any]:
    """Date, commit, device and versions: what a number is worth nothing without."""
    code = code_revision()
    return {
        "date": time.strftime("%Y-%m-%d %H:%M", time.gmtime()) + " UTC",
        "commit": f"{str(code['commit'])[:12]}{'-dirty' if code['dirty'] else ''}",
        "device": torch.cuda.get_device_name() if device == "cuda" else processor_name(),
        "threads": torch.get_num_threads(),
        "load_average": round(os.getloadavg()[0], 2),
        "size": size,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def as_text(comparison: Comparison) -> str:
    """The comparison as lines of text: one a way, then what was checked."""
    peak = f"   (matmul peak {comparison.matmul_peak / 1e12:.3f} TFLOP/s)" if comparison.matmul_peak else ""
    head = f"  {'way':30} {comparison.unit + '/s':>12} {'median s':>10} {'spread':>7} {'ours is':>9}"
    lines = [comparison.title + peak, head]
    for way in comparison.ways:
        row = _row(comparison, way)
        ratio = "" if way is comparison.ways[0] else f"{row['ratio']:.2f} x"
        more = f"  {row['share_of_matmul_peak']:.0%} of the peak" if row["share_of_matmul_peak"] else ""
        more += f"  {row['gpu_memory_mb']:.0f} MiB" if row["gpu_memory_mb"] else ""
        figures = f"{row['per_second']:12.3f} {row['median_seconds']:10.4f} {row['spread']:7.0%} {ratio:>9}"
        lines.append(f"  {way.name:30} {figures}{more}".rstrip())
    lines += [f"  equal: {text}" for text in comparison.checks]
    lines += [f"  note: {text}" for text in comparison.notes]
    return "\n".join(lines)


def as_json(comparison: Comparison) -> dict[str, Any]:
    """Everything, for keeping."""
    return {
        "title": comparison.title,
        "unit": comparison.unit,
        "matmul_peak_flops_per_second": comparison.matmul_peak or None,
        "ways": [_row(comparison, way) for way in comparison.ways],
        "checks": comparison.checks,
        "notes": comparison.notes,
    }


def _row(comparison: Comparison, way: Way) -> dict[str, Any]:
    return {
        "name": way.name,
        "items": way.items,
        "seconds": way.seconds,
        "median_seconds": way.median,
        "spread": (max(way.seconds) - min(way.seconds)) / way.median,
        "per_second": way.items / way.median,
        "ratio": comparison.ratio(way),
        "share_of_matmul_peak": comparison.share_of_peak(way),
        "gpu_memory_mb": way.gpu_memory_mb or None,
    }
