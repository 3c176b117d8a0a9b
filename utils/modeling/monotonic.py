"""The constraint: every feed-forward matrix of T5 is W = softplus(V) >= 0, with what makes that fair and checkable.

Four things are easy to get wrong and are done here with care: the inverse of softplus for tiny weights, weight decay
(it must shrink W, not V), folding (an exported model has ordinary matrices), and the audit (what is monotone and what
is not).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrize
from torch.utils.hooks import RemovableHandle

from utils.core.names import ABS_INIT_FREE, ARMS, BASELINE, MONOTONIC

GATED = "T5DenseGatedActDense"
FFN_CLASSES = ("T5DenseActDense", GATED)
_SCOPE = "each feed-forward block alone; the whole network is not monotone"
_GATED_SCOPE = (
    "each feed-forward block alone; a gated block is the product of act(wi_0 x) and wi_1 x, which weights >= 0 "
    "make monotone only where both are positive and act rises; the whole network is not monotone"
)
# A float32 V near -5 moves in steps of 5e-7, which is what lr * decay is at 5e-5 * 0.01: paid step by step, half of
# the decay would be rounded away. It is therefore paid when it has added up to this much.
SMALLEST_DECAY_PAYMENT = 1e-5


def softplus_inverse(w: torch.Tensor) -> torch.Tensor:
    """V with softplus(V) = w, elementwise; any shape, float dtype kept. ValueError unless every w is finite and > 0.

    `w + log(-expm1(-w))` keeps full precision where `log(exp(w) - 1)` cancels (small w) or overflows (large w).
    """
    if not bool((w > 0).all()) or not bool(torch.isfinite(w).all()):
        raise ValueError("softplus_inverse needs finite values above 0")
    # exp(w) - 1 = exp(w) * (1 - exp(-w)), so its logarithm is w + log(1 - exp(-w)); expm1 keeps the digits of a tiny w.
    return w + torch.log(-torch.expm1(-w))


class _Softplus(nn.Module):
    """Parametrization W = softplus(V); starts at |W_pretrained| + eps."""

    def __init__(self, eps: float) -> None:
        super().__init__()
        self.eps = eps

    def forward(self, v: torch.Tensor) -> torch.Tensor:
        return F.softplus(v)

    def right_inverse(self, w: torch.Tensor) -> torch.Tensor:
        """V for an assigned weight; torch calls it once, with the pretrained W, when the parametrization is put on."""
        return softplus_inverse(w.abs() + self.eps)  # eps: a weight of exactly 0 would need V = -infinity


class _SignedSoftplus(_Softplus):
    """Parametrization W = s * softplus(V) with the signs s of the pretrained weights: the cost of softplus alone."""

    sign: torch.Tensor  # -1 or 1, shape and dtype of W; a buffer, so that it follows the model to its device

    def __init__(self, eps: float, pretrained: torch.Tensor) -> None:
        super().__init__(eps)
        # Not torch.sign: a weight of 0 must get a sign, or W would stay 0 for ever.
        self.register_buffer("sign", torch.where(pretrained < 0, -1.0, 1.0).to(pretrained.dtype))

    def forward(self, v: torch.Tensor) -> torch.Tensor:
        return self.sign * F.softplus(v)


def ffn_blocks(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """(name, module) of every feed-forward block of encoder and decoder, ReLU or gated.

    ValueError where the model has none: a constraint that silently constrains nothing would be a false result.
    """
    blocks = [(name, module) for name, module in model.named_modules() if type(module).__name__ in FFN_CLASSES]
    if not blocks:
        raise ValueError(f"{type(model).__name__} has no T5 feed-forward block")
    return blocks


def ffn_layers(model: nn.Module) -> list[tuple[str, nn.Linear]]:
    """(name, linear layer) of every feed-forward matrix: `wi`, `wo`, or gated `wi_0`, `wi_1`, `wo`."""
    return [
        (f"{name}.{part}", linear)
        for name, block in ffn_blocks(model)
        for part, linear in block.named_children()
        if isinstance(linear, nn.Linear)
    ]


def constrain(model: nn.Module, *, eps: float = 1e-6, arm: str = MONOTONIC) -> nn.Module:
    """Put `model` (a T5, float32; in place, also returned) into the state in which `arm` starts training.

    baseline: nothing changes. monotonic: W = softplus(V), starting at |W| + eps. sign_frozen: the same magnitudes with
    the pretrained signs kept. abs_init_free: starts at |W| + eps and is free. W is any feed-forward matrix, [out, in];
    V has its shape. ValueError: unknown arm, or constrained already.
    """
    if arm not in ARMS:
        raise ValueError(f"arm {arm!r}: expected one of {', '.join(ARMS)}")
    if is_constrained(model):
        raise ValueError("this model is constrained already")
    if arm == BASELINE:
        return model
    for _, linear in ffn_layers(model):
        if arm == ABS_INIT_FREE:
            with torch.no_grad():
                linear.weight.copy_(linear.weight.abs() + eps)
        else:
            rule = _Softplus(eps) if arm == MONOTONIC else _SignedSoftplus(eps, linear.weight.detach())
            parametrize.register_parametrization(linear, "weight", rule)
    return model


def is_constrained(model: nn.Module) -> bool:
    """True where any feed-forward matrix is computed from a parameter V instead of being one."""
    return any(parametrize.is_parametrized(linear, "weight") for _, linear in ffn_layers(model))


def fold(model: nn.Module) -> nn.Module:
    """Make every effective matrix the weight of an ordinary `nn.Linear`, in place; outputs are bitwise the same.

    The layers are replaced rather than relieved of their parametrization: torch keeps that in a class which copies of
    a model share, so that folding one copy would break the others.
    """
    for name, linear in ffn_layers(model):
        if parametrize.is_parametrized(linear, "weight"):
            weight = linear.weight.detach()  # softplus(V), computed here for the last time
            plain = nn.Linear(linear.in_features, linear.out_features, bias=False, device="meta")
            plain.weight = nn.Parameter(weight)
            parent, _, part = name.rpartition(".")
            setattr(model.get_submodule(parent), part, plain.train(linear.training))
    return model


def folded_state(model: nn.Module) -> dict[str, torch.Tensor]:
    """State dict of the folded model, with V replaced by W; `model` itself stays as it is. Tensors are detached."""
    state = {name: tensor.detach() for name, tensor in model.state_dict().items() if ".parametrizations." not in name}
    for name, linear in ffn_layers(model):
        state[f"{name}.weight"] = linear.weight.detach()
    return state


def free_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters V [out, in] behind the constrained matrices, by their layer's name; empty for a free model."""
    return {
        name: linear.get_parameter("parametrizations.weight.original")
        for name, linear in ffn_layers(model)
        if parametrize.is_parametrized(linear, "weight")
    }


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """AdamW groups: every matrix decays by `weight_decay`, layer norms do not; the same split for every arm.

    Constrained matrices sit in a group of their own with AdamW's decay 0 and `effective_weight_decay` instead: AdamW's
    own would pull V to 0 and so W to softplus(0) = 0.69, away from zero.
    """
    constrained = list(free_parameters(model).values())
    ids = {id(parameter) for parameter in constrained}
    others = [parameter for parameter in model.parameters() if parameter.requires_grad and id(parameter) not in ids]
    groups = [
        {"params": [p for p in others if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in others if p.ndim < 2], "weight_decay": 0.0},
        {"params": constrained, "weight_decay": 0.0, "effective_weight_decay": weight_decay, "decay_due": 0.0},
    ]
    return [group for group in groups if group["params"]]


