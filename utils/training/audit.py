"""What an arm promises about its feed-forward blocks, measured on the exported model, and nothing beyond that."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import nn

from configs.arms import ARMS, STARTS, Arm
from utils.analysis.final import Audit
from utils.core.names import MONOTONIC
from utils.modeling.monotonic import GATED, ffn_blocks, ffn_layers, min_ffn_weight, scoped

SCOPE = "each feed-forward block alone; the whole network is not monotone"
GATED_SCOPE = (
    "each feed-forward block alone; a gated block is the product of act(wi_0 x) and wi_1 x, which weights >= 0 "
    "make monotone only where both are positive and act rises; the whole network is not monotone"
)
ROUNDING = 1e-12  # of the largest output, in float64
RANK_TOLERANCE = 1e-4  # second over first singular value: a product in float32 leaves some 1e-7


@torch.no_grad()
def audit(
    model: nn.Module,
    *,
    arm: str | Arm = MONOTONIC,
    pretrained: nn.Module | None = None,
    inputs: int = 4,
    seed: int = 0,
) -> Audit:
    """Measure whether `model` is what its arm promises, block by block and matrix by matrix.

    Monotone: for every block `inputs` points are drawn at each of three scales; every coordinate is raised alone, and
    all of them together by random amounts, in float64; a decrease beyond rounding is a violation. Convex: the output at
    the middle of two random points is never above the mean of theirs. The promises: see `_promises`; those that compare
    with the weights that training started from need `pretrained`, and are left out without it. The whole network is not
    monotone (attention, norms and residuals are not), and nothing here says so.
    """
    weights = [linear.weight.detach() for _, linear in ffn_layers(model)]
    total = sum(w.numel() for w in weights)
    # A generator of its own, on the CPU: the audit must neither move training's random state nor depend on the device.
    generator = torch.Generator().manual_seed(seed)
    violations, bent = {}, {}
    comparisons = 0
    worst = 0.0
    blocks = ffn_blocks(model)
    for name, block in blocks:
        output = _ffn_in_float64(block)
        violations[name] = 0
        for before, after in _raised_inputs(block, inputs, generator):
            low, high = output(before), output(after)  # [1, d_model] and [rows, d_model]: low is broadcast
            drop = (low - high) / low.abs().amax().clamp(min=1e-300)
            worst = max(worst, float(drop.max()))
            violations[name] += int((drop > ROUNDING).sum())
            comparisons += drop.numel()
        bent[name] = _bent(output, _width(block), inputs, torch.Generator().manual_seed(seed))
    promises = _promises(model, ARMS[arm] if isinstance(arm, str) else arm, pretrained, violations, bent)
    return Audit(
        min_weight=min_ffn_weight(model),
        negative_weight_share=sum(int((w < 0).sum()) for w in weights) / total,
        zero_weight_share=sum(int((w == 0).sum()) for w in weights) / total,
        ffn_matrices=len(weights),
        ffn_weights=total,
        ffn_class=type(blocks[0][1]).__name__,
        monotone_ffn_blocks=not any(violations.values()),
        convex_ffn_blocks=not any(bent.values()),
        violations=sum(violations.values()),
        comparisons=comparisons,
        largest_relative_decrease=worst,
        promises=promises,
        kept=all(promises.values()),
        tried=f"{inputs} inputs at scales 0.1, 1 and 10 of every block; each coordinate raised alone by 0.01 to 10, "
        "and all together; float64, tolerance 1e-12 of the largest output",
        scope=GATED_SCOPE if type(blocks[0][1]).__name__ == GATED else SCOPE,
    )


def _promises(
    model: nn.Module, arm: Arm, pretrained: nn.Module | None, violations: dict[str, int], bent: dict[str, int]
) -> dict[str, bool]:
    """Whether each promise of `arm` is kept: sign, monotone, convex, rank, zero, and with `pretrained` start, free."""
    inside = {name: linear.weight.detach() for name, linear in scoped(model, arm).items()}
    outside = {name: linear.weight.detach() for name, linear in ffn_layers(model) if name not in inside}
    if arm.ffn == "none":
        return {"zero": not any(bool(w.any()) for w in inside.values())}
    first = {name: linear.weight.detach() for name, linear in ffn_layers(pretrained)} if pretrained is not None else {}
    ranks = {name: _second_direction(w) for name, w in (inside | outside).items()}
    few = inside if arm.ffn == "rank_one" else {}
    kept = {"rank": all((ranks[name] < RANK_TOLERANCE) == (name in few) for name in ranks)}
    if arm.signs == "positive":
        kept["sign"] = all(bool((w >= 0).all()) for w in inside.values())
    elif arm.signs == "unit":
        kept["sign"] = all(_one_sign_per_unit(block) for block in _by_block(inside).values())
    elif arm.signs == "frozen" and first:
        kept["sign"] = all(bool((w * torch.where(first[name] < 0, -1, 1) >= 0).all()) for name, w in inside.items())
    gated = type(ffn_blocks(model)[0][1]).__name__ == GATED
    if arm.signs in ("positive", "unit") and not gated:  # the gate's product is neither monotone nor convex
        blocks = _by_block(inside)
        both = [name for name, parts in blocks.items() if {"wi", "wo"} <= parts.keys()]
        if both:
            kept["monotone"] = not any(violations[name] for name in both)
        # A sum of convex functions relu(w_i x) with weights >= 0 is convex; concave units are the sense of `unit`.
        curved = [name for name, parts in blocks.items() if "wo" in parts]
        if curved:
            kept["convex" if arm.signs == "positive" else "not convex"] = all(
                bool(bent[name]) == (arm.signs == "unit") for name in curved
            )
    if first:
        plain = dict.fromkeys(outside, "pretrained") | dict.fromkeys(inside, arm.start)
        if arm.signs != "unit":  # its start has signs that no start without them is near to
            kept["start"] = all(_nearest_start(w, first[name]) == plain[name] for name, w in (inside | outside).items())
        free = outside | (inside if arm.signs == "free" and arm.ffn == "whole" else {})
        if free:
            moved = (torch.sign(w) != torch.sign(_start(first[name], plain[name])) for name, w in free.items())
            kept["free"] = any(bool(changed.any()) for changed in moved)
    return kept


def _start(pretrained: torch.Tensor, start: str) -> torch.Tensor:
    return {"pretrained": pretrained, "absolute": pretrained.abs(), "positive_part": pretrained.clamp(min=0)}[start]


def _nearest_start(weight: torch.Tensor, pretrained: torch.Tensor) -> str | None:
    """The start with the largest cosine to `weight`; None where no start is near."""
    flat = weight.ravel()
    cosines = {start: float(F.cosine_similarity(flat, _start(pretrained, start).ravel(), dim=0)) for start in STARTS}
    best = max(cosines, key=lambda name: cosines[name])
    return best if cosines[best] >= 0.5 else None


def _second_direction(weight: torch.Tensor) -> float:
    """Second singular value over the first: 0 for a matrix of rank one, or of zeros."""
    w = weight.double() if weight.shape[0] <= weight.shape[1] else weight.double().T
    values = torch.linalg.eigvalsh(w @ w.T)  # rising; the squared singular values
    return float(values[-2].clamp(min=0) / values[-1]) ** 0.5 if len(values) > 1 and values[-1] > 0 else 0.0


def _by_block(matrices: dict[str, torch.Tensor]) -> dict[str, dict[str, torch.Tensor]]:
    blocks: dict[str, dict[str, torch.Tensor]] = {}
    for name, weight in matrices.items():
        block, _, part = name.rpartition(".")
        blocks.setdefault(block, {})[part] = weight
    return blocks


def _one_sign_per_unit(block: dict[str, torch.Tensor]) -> bool:
    """Whether all weights of each hidden unit have one sign, and units of both signs occur."""
    # [d_ff, weights of the unit]: rows of wi, columns of wo
    units = torch.cat([weight.T if part == "wo" else weight for part, weight in block.items()], dim=1)
    up, down = (units >= 0).all(1), (units <= 0).all(1)
    return bool((up | down).all() and (up & ~down).any() and (down & ~up).any())


def _width(block: nn.Module) -> int:
    return next(child.in_features for child in block.children() if isinstance(child, nn.Linear))


def _bent(output: Callable[[torch.Tensor], torch.Tensor], width: int, inputs: int, generator: torch.Generator) -> int:
    """Outputs at the middle of two points that are above the mean of those at the points: 0 for a convex function."""
    count = 0
    for scale in (0.1, 1.0, 10.0):
        x, y = (scale * torch.randn(8 * inputs, width, generator=generator, dtype=torch.float64) for _ in range(2))
        mean, middle = (output(x) + output(y)) / 2, output((x + y) / 2)
        count += int((middle - mean > ROUNDING * mean.abs().amax().clamp(min=1e-300)).sum())
    return count


def _raised_inputs(
    block: nn.Module, inputs: int, generator: torch.Generator
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Pairs (x, x') of float64 [1 or more rows, d_model] with x' >= x in every coordinate."""
    width = _width(block)
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
