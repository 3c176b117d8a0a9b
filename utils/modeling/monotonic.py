"""The arms of configs/arms.py on a T5: what W = map(V) is, what makes it fair, and how it becomes an ordinary model.

Three things are easy to get wrong and are done here with care: the inverse of softplus for tiny weights, weight decay
(it must shrink W, not V), and folding (an exported model has ordinary matrices). What an arm promises is measured in
utils/training/audit.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrize
from torch.utils.hooks import RemovableHandle

from configs.arms import ARMS, Arm
from utils.core.errors import UsageError
from utils.core.names import MONOTONIC

GATED = "T5DenseGatedActDense"
FFN_CLASSES = ("T5DenseActDense", GATED)
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


class Map(NamedTuple):
    """|W| = value(V), elementwise: its inverse for |W| > 0, and the step of V that shrinks W by a share of itself.

    Shrinking is dW = -share * W, to first order dV = -share * W / (dW/dV): `shrink` is W / (dW/dV).
    """

    value: Callable[[torch.Tensor], torch.Tensor]
    inverse: Callable[[torch.Tensor], torch.Tensor]
    shrink: Callable[[torch.Tensor], torch.Tensor]


def _softplus_shrink(v: torch.Tensor) -> torch.Tensor:
    u = v.clamp(min=-30.0)  # softplus / sigmoid is 1 to float32 precision below, and 0 / 0 far below
    return F.softplus(u) / torch.sigmoid(u)


MAPS = {
    "softplus": Map(lambda v: F.softplus(v), softplus_inverse, _softplus_shrink),
    "exp": Map(torch.exp, torch.log, torch.ones_like),
    "square": Map(torch.square, torch.sqrt, lambda v: v / 2),
    "clamp": Map(lambda v: v.clamp(min=0), lambda w: w, lambda v: v),  # V >= 0: _project sees to it after every step
    "rank_one": Map(lambda v: v, lambda w: w, lambda v: v / 2),  # of each factor: W = outer(u, v) shrinks by both
}


class _Signed(nn.Module):
    """Parametrization W = s * map(V), W and V [out, in]; s: None for 1, else the signs, which never change."""

    sign: torch.Tensor | None  # -1 or 1, broadcasts to W; a buffer, so that it follows the model to its device

    def __init__(self, name: str, sign: torch.Tensor | None, start: str, eps: float) -> None:
        super().__init__()
        self.map_name, self.start, self.eps = name, start, eps
        self.register_buffer("sign", sign)

    def forward(self, v: torch.Tensor) -> torch.Tensor:
        size = MAPS[self.map_name].value(v)
        return size if self.sign is None else self.sign * size

    def right_inverse(self, w: torch.Tensor) -> torch.Tensor:
        """V for an assigned weight; torch calls it once, with the pretrained W, when the parametrization is put on."""
        w = w if self.sign is None else self.sign * w
        # eps: a weight of exactly 0 would need V = -infinity. Signs that are the pretrained ones leave only sizes.
        size = w.clamp(min=0) if self.start == "positive_part" else w.abs()
        return MAPS[self.map_name].inverse(size + self.eps)


class _RankOne(nn.Module):
    """Parametrization W = outer(u, v), u [out], v [in]; starts as the best rank-one matrix (Eckart and Young 1936)."""

    map_name = "rank_one"

    def forward(self, u: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return torch.outer(u, v)

    def right_inverse(self, w: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        left, values, right = torch.linalg.svd(w, full_matrices=False)
        size = values[0].sqrt()  # both factors of one size, so that a step moves both alike
        return left[:, 0] * size, right[0] * size


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


def constrain(model: nn.Module, *, eps: float = 1e-6, arm: str | Arm = MONOTONIC) -> nn.Module:
    """Put `model` (a T5, float32; in place, also returned) into the state in which `arm` starts training.

    arm: an entry of configs/arms.py, or its name. UsageError: its scope is beyond the model's layers. ValueError:
    unknown arm, or constrained already.
    """
    if isinstance(arm, str) and arm not in ARMS:
        raise ValueError(f"arm {arm!r}: expected one of {', '.join(ARMS)}")
    entry = ARMS[arm] if isinstance(arm, str) else arm
    if is_constrained(model):
        raise ValueError("this model is constrained already")
    matrices = scoped(model, entry)
    if entry.changes_nothing:
        return model
    signs = _unit_signs(matrices) if entry.signs == "unit" else {}
    for name, linear in matrices.items():
        pretrained = linear.weight.detach()
        if entry.signs != "free":
            sign = signs.get(name)
            if entry.signs == "frozen":  # not torch.sign: a weight of 0 must get a sign, or W would stay 0 for ever
                sign = torch.where(pretrained < 0, -1.0, 1.0).to(pretrained.dtype)
            parametrize.register_parametrization(linear, "weight", _Signed(entry.map, sign, entry.start, eps))
            continue
        with torch.no_grad():
            if entry.ffn == "none":
                linear.weight.zero_()
                linear.weight.requires_grad_(False)
            elif entry.start != "pretrained":
                linear.weight.copy_((pretrained.abs() if entry.start == "absolute" else pretrained.clamp(min=0)) + eps)
        if entry.ffn == "rank_one":
            parametrize.register_parametrization(linear, "weight", _RankOne())
    return model


def scoped(model: nn.Module, arm: Arm) -> dict[str, nn.Linear]:
    """The matrices in an arm's scope, by name. UsageError where the scope is beyond the model's layers."""
    places = {name: _place(name) for name, _ in ffn_layers(model)}
    counts = {stack: 1 + max((n for s, n, _ in places.values() if s == stack), default=-1) for stack in arm.stacks}
    if problem := arm.beyond(counts):
        raise UsageError(f"an arm does not fit the model: {problem}. Correct its entry in configs/arms.py.")
    return {name: linear for name, linear in ffn_layers(model) if arm.covers(*places[name])}


def _place(name: str) -> tuple[str, int, str]:
    """Stack, layer and matrix of a name like encoder.block.3.layer.1.DenseReluDense.wi."""
    parts = name.split(".")
    return parts[0], int(parts[2]), parts[-1]


def _unit_signs(matrices: dict[str, nn.Linear]) -> dict[str, torch.Tensor]:
    """Signs for `unit`, by matrix: 1 for the half of a block's hidden units whose weights add up to most, else -1."""
    blocks: dict[str, dict[str, nn.Linear]] = {}
    for name, linear in matrices.items():
        blocks.setdefault(name.rpartition(".")[0], {})[name] = linear
    signs: dict[str, torch.Tensor] = {}
    for block in blocks.values():
        # wi is [d_ff, d_model] and wo [d_model, d_ff]: unit j is row j of the one and column j of the other.
        sums = [m.weight.detach().sum(0 if name.endswith("wo") else 1) for name, m in block.items()]
        total = torch.stack(sums).sum(0)
        per_unit = torch.where(total >= total.median(), 1.0, -1.0).to(total.dtype)
        signs |= {name: per_unit if name.endswith("wo") else per_unit[:, None] for name in block}
    return signs