def effective_weight_decay(optimizer: torch.optim.Optimizer) -> RemovableHandle:
    """Make groups with `effective_weight_decay` d shrink W = softplus(V) as AdamW does a free matrix: by lr * d a step.

    Decoupled decay of W (Loshchilov & Hutter 2019, arXiv:1711.05101, algorithm 2) is dW = -lr d W. To first order that
    is dV = -lr d W / (dW/dV) with dW/dV = sigmoid(V), applied before the Adam update as torch does it. What is owed
    adds up in the group's `decay_due` (saved with the optimizer) until it is large enough to survive float32 rounding
    of V. Returns the hook's handle.
    """
    return optimizer.register_step_pre_hook(_pay_decay)


@torch.no_grad()
def _pay_decay(optimizer: torch.optim.Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    for group in optimizer.param_groups:
        if not group.get("effective_weight_decay"):
            continue
        due = group["decay_due"] + group["lr"] * group["effective_weight_decay"]
        if due >= SMALLEST_DECAY_PAYMENT:
            for v in group["params"]:
                u = v.clamp(min=-30.0)  # softplus / sigmoid is 1 to float32 precision below, and 0 / 0 far below
                v.sub_(F.softplus(u) / torch.sigmoid(u), alpha=due)
            due = 0.0
        group["decay_due"] = due


def min_ffn_weight(model: nn.Module) -> float:
    """Smallest effective weight over all feed-forward matrices."""
    return min(float(linear.weight.detach().min()) for _, linear in ffn_layers(model))


@torch.no_grad()
def audit(model: nn.Module, *, inputs: int = 4, seed: int = 0) -> dict[str, Any]:
    """Measure what the constraint promises, and no more: each feed-forward block is monotone from input to output.

    For every block, `inputs` points are drawn at each of three scales; every coordinate is raised alone, and all of
    them together by random amounts, in float64. A decrease beyond rounding counts as a violation. Returns a JSON-ready
    dict. The whole network is not monotone (attention, norms and residuals are not), and nothing here says so.
    """
    weights = [linear.weight.detach() for _, linear in ffn_layers(model)]
    total = sum(w.numel() for w in weights)
    violations = comparisons = 0
    worst = 0.0
    # A generator of its own, on the CPU: the audit must neither move training's random state nor depend on the device.
    generator = torch.Generator().manual_seed(seed)
    blocks = ffn_blocks(model)
    for _, block in blocks:
        output = _ffn_in_float64(block)
        for before, after in _raised_inputs(block, inputs, generator):
            low, high = output(before), output(after)  # [1, d_model] and [rows, d_model]: low is broadcast
            drop = (low - high) / low.abs().amax().clamp(min=1e-300)
            worst = max(worst, float(drop.max()))
            violations += int((drop > 1e-12).sum())
            comparisons += drop.numel()
    return {
        "min_weight": min_ffn_weight(model),
        "negative_weight_share": sum(int((w < 0).sum()) for w in weights) / total,
        "zero_weight_share": sum(int((w == 0).sum()) for w in weights) / total,
        "ffn_matrices": len(weights),
        "ffn_weights": total,
        "ffn_class": type(blocks[0][1]).__name__,
        "monotone_ffn_blocks": violations == 0,
        "violations": violations,
        "comparisons": comparisons,
        "largest_relative_decrease": worst,
        "tried": f"{inputs} inputs at scales 0.1, 1 and 10 of every block; each coordinate raised alone by 0.01 to 10, "
        "and all together; float64, tolerance 1e-12 of the largest output",
        "scope": _GATED_SCOPE if type(blocks[0][1]).__name__ == GATED else _SCOPE,
    }


def _raised_inputs(
    block: nn.Module, inputs: int, generator: torch.Generator
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Pairs (x, x') of float64 [1 or more rows, d_model] with x' >= x in every coordinate."""
    width = next(child.in_features for child in block.children() if isinstance(child, nn.Linear))
    for scale in (0.1, 1.0, 10.0):
        for _ in range(inputs):
            x = scale * torch.randn(1, width, generator=generator, dtype=torch.float64)
            step = 10.0 ** (-2 + 3 * torch.rand(width, 1, generator=generator, dtype=torch.float64))
            yield x, x + step * torch.eye(width, dtype=torch.float64)  # row i: coordinate i alone raised, by step[i]
            yield x, x + scale * torch.rand(8, width, generator=generator, dtype=torch.float64)


def _ffn_in_float64(block: nn.Module) -> Callable[[torch.Tensor], torch.Tensor]:
    """The block without dropout as a function of float64 [rows, d_model], on the CPU.

    Computed from the matrices instead of by a float64 copy of the block: copying a parametrized module copies V, and
    softplus(V) in float64 is not the float32 W that the model uses.
    """
    act = block.get_submodule("act")
    weight = {
        name: linear.weight.detach().cpu().double()
        for name, linear in block.named_children()
        if isinstance(linear, nn.Linear)
    }

    def output(x: torch.Tensor) -> torch.Tensor:
        if "wi" in weight:
            hidden = act(x @ weight["wi"].T)
        else:
            hidden = act(x @ weight["wi_0"].T) * (x @ weight["wi_1"].T)
        return hidden @ weight["wo"].T

    return output
