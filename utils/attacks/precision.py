"""Search in bfloat16 only where it ranks candidates as float32 does."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np
from scipy.stats import spearmanr

from utils.attacks.context import AttackContext, Victim
from utils.attacks.encoding import EncodedText
from utils.attacks.hotflip.proposals import EditablePositions, State, random_flips
from utils.attacks.objective import Objective, Targets
from utils.attacks.seeding import generator
from utils.modeling.precision import resolve_precision

log = logging.getLogger(__name__)
SMALLEST_AGREEMENT = 0.98  # Spearman correlation of bf16 and fp32 gains
PROBES = 64


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
    """Spearman correlation of the two objectives' losses over 64 random flips of one example; 0 if undefined."""
    item = max(items[:PROBES], key=lambda e: len(e.attackable))
    state = State(np.asarray(item.ids, dtype=np.int64), 0.0)
    flips = random_flips(EditablePositions(context.legal, item, state), PROBES, generator("rank agreement", item.id))
    inputs = [state.child(flip, 0.0).ids for flip in flips]
    if len(inputs) < 4:
        return 0.0
    owner = np.zeros(len(inputs), dtype=np.int64)
    first, second = (o.losses(inputs, Targets([item.labels], o.device), owner) for o in (exact, quick))
    value = float(spearmanr(first, second).statistic)
    return value if np.isfinite(value) else 0.0