def is_constrained(model: nn.Module) -> bool:
    """True where any feed-forward matrix is computed from a parameter V instead of being one."""
    return any(is_parametrized(linear) for _, linear in ffn_layers(model))


def is_parametrized(linear: nn.Linear) -> bool:
    return parametrize.is_parametrized(linear, "weight")


def fold(model: nn.Module) -> nn.Module:
    """Make every effective matrix the weight of an ordinary `nn.Linear`, in place; outputs are bitwise the same.

    The layers are replaced rather than relieved of their parametrization: torch keeps that in a class which copies of
    a model share, so that folding one copy would break the others.
    """
    for name, linear in ffn_layers(model):
        if is_parametrized(linear):
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
    """The parameters V behind the constrained matrices, by their own names; empty for a free model."""
    return {name: parameter for name, parameter in model.named_parameters() if ".parametrizations." in name}


def _map_of(model: nn.Module) -> str:
    """The map of the constrained matrices: an arm has one for all."""
    return next(module.map_name for module in model.modules() if isinstance(module, _Signed | _RankOne))


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
    ]
    if constrained:
        due = {"effective_weight_decay": weight_decay, "decay_due": 0.0, "map": _map_of(model)}
        groups.append({"params": constrained, "weight_decay": 0.0, **due})
    return [group for group in groups if group["params"]]


def effective_weight_decay(optimizer: torch.optim.Optimizer) -> RemovableHandle:
    """Make groups with `effective_weight_decay` d shrink W = map(V) as AdamW does a free matrix: by lr * d a step.

    Decoupled decay of W (Loshchilov & Hutter 2019, arXiv:1711.05101, algorithm 2) is dW = -lr d W: a step of V that
    `Map.shrink` gives, applied before the Adam update as torch does it. What is owed adds up in the group's `decay_due`
    (saved with the optimizer) until it is large enough to survive float32 rounding of V. Returns the hook's handle.
    """
    optimizer.register_step_post_hook(_project)
    return optimizer.register_step_pre_hook(_pay_decay)


@torch.no_grad()
def _pay_decay(optimizer: torch.optim.Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    for group in optimizer.param_groups:
        if not group.get("effective_weight_decay"):
            continue
        due = group["decay_due"] + group["lr"] * group["effective_weight_decay"]
        if due >= SMALLEST_DECAY_PAYMENT:
            for v in group["params"]:
                v.sub_(MAPS[group["map"]].shrink(v), alpha=due)
            due = 0.0
        group["decay_due"] = due


@torch.no_grad()
def _project(optimizer: torch.optim.Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Projected gradient descent for `clamp`: a V below 0 would have no gradient and never come back."""
    for group in optimizer.param_groups:
        if group.get("map") == "clamp":
            for v in group["params"]:
                v.clamp_(min=0)


def min_ffn_weight(model: nn.Module) -> float:
    """Smallest effective weight over all feed-forward matrices."""
    return min(float(linear.weight.detach().min()) for _, linear in ffn_layers(model))
