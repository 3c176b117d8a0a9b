"""Float32 matrix products by oneDNN on the CPUs where that is faster than what PyTorch takes.

PyTorch's CPU builds hand float32 products to Intel's MKL, which uses the AVX-512 units of Intel's processors only; on
an AMD processor that has them oneDNN, which PyTorch brings along too, takes half the time (Zen 5) or a little less
(Zen 4, whose units are half as wide: docs/benchmarks.md). Results differ from MKL's in the last bits, as those of two
GPUs do. Nothing here touches GPUs or bfloat16.
"""

from __future__ import annotations

import functools
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

# Fewer multiplications than this gain less than calling through Python costs (about 10 microseconds), and so does a
# model whose hidden states are narrower (d_model).
WORTH_IT = 1 << 20
NARROWEST = 128


@functools.cache
def onednn_is_faster() -> bool:
    """Whether this CPU runs oneDNN's float32 products faster than MKL's: AMD with AVX-512. The same in every run."""
    if not torch.backends.mkldnn.is_available() or torch.backends.cpu.get_cpu_capability() != "AVX512":
        return False
    cpuinfo = Path("/proc/cpuinfo")
    return cpuinfo.exists() and "AuthenticAMD" in cpuinfo.read_text(errors="replace")[:4000]


def fast_linear(x: Tensor, weight: Tensor, *, after: str = "none") -> Tensor:
    """`functional.linear(x, weight)` of float32 CPU tensors by oneDNN, without gradients. `weight` [out, in].

    after: "relu" for a ReLU on the way out, which then costs nothing.
    """
    return torch.ops.mkldnn._linear_pointwise(x, weight, None, after, [], "")


def packed(weight: Tensor) -> Tensor:
    """`weight` [out, in] as oneDNN likes to read it, for `fast_linear` alone: it pays where a weight is used often."""
    return torch.ops.mkldnn._reorder_linear_weight(weight)


def gains(device: torch.device | str, width: int) -> bool:
    """Whether oneDNN pays on `device` for a model of d_model `width`."""
    return torch.device(device).type == "cpu" and width >= NARROWEST and onednn_is_faster()


def fast_products(device: torch.device | str, width: int) -> AbstractContextManager[Any]:
    """Within it, float32 `functional.linear` without bias (all of T5's) and its gradients go the fastest way."""
    return _FastLinear() if gains(device, width) else nullcontext()


class _FastLinear(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is functional.linear and not kwargs and _fits(*args):
            return _Linear.apply(*args[:2]) if torch.is_grad_enabled() else fast_linear(*args[:2])
        return func(*args, **(kwargs or {}))


def _fits(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> bool:
    return (
        bias is None
        and x.dtype == weight.dtype == torch.float32
        and x.device.type == "cpu"
        and x.numel() * weight.shape[0] >= WORTH_IT
        and not torch.is_autocast_enabled("cpu")
    )


class _Linear(torch.autograd.Function):
    """x [..., in] times weight [out, in] transposed; both gradients are products of the same kind."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return fast_linear(x, weight)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None]:  # type: ignore[override]
        x, weight = ctx.saved_tensors
        rows = gradient.reshape(-1, gradient.shape[-1])
        for_x = for_weight = None
        if ctx.needs_input_grad[0]:
            for_x = fast_linear(rows, weight.t()).view(x.shape)
        if ctx.needs_input_grad[1]:
            for_weight = fast_linear(rows.t(), x.reshape(-1, x.shape[-1]).t())
        return for_x, for_weight
