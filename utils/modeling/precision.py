"""The choice between float32 and bfloat16, for training, generation and attacks alike."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal, get_args

import torch

from utils.core.errors import StageError

# cuDNN's attention gives NaN in its backward pass where a mask is given (torch 2.13). Everything that computes with a
# model imports this module, so this line holds for training, generation and attacks; provenance records it.
torch.backends.cuda.enable_cudnn_sdp(False)

Precision = Literal["fp32", "bf16"]
Setting = Literal["auto", "fp32", "bf16"]  # values of the setting PRECISION


def resolve_precision(setting: str, device: torch.device | str) -> Precision:
    """What to compute in on `device`: "auto" is bf16 on a GPU that computes in it, fp32 elsewhere.

    "bf16" is taken on any CPU. StageError: "bf16" on a GPU without it (torch would emulate it, slowly). ValueError: an
    unknown setting.
    """
    if setting not in get_args(Setting):
        raise ValueError(f"precision {setting!r}: expected {', '.join(get_args(Setting))}")
    on_gpu = torch.device(device).type == "cuda"
    if setting == "fp32" or (setting == "auto" and not on_gpu):
        return "fp32"
    if not on_gpu or torch.cuda.is_bf16_supported(including_emulation=False):
        return "bf16"
    if setting == "bf16":
        raise StageError("PRECISION is bf16, but this GPU has no bfloat16. Set MONO_S2S_PRECISION=fp32.")
    return "fp32"


def product_dtype(precision: str) -> torch.dtype:
    """The dtype of matrix products in `precision` ("fp32" or "bf16")."""
    return torch.bfloat16 if precision == "bf16" else torch.float32


def bf16_autocast(device: torch.device, enabled: bool, *, cache: bool = True) -> AbstractContextManager[Any]:
    """torch's autocast to bfloat16 on `device`: products in bfloat16, delicate sums in float32. Off: no change.

    cache: whether casts of weights are kept until it ends; what a CUDA graph captures must cast them at every replay.
    """
    return torch.autocast(device.type, torch.bfloat16, cache_enabled=cache) if enabled else nullcontext()
