"""Search in bfloat16 only where it ranks candidates as float32 does."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.stats import spearmanr
from torch import Tensor

from utils.attacks.context import AttackContext, Victim
from utils.attacks.encoding import EncodedText
from utils.attacks.hotflip.proposals import EditablePositions, Flip, State, random_flips
from utils.attacks.objective import Objective, Targets
from utils.attacks.seeding import generator
from utils.modeling.batching import Indices
from utils.modeling.precision import resolve_precision

log = logging.getLogger(__name__)
SMALLEST_AGREEMENT = 0.98  # Spearman correlation of bf16 and fp32 gains
PROBES = 64
EXACTLY = 32  # of many inputs, those whose losses are computed in float32 as well: on a GPU that takes 16 times as long


def search_objective(context: AttackContext, victim: Victim, items: Sequence[EncodedText]) -> Objective:
    """The objective that a search uses: bfloat16 if `context.precision` allows it and it agrees with float32."""
    exact = Objective(victim.model, batch_tokens=context.batch_tokens)
    if not items or resolve_precision(context.precision, exact.device) == "fp32":
        return exact
    quick = Objective(victim.model, batch_tokens=context.batch_tokens, precision="bf16")
    agreement = rank_agreement(context, exact, quick, items)
    if agreement < SMALLEST_AGREEMENT:
        log.warning(
            "%s: bf16 and fp32 rank candidates differently (Spearman %.3f < %.2f): searching in fp32",
            victim.key,
            agreement,
            SMALLEST_AGREEMENT,
        )
        return exact
    return quick


def rank_agreement(context: AttackContext, exact: Objective, quick: Objective, items: Sequence[EncodedText]) -> float:
    """How alike two objectives rank 64 random flips of one example: by loss, and by first-order gain.

    The smaller of the two Spearman correlations; 0 if one is undefined. Both matter: gradients propose, losses decide.
    """
    item = max(items[:PROBES], key=lambda e: len(e.attackable))
    state = State(np.asarray(item.ids, dtype=np.int64), 0.0)
    flips = random_flips(EditablePositions(context.legal, item, state), PROBES, generator("rank agreement", item.id))
    inputs = [state.child(flip, 0.0).ids for flip in flips]
    if len(inputs) < 4:
        return 0.0
    owner = np.zeros(len(inputs), dtype=np.int64)
    first, second = (o.losses(inputs, Targets([item.labels], o.device), owner) for o in (exact, quick))
    gains = [_first_order_gains(o, item, flips) for o in (exact, quick)]
    values = [float(spearmanr(*pair).statistic) for pair in ((first, second), gains)]
    return min(values) if np.isfinite(values).all() else 0.0


def _first_order_gains(objective: Objective, item: EncodedText, flips: Sequence[Flip]) -> NDArray[np.float64]:
    """g_p . (e_new - e_old) of each flip of the unattacked text, float64 [flips]."""
    gains = np.zeros(len(flips))

    def use(_: Indices, __: Tensor, gradient: Tensor) -> None:
        table = objective.embedding.float()  # [vocabulary, d]
        change = table[[f.new for f in flips]] - table[[f.old for f in flips]]  # [flips, d]
        gains[:] = (gradient[0, [f.position for f in flips]] * change).sum(1).double().cpu().numpy()

    objective.gradients([item.ids], Targets([item.labels], objective.device), [0], use)
    return gains


def largest(losses: NDArray[np.float64]) -> list[int]:
    """Which `losses` [n] of a search's precision are among the EXACTLY largest: one of these is the largest."""
    order: list[int] = np.argsort(-np.nan_to_num(losses, nan=-np.inf), kind="stable")[:EXACTLY].tolist()
    return order
